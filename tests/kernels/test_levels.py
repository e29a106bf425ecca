"""QuantizeLevels and BinaryConvLevels, function bodies and kernels of every ISA, against plain numpy, bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from bnn_deploy.runtime.session import load_session
from support.levels import Conv, check, nowhere_equal, one_node, planes, run_bodies, run_kernels

# --- QuantizeLevels ---------------------------------------------------------------------------------------------


def quantize_model(x: NDArray[np.float32], thresholds: NDArray[np.float32], bits: int) -> bytes:
    output = (TensorProto.UINT32, x.ndim)
    return one_node("QuantizeLevels", x, {"thresholds": thresholds}, output, bits=bits)


def quantize_case(
    rng: np.random.Generator, shape: tuple[int, ...], bits: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Inputs [N, C, ...], many of them just at a threshold or next to one, thresholds, and the levels."""
    channels = shape[1]
    thresholds = np.sort(rng.standard_normal((2**bits - 1, channels)), axis=0).astype(np.float32)
    thresholds[0, 0] = -np.inf
    thresholds[-1, channels // 2] = np.inf
    x = rng.standard_normal(shape).astype(np.float32)
    chosen = np.take_along_axis(
        np.moveaxis(np.broadcast_to(thresholds.T, (shape[0], *shape[2:], channels, 2**bits - 1)), -2, 1),
        rng.integers(0, 2**bits - 1, (*shape, 1)),
        axis=-1,
    )[..., 0]
    near = [chosen, np.nextafter(chosen, np.float32(-np.inf)), np.nextafter(chosen, np.float32(np.inf))]
    x = np.choose(rng.integers(0, 4, shape), [x, *near]).astype(np.float32)
    x.reshape(-1)[:: max(1, x.size // 7)] = np.nan
    columns = thresholds.reshape(2**bits - 1, 1, channels, *[1] * (len(shape) - 2))
    return x, thresholds, (x >= columns).sum(axis=0)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "shape",
    [(2, 3), (1, 40, 5), (2, 31, 3, 4), (1, 32, 5, 5), (2, 33, 2, 2), (1, 100, 3, 2, 2), (1, 64, 17, 16)],
    ids=str,
)
def test_quantize_levels(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> None:
    x, thresholds, levels = quantize_case(rng, shape, bits)
    model, expected = quantize_model(x, thresholds, bits), planes(levels, bits)
    check(run_bodies(model, x), expected)
    check(run_kernels(model, x), expected)


def test_quantize_levels_at_every_tail_and_thread_count(rng: np.random.Generator) -> None:
    for channels, pixels in itertools.product((1, 7, 32, 45, 64, 65), (1, 15, 16, 33, 300)):
        x, thresholds, levels = quantize_case(rng, (1, channels, pixels), 2)
        check(run_kernels(quantize_model(x, thresholds, 2), x, threads=2), planes(levels, 2))


def test_an_empty_batch(rng: np.random.Generator) -> None:
    x, thresholds, levels = quantize_case(rng, (1, 5, 2), 2)
    session = load_session(quantize_model(x, thresholds, 2), 1)
    check({"kernels": session.run(None, {"X": x[:0]})[0]}, planes(levels[:0], 2))
    conv = CONVOLUTIONS["no padding"]
    assert load_session(conv.model(), 1).run(None, {"X": conv.x()[:0]})[0].shape == (0, 9, 4, 3)


@pytest.mark.parametrize("bits", [2, 3])
def test_a_moved_threshold_is_noticed_everywhere(rng: np.random.Generator, bits: int) -> None:
    x, thresholds, levels = quantize_case(rng, (2, 5, 6, 7), bits)
    reached = x[:, 2][x[:, 2] >= thresholds[1, 2]].min()  # the least input that reaches it no longer does
    thresholds[1, 2] = np.nextafter(reached, np.float32(np.inf))
    thresholds[2:, 2] = np.maximum(thresholds[2:, 2], thresholds[1, 2])
    model = quantize_model(x, thresholds, bits)
    assert nowhere_equal(run_bodies(model, x), planes(levels, bits))
    assert nowhere_equal(run_kernels(model, x), planes(levels, bits))


CONVOLUTIONS = {
    **{f"{bits} bits": Conv(40, 6, (3, 3), (4, 5), pads=(1, 1, 1, 1), bits=bits) for bits in (1, 2, 3, 4)},
    **{f"{c} channels": Conv(c, 5, (3, 3), (4, 3), pads=(1, 1, 1, 1)) for c in (1, 31, 32, 33, 64, 300)},
    **{f"{o} outputs": Conv(40, o, (3, 3), (4, 3), bits=3) for o in (1, 31, 32, 33, 64, 100)},
    "1x1": Conv(70, 9, (1, 1), (5, 4)),
    "1x1, 3 bits": Conv(64, 9, (1, 1), (5, 4), bits=3),
    "1x1, strides": Conv(33, 9, (1, 1), (7, 6), strides=(3, 2)),
    "3x1, no copy": Conv(33, 9, (3, 1), (7, 6)),
    "no padding": Conv(64, 9, (3, 3), (6, 5)),
    "strides": Conv(20, 6, (3, 3), (8, 9), strides=(2, 3), pads=(1, 1, 1, 1)),
    "asymmetric pads": Conv(20, 6, (3, 3), (5, 4), pads=(2, 0, 1, 3)),
    "windows that see padding only": Conv(20, 6, (2, 2), (2, 3), pads=(3, 2, 2, 4), bits=4),
    "dilations": Conv(33, 6, (3, 2), (6, 7), dilations=(2, 3)),
    "dilations and padding": Conv(33, 6, (3, 3), (6, 7), dilations=(2, 2), pads=(2, 2, 2, 2)),
    "2 groups of 3": Conv(6, 8, (3, 3), (5, 5), group=2, pads=(1, 1, 1, 1), bits=1),
    "2 groups of 3, 2 bits": Conv(6, 8, (3, 3), (5, 5), group=2),
    "2 groups of 33": Conv(66, 10, (3, 3), (4, 3), group=2, pads=(1, 1, 1, 1)),
    "2 groups of 32": Conv(64, 10, (3, 3), (4, 3), group=2),
    "2 groups of 32, 1x1": Conv(64, 10, (1, 1), (4, 3), group=2, bits=3),
    "2 groups of 32, padded": Conv(64, 70, (3, 3), (4, 3), group=2, pads=(1, 1, 1, 1), bits=3),
    "depthwise": Conv(34, 34, (3, 3), (4, 3), group=34, pads=(1, 1, 1, 1)),
    "1-D": Conv(40, 6, (3,), (9,), strides=(2,), pads=(0, 2), dilations=(2,)),
    "1-D, groups": Conv(40, 6, (4,), (5,), pads=(1, 2), group=2, bits=4),
    "3-D": Conv(40, 6, (2, 3, 2), (3, 4, 5), (1, 2, 1), (1, 1, 0, 0, 2, 1), (2, 1, 1), group=2),
    "all at once": Conv(66, 9, (3, 2), (5, 6), (2, 1), (1, 0, 2, 3), (1, 2), group=3, batch=3, bits=3),
    "fully connected": Conv(50, 33, (4, 4), (4, 4)),
    "fully connected, 1x1": Conv(800, 70, (1, 1), (1, 1)),
    "several images in a tile": Conv(40, 6, (2, 2), (3, 3), batch=33),
    "more pixels than a block": Conv(20, 3, (3, 3), (20, 21), pads=(1, 1, 1, 1), batch=1),
    "rows in conflict": Conv(32, 34, (1, 1), (32, 32), batch=1),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_binary_conv_levels(case: str) -> None:
    conv = CONVOLUTIONS[case]
    check(run_bodies(conv.model(), conv.x()), conv.expected())
    check(run_kernels(conv.model(), conv.x()), conv.expected())


@pytest.mark.parametrize("group_words", [1, 2, 3, 4, 5, 7, 8, 9])
def test_kernels_at_every_length_of_a_window(group_words: int) -> None:
    """Up to 81 words, that is several vectors of every ISA and each remainder, gathered or not."""
    for kernel, padding in itertools.product((1, 2, 3), (0, 1)):
        pads = (padding,) * 4
        conv = Conv(32 * group_words - 5, 35, (kernel, kernel), (4, 5), pads=pads, batch=1, bits=3)
        check(run_kernels(conv.model(), conv.x()), conv.expected())


def test_kernels_on_two_threads() -> None:
    conv = Conv(128, 140, (3, 3), (24, 24), pads=(1, 1, 1, 1), batch=2)
    check(run_kernels(conv.model(), conv.x(), threads=2), conv.expected())


def test_the_sum_at_its_bound() -> None:
    """All levels at the highest, all weights +1: 15 * 1118481 = 2^24 - 1."""
    conv = Conv(1118481, 2, (1, 1), (1, 1), batch=1, bits=4)
    conv.levels[:], conv.w[:] = 15, 1
    conv.w[1] = -1
    conv.scale[:], conv.bias[:] = 1, 0
    assert conv.expected().ravel().tolist() == [2**24 - 1, 1 - 2**24]
    check(run_kernels(conv.model(), conv.x()), conv.expected())


def test_the_extremes_of_scale_and_bias() -> None:
    """Two roundings, no early overflow, and +0 where the sum is 0, whatever the signs."""
    conv = Conv(40, 6, (1, 1), (3, 3))
    conv.scale[:] = [np.float32(2.0**-125), -0.0, np.float32(3e38), np.nan, -np.inf, np.float32(1 / 3)]
    conv.bias[:] = [-0.0, -0.0, 0, 0, 1, -1]
    conv.levels[0, :, 0] = 0
    with np.errstate(all="ignore"):
        expected = conv.expected()
        results = run_bodies(conv.model(), conv.x()) | run_kernels(conv.model(), conv.x())
    for place, got in results.items():
        np.testing.assert_array_equal(got, expected, err_msg=place)
        numbers = ~np.isnan(expected)
        assert (np.signbit(got) == np.signbit(expected))[numbers].all(), place


def corrupt_weight(conv: Conv) -> Conv:
    conv = replace(conv)
    conv.w[3, 4, 1, 2] *= -1
    return conv


def corrupt_level(conv: Conv) -> Conv:
    conv = replace(conv)
    conv.levels[1, 4, 2, 1] ^= 2
    return conv


def swap_planes(conv: Conv) -> Conv:
    conv = replace(conv)
    conv.levels = (conv.levels & 1) << 1 | conv.levels >> 1
    return conv


@pytest.mark.parametrize("corrupt", [corrupt_weight, corrupt_level, swap_planes])
def test_a_corruption_is_noticed_everywhere(corrupt: object) -> None:
    conv = Conv(40, 6, (3, 3), (4, 5), pads=(1, 1, 1, 1))
    expected = conv.expected()
    assert callable(corrupt)
    wrong = corrupt(conv)
    assert nowhere_equal(run_bodies(wrong.model(), wrong.x()), expected)
    assert nowhere_equal(run_kernels(wrong.model(), wrong.x()), expected)
