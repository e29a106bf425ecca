"""The bodies of BinaryConv and BinaryConvThreshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from support.bodies import INT32, Array, Window, check, convolve, equal, make_model, nowhere_equal, pack, stock_session


@dataclass(frozen=True)
class Convolution:
    """One node pair (BinaryConv, BinaryConvThreshold) on the same input and weights."""

    x: Array
    """[N, C, spatial...] of ±1, int64."""
    w: Array
    """[O, C/group, kernel...] of ±1, int64."""
    scale: Array
    bias: Array
    threshold: Array
    pad_value: Array
    window: Window
    group: int = 1

    def model(self) -> bytes:
        attributes = {**self.window.attributes(), "channels": self.x.shape[1], "group": self.group}
        nodes = [
            helper.make_node("BinaryConv", ["X", "W", "s", "b", "p"], ["Y"], domain="bnn_deploy", **attributes),
            helper.make_node("BinaryConvThreshold", ["X", "W", "t", "p"], ["Z"], domain="bnn_deploy", **attributes),
        ]
        constants = {"W": pack(self.w > 0), "s": self.scale, "b": self.bias, "t": self.threshold, "p": self.pad_value}
        return make_model(nodes, self.bits(), constants, {"Y": TensorProto.FLOAT, "Z": TensorProto.UINT32}, self.x.ndim)

    def bits(self) -> Array:
        return pack(self.x > 0)

    def expected(self) -> list[Array]:
        acc = convolve(self.x, self.w, self.pad_value, self.window, self.group)
        per_output = (1, -1, *[1] * len(self.window.kernel))
        scaled = acc.astype(np.float32) * self.scale.reshape(per_output)
        return [
            scaled + self.bias.reshape(per_output),
            pack(acc >= self.threshold.astype(np.int64).reshape(per_output)),
        ]


def convolution(
    rng: np.random.Generator,
    channels: int,
    outputs: int,
    window: Window,
    size: tuple[int, ...],
    *,
    group: int = 1,
    batch: int = 2,
    pad_value: int | str = 0,
) -> Convolution:
    """Random contents. `pad_value` "mixed" is a random ±1 per channel."""
    signs = np.array([-1, 1])
    threshold = rng.integers(-6, 7, outputs).astype(np.int32)
    threshold[0], threshold[-1] = INT32.min, INT32.max
    if outputs > 3:
        threshold[1:3] = INT32.min + 1, INT32.max - 1
    per_channel = rng.choice(signs, channels).astype(np.float32)
    return Convolution(
        x=rng.choice(signs, (batch, channels, *size)),
        w=rng.choice(signs, (outputs, channels // group, *window.kernel)),
        scale=rng.standard_normal(outputs).astype(np.float32),
        bias=rng.standard_normal(outputs).astype(np.float32),
        threshold=threshold,
        pad_value=per_channel if pad_value == "mixed" else np.array([pad_value], np.float32),
        window=window,
        group=group,
    )


SAME3 = Window.of(3, 3, pads=(1, 1, 1, 1))
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    **{
        f"{c} channels": {"channels": c, "outputs": 5, "window": SAME3, "size": (4, 3)}
        for c in (1, 20, 31, 32, 33, 96, 800)
    },
    **{
        f"{o} outputs": {"channels": 40, "outputs": o, "window": SAME3, "size": (4, 3)}
        for o in (1, 2, 31, 32, 33, 96, 100)
    },
    "1x1": {"channels": 33, "outputs": 7, "window": Window.of(1, 1), "size": (3, 4)},
    "2x5": {"channels": 33, "outputs": 7, "window": Window.of(2, 5, pads=(0, 2, 1, 2)), "size": (4, 5)},
    "11x11": {"channels": 3, "outputs": 4, "window": Window.of(11, 11, strides=(4, 4)), "size": (15, 16)},
    "strides": {"channels": 20, "outputs": 6, "window": Window.of(3, 3, strides=(2, 3)), "size": (8, 9)},
    "stride beyond the kernel": {
        "channels": 20,
        "outputs": 6,
        "window": Window.of(1, 1, strides=(3, 2)),
        "size": (7, 6),
    },
    "asymmetric pads": {"channels": 20, "outputs": 6, "window": Window.of(3, 3, pads=(2, 0, 1, 3)), "size": (5, 4)},
    "windows that see padding only": {
        "channels": 20,
        "outputs": 6,
        "window": Window.of(2, 2, pads=(3, 2, 2, 4)),
        "size": (2, 3),
        "pad_value": "mixed",
    },
    "dilations": {"channels": 33, "outputs": 6, "window": Window.of(3, 2, dilations=(2, 3)), "size": (6, 7)},
    "2 groups of 33": {"channels": 66, "outputs": 10, "window": SAME3, "size": (4, 3), "group": 2},
    "4 groups of 16": {"channels": 64, "outputs": 8, "window": SAME3, "size": (4, 3), "group": 4, "pad_value": "mixed"},
    "depthwise": {"channels": 34, "outputs": 34, "window": SAME3, "size": (4, 3), "group": 34},
    "3-D": {
        "channels": 33,
        "outputs": 6,
        "window": Window.of(2, 3, 2, strides=(1, 2, 1), pads=(1, 1, 0, 0, 2, 1), dilations=(2, 1, 1)),
        "size": (3, 4, 5),
        "pad_value": "mixed",
    },
    "all at once": {
        "channels": 66,
        "outputs": 9,
        "window": Window.of(3, 2, strides=(2, 1), pads=(1, 0, 2, 3), dilations=(1, 2)),
        "size": (5, 6),
        "group": 3,
        "batch": 3,
        "pad_value": "mixed",
    },
    "1-D": {
        "channels": 40,
        "outputs": 6,
        "window": Window.of(3, strides=(2,), pads=(0, 2), dilations=(2,)),
        "size": (9,),
    },
    "1-D, groups, one-padding": {
        "channels": 40,
        "outputs": 6,
        "window": Window.of(4, pads=(1, 2)),
        "size": (5,),
        "group": 2,
        "pad_value": "mixed",
    },
    "padding of +1": {"channels": 33, "outputs": 6, "window": SAME3, "size": (4, 3), "pad_value": 1},
    "padding of -1": {"channels": 33, "outputs": 6, "window": SAME3, "size": (4, 3), "pad_value": -1},
    "padding per channel": {"channels": 33, "outputs": 6, "window": SAME3, "size": (4, 3), "pad_value": "mixed"},
    "batch 1": {"channels": 20, "outputs": 6, "window": SAME3, "size": (4, 3), "batch": 1},
    "batch 5": {"channels": 20, "outputs": 6, "window": SAME3, "size": (4, 3), "batch": 5},
    "fully connected, a kernel over the whole input": {
        "channels": 50,
        "outputs": 33,
        "window": Window.of(4, 4),
        "size": (4, 4),
    },
    "fully connected, 1x1": {"channels": 800, "outputs": 500, "window": Window.of(1, 1), "size": (1, 1)},
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, rng: np.random.Generator) -> None:
    conv = convolution(rng, **CONVOLUTIONS[case])
    check(conv.model(), conv.bits(), conv.expected())


def test_the_reference_on_hand_worked_numbers() -> None:
    # Two channels, 1-D: x = (+ - +), (- - +); w = (+ +), (- +). Products of taps at positions 0 and 1:
    #   channel 0: +1 -1 = 0, -1 +1 = 0; channel 1: (-)(-) + (-)(+) = 0, (-)(-) + (+)(+) = 2. Sums: 0 and 2.
    # Zero padding of one at the begin adds the window (pad, x0): channel 0: +1, channel 1: -1; sum 0.
    # Padded with +1: channel 0: +1 +1, channel 1: -1 -1: 0. With -1: channel 0: -1 +1 = 0, channel 1: +1 -1 = 0.
    # Padded with +1 in channel 0 and -1 in channel 1: 2 + 0 = 2.
    x = np.array([[[1, -1, 1], [-1, -1, 1]]])
    w = np.array([[[1, 1], [-1, 1]]])
    window = Window.of(2, pads=(1, 0))
    for pad_value, first in [([0], 0), ([1], 0), ([-1], 0), ([1, -1], 2)]:
        acc = convolve(x, w, np.array(pad_value), window, 1)
        assert acc.tolist() == [[[first, 0, 2]]]
    assert pack(np.arange(33).reshape(1, 33) % 32 == 0).tolist() == [[1, 1]]


def test_thresholds_at_the_ends_of_int32_and_around_each_sum(rng: np.random.Generator) -> None:
    base = convolution(rng, 33, 8, SAME3, (4, 3))
    base.w[:] = base.w[:1]  # the same filter eight times, a threshold each
    acc = convolve(base.x, base.w[:1], base.pad_value, base.window, 1)
    value = int(acc.flat[0])
    thresholds = [INT32.min, INT32.min + 1, value - 1, value, value + 1, int(acc.max()) + 1, INT32.max - 1, INT32.max]
    conv = replace(base, threshold=np.array(thresholds, np.int32))
    always, *_, never = (conv.expected()[1][..., 0] >> np.uint32(bit) & 1 for bit in range(8))
    assert always.all() and not never.any()
    check(conv.model(), conv.bits(), conv.expected())


def test_scale_and_bias_are_two_roundings(rng: np.random.Generator) -> None:
    # acc = 3 and scale = 1/3: the product 3 * fl(1/3) rounds to 1, so with bias -1 the result is 0; a fused
    # multiply-add, which rounds once, gives 3 * fl(1/3) - 1 = 2**-25.
    conv = convolution(rng, 3, 1, Window.of(1, 1), (1, 1))
    conv = replace(conv, x=np.ones_like(conv.x), w=np.ones_like(conv.w))
    conv = replace(conv, scale=np.array([1 / 3], np.float32), bias=np.array([-1], np.float32))
    assert 3 * float(conv.scale[0]) - 1 == 2.0**-25
    assert conv.expected()[0].flatten().tolist() == [0, 0]
    check(conv.model(), conv.bits(), conv.expected())


def test_one_session_takes_any_batch(rng: np.random.Generator) -> None:
    conv = convolution(rng, 33, 6, SAME3, (4, 3), batch=1)
    session = stock_session(conv.model(), optimised=True)
    for batch in (1, 4, 2):
        more = replace(conv, x=rng.choice([-1, 1], (batch, 33, 4, 3)))
        for got, wanted in zip(session.run(None, {"X": more.bits()}), more.expected(), strict=True):
            assert equal(got, wanted)


def corruptions(conv: Convolution) -> dict[str, Convolution]:
    """The same node, each time with one thing wrong. Threshold 2 is a sum that occurs."""
    flipped, swapped, threshold = conv.w.copy(), conv.w[:, ::-1].copy(), conv.threshold.copy()
    flipped[2, 7, 1, 1] *= -1
    threshold[2] += 1
    scale, bias = conv.scale.copy(), conv.bias.copy()
    scale[3], bias[4] = np.nextafter(scale[3], np.float32(9)), np.nextafter(bias[4], np.float32(9))
    moved = replace(conv.window, pads=(0, 1, 2, 1))
    return {
        "a weight bit flipped": replace(conv, w=flipped),
        "channels swapped": replace(conv, w=swapped),
        "a threshold moved by one": replace(conv, threshold=threshold),
        "a scale in its last bit": replace(conv, scale=scale),
        "a bias in its last bit": replace(conv, bias=bias),
        "a pad moved": replace(conv, window=moved),
        "padding of +1": replace(conv, pad_value=np.array([1], np.float32)),
        "padding of -1": replace(conv, pad_value=np.array([-1], np.float32)),
    }


def test_the_comparison_catches_corruptions(rng: np.random.Generator) -> None:
    conv = convolution(rng, 33, 6, SAME3, (4, 3))
    conv.threshold[2] = convolve(conv.x, conv.w, conv.pad_value, conv.window, 1)[0, 2, 1, 1]
    expected = conv.expected()
    check(conv.model(), conv.bits(), expected)
    for what, corrupted in corruptions(conv).items():
        assert nowhere_equal(corrupted.model(), conv.bits(), expected), what
    flipped = conv.bits()
    flipped[0, 1, 1, 0] ^= np.uint32(1 << 31)
    assert nowhere_equal(conv.model(), flipped, expected)


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    rank, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))

    def per_axis(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    window = Window(per_axis(1, 4), per_axis(1, 3), per_axis(0, 3, 2 * rank), per_axis(1, 2))
    size = tuple(
        max(1, (k - 1) * d + 1 - p - q) + extra
        for k, d, p, q, extra in zip(
            window.kernel, window.dilations, window.pads[:rank], window.pads[rank:], per_axis(0, 4), strict=True
        )
    )
    return convolution(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        group * draw(st.integers(1, 70)),
        group * draw(st.integers(1, 12)),
        window,
        size,
        group=group,
        batch=draw(st.integers(1, 2)),
        pad_value=draw(st.sampled_from([0, 1, -1, "mixed"])),
    )


@settings(derandomize=True, max_examples=30, deadline=None, database=None)
@given(conv=convolutions())
def test_convolution_of_any_geometry(conv: Convolution) -> None:
    check(conv.model(), conv.bits(), conv.expected())
