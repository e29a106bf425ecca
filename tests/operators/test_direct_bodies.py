"""The bodies of DirectConv and DirectConvThreshold, on numbers whose sums are exact in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from bnn_deploy.operators.contract import OPERATORS
from bnn_deploy.operators.shapes import Call
from support.bodies import Array, Window, check, inside, make_model, nowhere_equal, pack, run_everywhere


@dataclass(frozen=True)
class Direct:
    """One node pair (DirectConv, DirectConvThreshold) on the same input and weights."""

    x: Array
    """[N, C, spatial...] float32."""
    w: Array
    """[O, C, kernel...] float32."""
    bias: Array
    threshold: Array
    window: Window
    pool: Window

    @property
    def attributes(self) -> dict[str, list[int]]:
        pool = {"pool_shape": self.pool.kernel, "pool_strides": self.pool.strides, "pool_pads": self.pool.pads}
        return self.window.attributes() | {name: list(values) for name, values in pool.items()}

    @property
    def model(self) -> bytes:
        rank = self.x.ndim
        nodes = [
            helper.make_node("DirectConv", ["X", "W", "b"], ["Y"], domain="bnn_deploy", **self.attributes),
            helper.make_node(
                "DirectConvThreshold", ["X", "W", "b", "t"], ["B"], domain="bnn_deploy", **self.attributes
            ),
        ]
        constants = {"W": self.w, "b": self.bias, "t": self.threshold}
        return make_model(nodes, self.x, constants, {"Y": TensorProto.FLOAT, "B": TensorProto.UINT32}, rank)

    def floats(self) -> Array:
        """One tap after the other, in float64; then the largest of each window of the pool."""
        n, _, *size = self.x.shape
        sums = np.zeros((n, len(self.w), *self.window.outputs(tuple(size)))) + self.bias.reshape(-1, *[1] * len(size))
        for position in np.ndindex(*sums.shape[2:]):
            for tap, coordinate in self.window.taps(position):
                if inside(coordinate, tuple(size)):
                    image = self.x[(slice(None), slice(None), *coordinate)].astype(float)
                    sums[(slice(None), slice(None), *position)] += image @ self.w[(slice(None), slice(None), *tap)].T
        pooled = np.full((n, len(self.w), *self.pool.outputs(sums.shape[2:])), -np.inf)
        for position in np.ndindex(*pooled.shape[2:]):
            for _, coordinate in self.pool.taps(position):
                if inside(coordinate, sums.shape[2:]):
                    window = pooled[(slice(None), slice(None), *position)]
                    np.maximum(window, sums[(slice(None), slice(None), *coordinate)], out=window)
        return pooled.astype(np.float32)

    def expected(self) -> list[Array]:
        floats = self.floats()
        return [floats, pack(floats >= self.threshold.reshape(-1, *[1] * (floats.ndim - 2)))]


NO_POOL = {1: Window.of(1), 2: Window.of(1, 1)}
CASES: dict[str, tuple[tuple[int, ...], int, int, Window, Window]] = {
    "3x3": ((5, 6), 3, 33, Window.of(3, 3), NO_POOL[2]),
    "5x5, one channel, 2/2": ((12, 11), 1, 20, Window.of(5, 5), Window.of(2, 2, strides=(2, 2))),
    "padded, strided, 3/2 pad 1": (
        (11, 9),
        3,
        5,
        Window.of(3, 3, strides=(2, 1), pads=(1, 0, 2, 1)),
        Window.of(3, 3, strides=(2, 2), pads=(1, 1, 1, 1)),
    ),
    "dilated, pool at stride 1": (
        (9, 8),
        2,
        4,
        Window.of(2, 3, dilations=(3, 2), pads=(1, 2, 0, 2)),
        Window.of(2, 2, pads=(0, 0, 1, 1)),
    ),
    "1-D": ((15,), 4, 34, Window.of(4, strides=(2,), pads=(3, 0)), Window.of(3, strides=(2,), pads=(1, 0))),
    "1-D, no pool": ((7,), 1, 3, Window.of(3, dilations=(2,)), NO_POOL[1]),
}


def case(name: str) -> Direct:
    size, channels, outputs, window, pool = CASES[name]
    rng = np.random.default_rng(0)

    def eighths(*shape: int) -> Array:
        return (rng.integers(-8, 9, shape) / 8).astype(np.float32)

    weights = eighths(outputs, channels, *window.kernel)
    # Negative, as the largest of which padding with zeros would be: most sums are below 0.
    bias = eighths(outputs) - 2
    return Direct(eighths(2, channels, *size), weights, bias, eighths(outputs) - 2, window, pool)


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(name: str) -> None:
    direct = case(name)
    expected = direct.expected()
    assert (direct.floats() < 0).mean() > 0.1 and np.count_nonzero(expected[1]) > 0
    check(direct.model, direct.x, expected)


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_products(name: str) -> None:
    direct = case(name)
    floats, bits = direct.expected()
    shapes = [direct.x.shape, direct.w.shape, direct.bias.shape, direct.threshold.shape]
    call = Call({key: tuple(values) for key, values in direct.attributes.items()}, shapes, None)
    rows = OPERATORS["DirectConv"], OPERATORS["DirectConvThreshold"]
    made, made_bits = (row.shapes(call) for row in rows)
    assert made is not None and made_bits is not None
    assert made[0].shape == floats.shape
    assert (made_bits[0].shape, made_bits[0].channels) == (bits.shape, len(direct.w))
    products = direct.w.size * int(np.prod(direct.window.outputs(direct.x.shape[2:])))
    assert [rows[0].macs(call, made[0]), rows[1].macs(call, made_bits[0])] == [products, products]
    unknown = replace(call, inputs=[(None, *direct.x.shape[1:-1], None), *shapes[1:]])
    open_made = rows[0].shapes(unknown)
    assert open_made is not None and open_made[0].shape[-1] is None and rows[0].macs(unknown, open_made[0]) is None


def test_the_comparison_catches_corruptions() -> None:
    direct = case("padded, strided, 3/2 pad 1")
    expected = direct.expected()
    wrong_weight, moved = direct.w.copy(), direct.threshold.copy()
    wrong_weight[2, 1, 0, 2] += 0.5
    moved += 0.25
    for wrong in (
        replace(direct, w=wrong_weight),
        replace(direct, bias=direct.bias + np.float32(0.125)),
        replace(direct, window=replace(direct.window, pads=(2, 0, 1, 1))),
        replace(direct, pool=replace(direct.pool, pads=(0, 1, 2, 1))),
    ):
        assert nowhere_equal(wrong.model, direct.x, expected)
    assert nowhere_equal(replace(direct, threshold=moved).model, direct.x, expected)


def test_nan_gives_0_and_does_not_hide_its_window() -> None:
    direct = case("5x5, one channel, 2/2")
    x = direct.x.copy()
    x[0, 0, 0, 0] = np.nan  # of the four sums of the first window, only the first reads it
    sums = replace(direct, x=x, pool=NO_POOL[2]).floats()[:, :, :8, :6]
    reached = sums >= direct.threshold.reshape(-1, 1, 1)
    pooled = reached.reshape(2, 20, 4, 2, 3, 2).any(axis=(3, 5))
    assert np.isnan(sums[0, :, 0, 0]).all() and pooled[0, :, 0, 0].any()
    for place, (_, bits) in run_everywhere(direct.model, x).items():
        assert np.array_equal(bits, pack(pooled)), place


@dataclass(frozen=True)
class Image:
    """The same node pair of an image of bytes: `direct.x` is what the levels make of them."""

    direct: Direct
    bytes: Array
    """uint8 [N, C, spatial...] or, with channels_last, [N, spatial..., C]."""
    levels: Array
    channels_last: bool

    @staticmethod
    def of(name: str, channels_last: bool) -> Image:
        direct = case(name)
        rng = np.random.default_rng(1)
        numbers = rng.integers(0, 256, direct.x.shape).astype(np.uint8)
        levels = (rng.integers(-8, 9, (direct.x.shape[1], 256)) / 8).astype(np.float32)
        x = np.stack([levels[c][numbers[:, c]] for c in range(len(levels))], axis=1)
        stored = np.ascontiguousarray(np.moveaxis(numbers, 1, -1)) if channels_last else numbers
        return Image(replace(direct, x=x), stored, levels, channels_last)

    @property
    def model(self) -> bytes:
        attributes = self.direct.attributes | {"channels_last": int(self.channels_last)}
        given = ["X", "W", "b", "l"]
        nodes = [
            helper.make_node("ImageConv", given, ["Y"], domain="bnn_deploy", **attributes),
            helper.make_node("ImageConvThreshold", [*given, "t"], ["B"], domain="bnn_deploy", **attributes),
        ]
        constants = {"W": self.direct.w, "b": self.direct.bias, "l": self.levels, "t": self.direct.threshold}
        outputs = {"Y": TensorProto.FLOAT, "B": TensorProto.UINT32}
        return make_model(nodes, self.bytes, constants, outputs, self.bytes.ndim)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_images_against_numpy(name: str, channels_last: bool) -> None:
    image = Image.of(name, channels_last)
    floats, bits = image.direct.expected()
    check(image.model, image.bytes, [floats, bits])
    for rows, shape in ((["ImageConv", "DirectConv"], floats.shape), (["ImageConvThreshold"], bits.shape)):
        attributes = {key: tuple(values) for key, values in image.direct.attributes.items()}
        call = Call(attributes | {"channels_last": (int(channels_last),)}, [image.bytes.shape, image.direct.w.shape], 0)
        made = OPERATORS[rows[0]].shapes(call)
        assert made is not None and made[0].shape == shape
        plain = replace(call, inputs=[image.direct.x.shape, image.direct.w.shape])
        assert OPERATORS[rows[0]].macs(call, made[0]) == OPERATORS["DirectConv"].macs(plain, made[0])
    wrong = image.levels.copy()
    wrong[-1, image.bytes[..., -1].flat[0] if channels_last else image.bytes[:, -1].flat[0]] += 8
    assert nowhere_equal(replace(image, levels=wrong).model, image.bytes, [floats, bits])
