"""The bodies of BinaryMaxPool and AveragePoolThreshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from support.bodies import Array, Window, check, inside, make_model, nowhere_equal, pack


def pool_model(bits: Array, window: Window, ceil: bool) -> bytes:
    node = helper.make_node(
        "BinaryMaxPool", ["X"], ["Y"], domain="bnn_deploy", **window.attributes(), ceil_mode=int(ceil)
    )
    return make_model([node], bits, {}, {"Y": TensorProto.UINT32}, bits.ndim)


def pooled(x: Array, window: Window, ceil: bool) -> Array:
    """The OR of booleans [N, C, spatial...] over each window."""
    n, channels, *size = x.shape
    positions = window.outputs(tuple(size), ceil)
    result = np.zeros((n, channels, *positions), bool)
    for position in np.ndindex(*positions):
        for _, coordinate in window.taps(position):
            if inside(coordinate, tuple(size)):
                result[(slice(None), slice(None), *position)] |= x[(slice(None), slice(None), *coordinate)]
    return result


POOLS: dict[str, tuple[Window, tuple[int, ...]]] = {
    "2/2": (Window.of(2, 2, strides=(2, 2)), (5, 6)),
    "3/2 pad 1": (Window.of(3, 3, strides=(2, 2), pads=(1, 1, 1, 1)), (6, 7)),
    "3/2": (Window.of(3, 3, strides=(2, 2)), (6, 8)),
    "asymmetric pads": (Window.of(3, 3, strides=(2, 1), pads=(0, 2, 1, 0)), (5, 4)),
    "large strides": (Window.of(2, 2, strides=(1_000_000, 2**31 - 1), pads=(0, 1, 1, 0)), (3, 6)),
    "large strides, ceil hangs over": (Window.of(3, 3, strides=(4, 2**31 - 1), pads=(0, 0, 2, 0)), (5, 7)),
    "ceil would start in the end padding": (Window.of(2, 2, strides=(3, 3), pads=(0, 0, 1, 1)), (3, 6)),
    "dilations": (Window.of(2, 3, strides=(1, 2), dilations=(3, 2)), (6, 7)),
    "windows that see padding only": (Window.of(2, 2, pads=(1, 1, 1, 1), dilations=(3, 3)), (2, 2)),
    "pads beyond the kernel": (Window.of(1, 2, strides=(2, 1), pads=(1, 3, 2, 2)), (3, 3)),
    "stride 1, asymmetric pads": (
        Window.of(2, 2, pads=(0, 0, 1, 1)),
        (4, 5),
    ),  # what PyTorch's ZeroPad2d before a pool gives
    "1-D": (Window.of(3, strides=(2,), pads=(1, 0)), (8,)),
    "1-D, stride 1": (Window.of(2, pads=(0, 1)), (6,)),
    "3-D": (Window.of(2, 3, 2, strides=(1, 2, 2), pads=(1, 1, 0, 0, 1, 1)), (3, 4, 5)),
}


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("case", POOLS)
def test_max_pool(case: str, ceil: bool, rng: np.random.Generator) -> None:
    window, size = POOLS[case]
    x = rng.random((2, 33, *size)) < 0.25
    expected = pack(pooled(x, window, ceil))
    check(pool_model(pack(x), window, ceil), pack(x), [expected])


def test_ceil_mode_cases_differ() -> None:
    assert POOLS["3/2"][0].outputs((6, 8)) == [2, 3]
    assert POOLS["3/2"][0].outputs((6, 8), ceil=True) == [3, 4]
    window, size = POOLS["ceil would start in the end padding"]
    assert window.outputs(size, ceil=True) == window.outputs(size) == [1, 2]


@pytest.mark.parametrize("channels", [1, 20, 31, 32, 96, 800])
def test_max_pool_channels(channels: int, rng: np.random.Generator) -> None:
    window = Window.of(2, 2, strides=(2, 2))
    x = rng.random((3, channels, 4, 4)) < 0.2
    check(pool_model(pack(x), window, False), pack(x), [pack(pooled(x, window, False))])


@st.composite
def pools(draw: st.DrawFn) -> tuple[Array, Window, bool]:
    rank = draw(st.integers(1, 2))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    kernel, strides, dilations = per_axis(1, 4), per_axis(1, 3), per_axis(1, 2)
    pads = per_axis(0, 3) + per_axis(0, 3)
    window = Window(kernel, strides, pads, dilations)
    size = tuple(
        max(1, (k - 1) * d + 1 - p - q) + extra
        for k, d, p, q, extra in zip(kernel, dilations, pads[:rank], pads[rank:], per_axis(0, 4), strict=True)
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = random.random((draw(st.integers(1, 2)), draw(st.integers(1, 70)), *size)) < 0.3
    return x, window, draw(st.booleans())


@settings(derandomize=True, max_examples=30, deadline=None, database=None)
@given(pool=pools())
def test_max_pool_of_any_geometry(pool: tuple[Array, Window, bool]) -> None:
    x, window, ceil = pool
    check(pool_model(pack(x), window, ceil), pack(x), [pack(pooled(x, window, ceil))])


def test_the_pool_comparison_catches_corruptions(rng: np.random.Generator) -> None:
    window, size = POOLS["3/2 pad 1"]
    x = rng.random((2, 33, *size)) < 0.1
    expected = [pack(pooled(x, window, False))]
    assert nowhere_equal(pool_model(pack(x), window, False), pack(~x), expected)
    for corrupted in (replace(window, pads=(0, 1, 2, 1)), replace(window, dilations=(1, 2), pads=(1, 2, 1, 2))):
        assert nowhere_equal(pool_model(pack(x), corrupted, False), pack(x), expected)
    assert nowhere_equal(pool_model(pack(x), window, True), pack(x), expected)


# --- AveragePoolThreshold ------------------------------------------------------------------------


def average_model(x: Array, window: Window, relu: bool, threshold: Array) -> bytes:
    attributes = {**window.attributes(), "relu": int(relu)}
    node = helper.make_node("AveragePoolThreshold", ["X", "t"], ["Y"], domain="bnn_deploy", **attributes)
    return make_model([node], x, {"t": threshold}, {"Y": TensorProto.UINT32}, 4)


def summed(x: Array, window: Window, relu: bool) -> Array:
    """The float32 sums of x [N, C, H, W] in each window: its rows first, then these sums."""
    n, channels, *size = x.shape
    positions = window.outputs(tuple(size))
    result = np.zeros((n, channels, *positions), np.float32)
    for y, column in np.ndindex(*positions):
        total = np.zeros((n, channels), np.float32)
        for j in range(window.kernel[1]):
            rows = np.zeros((n, channels), np.float32)
            for i in range(window.kernel[0]):
                starts = y * window.strides[0] - window.pads[0], column * window.strides[1] - window.pads[1]
                place = starts[0] + i * window.dilations[0], starts[1] + j * window.dilations[1]
                if inside(place, tuple(size)):
                    tap = x[:, :, place[0], place[1]]
                    rows = rows + (np.maximum(tap, 0) if relu else tap)
            total = total + rows
        result[:, :, y, column] = total
    return result


AVERAGES = [case for case in POOLS if len(POOLS[case][1]) == 2 and "ceil" not in case]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("case", AVERAGES)
def test_average_pool(case: str, relu: bool, rng: np.random.Generator) -> None:
    """Thresholds that are sums themselves: another order of the float32 sums gives other bits."""
    window, size = POOLS[case]
    x = rng.standard_normal((2, 33, *size)).astype(np.float32)
    sums = summed(x, window, relu)
    threshold = sums.reshape(2, 33, -1)[0, :, -1].copy()
    check(average_model(x, window, relu, threshold), x, [pack(sums >= threshold.reshape(-1, 1, 1))])


def test_average_pool_of_nan_and_infinities() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1, -1, 0, -0.0, 2], np.float32).reshape(1, 1, 2, 4)
    window = Window.of(1, 1)
    for relu, bits in ((False, "01010001"), (True, "01010001")):
        wanted = np.array([bit == "1" for bit in bits]).reshape(x.shape)
        check(average_model(x, window, relu, np.ones(1, np.float32)), x, [pack(wanted)])
    zero = np.zeros(1, np.float32)
    wanted = np.array([False, True, True, True, True, True, True, True]).reshape(x.shape)
    check(average_model(x, window, True, zero), x, [pack(wanted)])


def test_the_average_comparison_catches_corruptions(rng: np.random.Generator) -> None:
    window, size = POOLS["3/2 pad 1"]
    x = rng.standard_normal((2, 33, *size)).astype(np.float32)
    threshold = rng.uniform(1, 5, 33).astype(np.float32)
    expected = [pack(summed(x, window, True) >= threshold.reshape(-1, 1, 1))]
    check(average_model(x, window, True, threshold), x, expected)
    assert nowhere_equal(average_model(x, window, False, threshold), x, expected)
    assert nowhere_equal(average_model(x, replace(window, pads=(0, 1, 2, 1)), True, threshold), x, expected)
    assert nowhere_equal(average_model(x, window, True, threshold[::-1].copy()), x, expected)
    by_columns = np.swapaxes(summed(np.swapaxes(x, 2, 3), replace(window), True), 2, 3)
    exact = summed(x, window, True)
    assert (by_columns != exact).any()  # the order is seen
