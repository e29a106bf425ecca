"""AveragePoolThreshold on every instruction set, against sums in NumPy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from support.bodies import Array, Window, pack
from support.kernels import DOMAIN, ISAS, make_model, make_session


@dataclass(frozen=True)
class Case:
    """X, of whole numbers and halves, whose sums are exact, and what is done with it."""

    window: Window
    channels: int
    size: tuple[int, int]
    relu: bool = True
    batch: int = 2

    def input(self) -> Array:
        rng = np.random.default_rng(5)
        return (rng.integers(-8, 9, (self.batch, self.channels, *self.size)) / 2).astype(np.float32)

    def threshold(self) -> Array:
        return (np.arange(self.channels) % 7 + 9 * self.relu).astype(np.float32)

    def expected(self) -> Array:
        window = self.window
        x = np.maximum(self.input(), 0) if self.relu else self.input()
        padded = np.pad(x, ((0, 0), (0, 0), window.pads[::2], window.pads[1::2]))
        height, width = window.outputs(self.size)
        total = np.zeros((self.batch, self.channels, height, width), np.float32)
        for i, j in itertools.product(*map(range, window.kernel)):
            y, column = i * window.dilations[0], j * window.dilations[1]
            rows = padded[:, :, y : y + (height - 1) * window.strides[0] + 1 : window.strides[0]]
            total += rows[..., column : column + (width - 1) * window.strides[1] + 1 : window.strides[1]]
        return pack(total >= self.threshold().reshape(-1, 1, 1))


def output(case: Case, x: Array, isa: str, threshold: Array | None = None) -> Array:
    node = helper.make_node(
        "AveragePoolThreshold", ["X", "t"], ["Y"], domain=DOMAIN, relu=int(case.relu), **case.window.attributes()
    )
    info = helper.make_tensor_value_info
    constants = {"t": case.threshold() if threshold is None else threshold}
    model = make_model(
        [node], [info("X", TensorProto.FLOAT, [None] * 4)], [info("Y", TensorProto.UINT32, [None] * 4)], constants
    )
    (bits,) = make_session(model, isa).run(None, {"X": x})
    return np.asarray(bits)


POOLS = [
    Window.of(3, 3, strides=(2, 2), pads=(1, 1, 1, 1)),
    Window.of(2, 2, strides=(2, 2)),
    Window.of(3, 3, pads=(1, 1, 1, 1)),
    Window.of(3, 2, strides=(1, 3), pads=(0, 2, 3, 1)),
    Window.of(2, 3, strides=(2, 1), dilations=(3, 2), pads=(4, 4, 4, 4)),
    Window.of(7, 8),
    Window.of(1, 5, strides=(3, 2)),
]


@pytest.mark.parametrize("isa", ISAS)
def test_windows_and_channels(isa: str) -> None:
    for window, channels, relu in itertools.product(POOLS, (1, 31, 32, 33, 96), (False, True)):
        case = Case(window, channels, (9, 10), relu)
        assert output(case, case.input(), isa).tobytes() == case.expected().tobytes(), (case, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_tail_of_a_row(isa: str) -> None:
    """A row is read in vectors of up to 16 floats, and its windows are counted in vectors, too."""
    for width, window in itertools.product(range(2, 38), POOLS[:4]):
        case = Case(window, 3, (4, width), batch=1)
        assert output(case, case.input(), isa).tobytes() == case.expected().tobytes(), (case, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_bands_and_tasks(isa: str) -> None:
    """More rows than are summed at once, and a window as wide as a row, whose stride does not count."""
    for case in (
        Case(POOLS[0], 40, (120, 130)),
        Case(POOLS[2], 8, (3, 5000), batch=1),
        Case(Window.of(2, 6, strides=(1, 2**31 - 1)), 33, (5, 6)),
    ):
        assert output(case, case.input(), isa).tobytes() == case.expected().tobytes(), (case, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_the_comparison_catches_corruptions(isa: str) -> None:
    case = Case(POOLS[0], 33, (9, 10))
    x, wanted = case.input(), case.expected()
    moved = case.threshold()
    moved[32] += 1
    assert output(case, x, isa).tobytes() == wanted.tobytes()
    assert output(case, x, isa, moved).tobytes() != wanted.tobytes()
    assert output(replace(case, relu=False), x, isa).tobytes() != wanted.tobytes()
    wrong = x.copy()
    wrong[1, 32, 8, 9] = 100
    assert output(case, wrong, isa).tobytes() != wanted.tobytes()
    for window in (replace(POOLS[0], pads=(2, 1, 0, 1)), replace(POOLS[0], pads=(1, 0, 1, 2))):
        assert output(replace(case, window=window), x, isa).tobytes() != wanted.tobytes()
