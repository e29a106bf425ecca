"""Direct convolutions with a reference to the last bit, in the order of summation that the operators state."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from support.kernels import DOMAIN, make_model, make_session

BY_INTEGERS = ("avx512", "avx2", "neon_dotprod")
"""The units that convolve images of bytes in 16-bit integers, which are faster there than floats."""


def multiply_add(x: np.ndarray, w: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """x * w + acc of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there, so that rounding it to float32 is right: its last
    bit is set where something was lost, in float64's 29 bits beyond float32's.
    """
    product, acc = x.astype(np.float64) * w, acc.astype(np.float64)
    total = product + acc
    part = total - product
    lost = (product - (total - part)) + (acc - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    return np.where((lost != 0) & even, odd, total).astype(np.float32)


def multiply_then_add(x: np.ndarray, w: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """x * w + acc of float32, the product rounded, too: what the scalar unit does."""
    return x * w + acc


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution [outputs, channels, *kernel] of images of a size, and the pool behind it."""

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    pool: tuple[int, ...]
    pool_strides: tuple[int, ...]
    pool_pads: tuple[int, ...]
    batch: int = 2

    def tensors(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(7)
        shapes = {
            "X": (self.batch, self.channels, *self.size),
            "W": (self.outputs, self.channels, *self.kernel),
            "bias": (self.outputs,),
            "threshold": (self.outputs,),
        }
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def expected(self, isa: str) -> np.ndarray:
        """Y, float32 [N, O, spatial...]."""
        tensors, rank = self.tensors(), len(self.kernel)
        add = multiply_then_add if isa == "scalar" else multiply_add
        pads = list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        x = np.pad(tensors["X"], [(0, 0), (0, 0), *pads])
        out = [
            (x.shape[2 + i] - (self.kernel[i] - 1) * self.dilations[i] - 1) // self.strides[i] + 1 for i in range(rank)
        ]
        column = (1, -1, *[1] * rank)
        acc = np.broadcast_to(tensors["bias"].reshape(column), (self.batch, self.outputs, *out))
        for c in range(self.channels):
            for tap in itertools.product(*map(range, self.kernel)):
                at = tuple(
                    slice(t * d, t * d + (n - 1) * s + 1, s)
                    for t, d, s, n in zip(tap, self.dilations, self.strides, out, strict=True)
                )
                acc = add(
                    x[(slice(None), slice(c, c + 1), *at)], tensors["W"][(slice(None), c, *tap)].reshape(column), acc
                )
        begins, ends = self.pool_pads[:rank], self.pool_pads[rank:]
        padded = np.pad(acc, [(0, 0), (0, 0), *zip(begins, ends, strict=True)], constant_values=np.float32(-np.inf))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.pool, axis=tuple(range(2, 2 + rank)))
        steps = (slice(None), slice(None), *(slice(None, None, s) for s in self.pool_strides))
        return windows[steps].max(axis=tuple(range(-rank, 0)))

    def session(self, operator: str, isa: str, threads: int = 1, **changes: np.ndarray) -> ort.InferenceSession:
        """One node of an operator; for an image's operator, `changes` has its levels, and channels_last if it is 1."""
        of_bytes, bits = operator.startswith("Image"), operator.endswith("Threshold")
        names = ["W", "bias", *["levels"] * of_bytes, *["threshold"] * bits]
        layout = {"channels_last": int(changes.pop("channels_last", np.array(0)))} if of_bytes else {}
        node = helper.make_node(
            operator,
            ["X", *names],
            ["Y"],
            domain=DOMAIN,
            kernel_shape=self.kernel,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            pool_shape=self.pool,
            pool_strides=self.pool_strides,
            pool_pads=self.pool_pads,
            **layout,
        )
        shape = [None] * (len(self.kernel) + 2)
        tensors = self.tensors() | changes
        model = make_model(
            [node],
            [helper.make_tensor_value_info("X", TensorProto.UINT8 if of_bytes else TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("Y", TensorProto.UINT32 if bits else TensorProto.FLOAT, shape)],
            {name: tensors[name] for name in names},
        )
        return make_session(model, isa, threads)


def image(outputs: int, kernel: int = 3, size: tuple[int, int] = (9, 11), **changes: object) -> Case:
    """Two channels, stride 1, padding 1, no pool."""
    base = Case(2, outputs, (kernel,) * 2, size, (1, 1), (1, 1, 1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    return dataclasses.replace(base, **changes)


CASES = [
    # Every number of vectors in the last tile, and every number of pixels up to two tiles.
    *(image(outputs) for outputs in (1, 8, 17, 24, 33, 48, 52, 70)),
    *(image(24 if width % 2 else 40, size=(4, width)) for width in range(2, 27)),
    # More taps than a block of weights.
    image(20, kernel=11, size=(13, 30), channels=3),
    # Strides, dilations, and padding on one side; rows that end before the input does.
    image(33, strides=(2, 2)),
    image(20, kernel=11, size=(27, 31), strides=(4, 4), pads=(2, 2, 2, 2)),
    image(12, strides=(3, 2), dilations=(2, 3), size=(14, 15), pads=(0, 4, 3, 0)),
    image(12, kernel=1, strides=(3, 3), pads=(0, 0, 0, 0)),
    # Pools: with overlap, with padding, with a stride that skips rows, and larger than a band.
    image(33, pool=(2, 2), pool_strides=(2, 2)),
    image(20, strides=(2, 2), size=(30, 33), pool=(3, 3), pool_strides=(2, 2), pool_pads=(1, 1, 1, 1)),
    image(40, size=(70, 40), pool=(2, 3), pool_strides=(5, 4), pool_pads=(1, 0, 0, 2)),
    image(16, size=(17, 19), pool=(16, 16), pool_strides=(1, 1)),
    # Time series.
    Case(1, 20, (5,), (40,), (2,), (2, 1), (1,), (3,), (2,), (1, 0)),
]
