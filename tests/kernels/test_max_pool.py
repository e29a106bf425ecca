"""BinaryMaxPool against loops over windows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from support.kernels import DOMAIN, make_model, make_session

# --- BinaryMaxPool ----------------------------------------------------------------------------


@dataclasses.dataclass
class PoolCase:
    words: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil_mode: int
    batch: int = 2

    def input(self) -> np.ndarray:
        rng = np.random.default_rng(1)
        x = rng.integers(0, 2**32, (self.batch, *self.size, self.words), dtype=np.uint32)
        return x & rng.integers(0, 2**32, x.shape, dtype=np.uint32)

    def expected(self) -> np.ndarray:
        x = self.input()
        rank = len(self.kernel)
        out = []
        for i, n in enumerate(self.size):
            window = (self.kernel[i] - 1) * self.dilations[i] + 1
            slack = n + self.pads[i] + self.pads[rank + i] - window
            starts = range(0, slack + (self.strides[i] if self.ceil_mode else 1), self.strides[i])
            if self.ceil_mode:  # the last window starts inside the input or its begin padding
                starts = [start for start in starts if start < n + self.pads[i]]
            out.append(len(starts))
        y = np.zeros((self.batch, *out, self.words), np.uint32)
        for position in itertools.product(*map(range, out)):
            for tap in itertools.product(*map(range, self.kernel)):
                axes = zip(position, self.strides, self.pads[:rank], tap, self.dilations, strict=True)
                at = tuple(p * s - pad + t * d for p, s, pad, t, d in axes)
                if all(0 <= a < n for a, n in zip(at, self.size, strict=True)):
                    y[(slice(None), *position)] |= x[(slice(None), *at)]
        return y


def pool_differences(cases: Sequence[PoolCase], flip: bool = False) -> list[PoolCase]:
    nodes, inputs, outputs = [], [], []
    for i, case in enumerate(cases):
        attributes = {
            "kernel_shape": case.kernel,
            "strides": case.strides,
            "pads": case.pads,
            "dilations": case.dilations,
            "ceil_mode": case.ceil_mode,
            "domain": DOMAIN,
        }
        nodes.append(helper.make_node("BinaryMaxPool", [f"X{i}"], [f"Y{i}"], **attributes))
        shape = [None] * (len(case.kernel) + 2)
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.UINT32, shape))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, shape))
    session = make_session(make_model(nodes, inputs, outputs, {}), None)
    feeds = {f"X{i}": case.input() for i, case in enumerate(cases)}
    if flip:
        for x in feeds.values():
            x[(0,) * x.ndim] ^= 1 << 9
    got = session.run(None, feeds)
    return [
        case
        for case, actual in zip(cases, got, strict=True)
        if actual.shape != case.expected().shape or actual.tobytes() != case.expected().tobytes()
    ]


POOL_CASES = [
    PoolCase(words, kernel, (7, 6), strides, pads, dilations, ceil_mode)
    for words, kernel, strides, pads, dilations, ceil_mode in itertools.product(
        (1, 3),
        ((2, 2), (3, 3), (1, 2)),
        ((2, 2), (1, 3)),
        ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0)),
        ((1, 1), (2, 1)),
        (0, 1),
    )
] + [
    PoolCase(2, (3,), (8,), (2,), (1, 1), (1,), 0),
    PoolCase(2, (3,), (8,), (3,), (0, 2), (2,), 1),
    PoolCase(1, (2, 2), (4, 4), (2, 2), (0,) * 4, (1, 1), 0, batch=0),
    PoolCase(2, (2, 2, 2), (4, 5, 6), (2, 2, 2), (0,) * 6, (1, 1, 1), 0),
    PoolCase(3, (3, 2, 3), (5, 4, 7), (2, 1, 3), (1, 0, 1, 1, 1, 0), (1, 2, 1), 1),
]


def test_max_pool() -> None:
    assert not pool_differences(POOL_CASES)


def test_max_pool_large_enough_for_threads() -> None:
    assert not pool_differences([PoolCase(64, (2, 2), (40, 40), (2, 2), (0,) * 4, (1, 1), 0)])


def test_max_pool_a_flipped_bit_is_caught() -> None:
    # A window of one element, so that no other bit of the window can hide the flip.
    assert pool_differences([PoolCase(1, (1, 1), (4, 4), (1, 1), (0,) * 4, (1, 1), 0)], flip=True)
