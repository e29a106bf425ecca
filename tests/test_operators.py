"""The operators' function bodies against a plain numpy reference, exactly, wherever ONNX runs without our library."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnn_deploy.operators import bodies
from bnn_deploy.operators.contract import DOMAIN, OPSET, VERSION

Array = NDArray[Any]
FUNCTIONS = [ir.to_proto(function) for function in bodies.functions()]
INT32 = np.iinfo(np.int32)


# --- models and the places that run them ------------------------------------------------------------------------


def make_model(
    nodes: list[onnx.NodeProto], x: Array, initializers: dict[str, Array], outputs: dict[str, int], rank: int
) -> bytes:
    """A checked model with our functions, input X (dynamic batch) and `outputs` of one rank: name -> element type."""
    x_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("X", x_type, ["N", *x.shape[1:]])],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=FUNCTIONS, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True, data_prop=True)
    return model.SerializeToString()


def stock_session(model: bytes, optimised: bool) -> ort.InferenceSession:
    """A session without our library."""
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_everywhere(model: bytes, x: Array) -> dict[str, list[Array]]:
    """Place -> outputs."""
    return {
        "onnxruntime, not optimised": stock_session(model, optimised=False).run(None, {"X": x}),
        "onnxruntime, optimised": stock_session(model, optimised=True).run(None, {"X": x}),
        "reference evaluator": ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"X": x}),
    }


def equal(got: Array, expected: Array) -> bool:
    """Same type, same shape, same bytes."""
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


def check(model: bytes, x: Array, expected: list[Array]) -> None:
    for place, outputs in run_everywhere(model, x).items():
        for got, wanted in zip(outputs, expected, strict=True):
            assert equal(got, wanted), f"{place}: {got.dtype}{got.shape}, wanted {wanted.dtype}{wanted.shape}"


def nowhere_equal(model: bytes, x: Array, expected: list[Array]) -> bool:
    """No place gives the expected outputs: the corruption was noticed in each."""
    return all(
        not all(equal(got, wanted) for got, wanted in zip(outputs, expected, strict=True))
        for outputs in run_everywhere(model, x).values()
    )


# --- the reference: loops over integers, written from the contract alone ----------------------------------------


def pack(values: Array) -> Array:
    """Booleans [A, C, spatial...] -> uint32 [A, spatial..., ceil(C/32)]: channel c is bit c % 32 of word c // 32."""
    a, channels, *spatial = values.shape
    packed = np.zeros((a, *spatial, math.ceil(channels / 32)), np.uint32)
    for c in range(channels):
        packed[..., c // 32] |= values[:, c].astype(np.uint32) << np.uint32(c % 32)
    return packed


@dataclass(frozen=True)
class Window:
    """Where a kernel goes over an input."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(
        cls,
        *kernel: int,
        strides: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
    ) -> Window:
        ones = (1,) * len(kernel)
        return cls(kernel, strides or ones, pads or (0,) * 2 * len(kernel), dilations or ones)

    def attributes(self) -> dict[str, list[int]]:
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
        }

    def outputs(self, size: tuple[int, ...], ceil: bool = False) -> list[int]:
        """The output's spatial size, as ONNX defines it for Conv and MaxPool."""
        result = []
        rank = len(size)
        for i, extent in enumerate(size):
            free = extent + self.pads[i] + self.pads[i + rank] - (self.kernel[i] - 1) * self.dilations[i] - 1
            count = (-(-free // self.strides[i]) if ceil else free // self.strides[i]) + 1
            if ceil and (count - 1) * self.strides[i] >= extent + self.pads[i]:
                count -= 1  # the last window would start in the end padding
            result.append(count)
        return result

    def taps(self, position: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(tap, coordinate in the unpadded input) for each tap of the window at an output position."""
        begins = self.pads[: len(self.kernel)]
        axes = list(zip(position, self.strides, self.dilations, begins, strict=True))
        return [
            (tap, tuple(p * s + t * d - b for t, (p, s, d, b) in zip(tap, axes, strict=True)))
            for tap in itertools.product(*map(range, self.kernel))
        ]


def inside(coordinate: tuple[int, ...], size: tuple[int, ...]) -> bool:
    return all(0 <= c < extent for c, extent in zip(coordinate, size, strict=True))


def convolve(x: Array, w: Array, pad_value: Array, window: Window, group: int) -> Array:
    """x [N, C, spatial...], w [O, C/group, kernel...] of ±1 -> int64 [N, O, spatial'...], one tap at a time."""
    n, channels, *size = x.shape
    padding = np.broadcast_to(pad_value, (channels,)).astype(np.int64)
    positions = window.outputs(tuple(size))
    acc = np.zeros((n, len(w), *positions), np.int64)
    for position in np.ndindex(*positions):
        for tap, coordinate in window.taps(position):
            held = x[:, :, *coordinate] if inside(coordinate, tuple(size)) else np.tile(padding, (n, 1))
            for g in range(group):
                c = slice(g * channels // group, (g + 1) * channels // group)
                o = slice(g * len(w) // group, (g + 1) * len(w) // group)
                acc[:, o, *position] += held[:, c] @ w[o, :, *tap].T
    return acc


# --- BinaryConv and BinaryConvThreshold -------------------------------------------------------------------------


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


# --- Binarize ---------------------------------------------------------------------------------------------------


def binarize_model(x: Array, threshold: Array) -> bytes:
    node = helper.make_node("Binarize", ["X", "t"], ["Y"], domain="bnn_deploy")
    return make_model([node], x, {"t": threshold}, {"Y": TensorProto.UINT32}, max(2, x.ndim))


def binarized(x: Array, threshold: Array) -> Array:
    """X >= threshold one number at a time."""
    result = np.zeros(x.shape, bool)
    for index in np.ndindex(x.shape):
        result[index] = float(x[index]) >= float(threshold[index[1]])
    return pack(result)


@pytest.mark.parametrize("spatial", [(), (3,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize("channels", [1, 20, 31, 32, 33, 96, 800])
def test_binarize(channels: int, spatial: tuple[int, ...], rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, channels, *spatial)).astype(np.float32)
    threshold = rng.standard_normal(channels).astype(np.float32)
    x[0, ...] = np.where(rng.random(x[0].shape) < 0.2, threshold.reshape(-1, *[1] * len(spatial)), x[0])  # ties
    model, expected = binarize_model(x, threshold), binarized(x, threshold)
    check(model, x, [expected])
    moved = threshold.copy()
    moved[-1] = np.nextafter(x[0, -1].max(), np.float32(np.inf))  # above every number of the last channel of sample 0
    if (x[0, -1] >= threshold[-1]).any():
        assert nowhere_equal(binarize_model(x, moved), x, [expected])


def test_binarize_of_special_numbers() -> None:
    tiny = np.float32(1e-45)  # the smallest subnormal
    numbers = np.array(
        [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, 1.0, np.nextafter(np.float32(1), 0), 3e38],
        np.float32,
    )
    x = np.tile(numbers, (1, len(numbers), 1))  # every number against every number as the threshold
    expected = binarized(x, numbers)
    as_bits = (
        expected[0, :, 0][None, :] >> np.arange(len(numbers), dtype=np.uint32)[:, None]
    ) & 1  # [threshold, number]
    assert as_bits[4].tolist() == [0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1]  # threshold 0: NaN gives 0, -0 gives 1
    assert as_bits[3].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]  # threshold -inf: always, but for NaN
    assert not as_bits[0].any()  # threshold NaN: never
    check(binarize_model(x, numbers), x, [expected])


# --- BinaryMaxPool ----------------------------------------------------------------------------------------------


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
                result[:, :, *position] |= x[:, :, *coordinate]
    return result


POOLS: dict[str, tuple[Window, tuple[int, ...]]] = {
    "2/2": (Window.of(2, 2, strides=(2, 2)), (5, 6)),
    "3/2 pad 1": (Window.of(3, 3, strides=(2, 2), pads=(1, 1, 1, 1)), (6, 7)),
    "3/2": (Window.of(3, 3, strides=(2, 2)), (6, 8)),
    "asymmetric pads": (Window.of(3, 3, strides=(2, 1), pads=(0, 2, 1, 0)), (5, 4)),
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


# --- the functions themselves -----------------------------------------------------------------------------------

CONV_ATTRIBUTES = ["channels", "kernel_shape", "strides", "pads", "dilations", "group"]
SIGNATURES = {
    "Binarize": (["X", "threshold"], []),
    "BinarizeAbsMean": (["X", "threshold", "scale", "shift"], []),
    "BinaryConv": (["X", "W", "scale", "bias", "pad_value"], CONV_ATTRIBUTES),
    "BinaryConvScaled": (["X", "W", "scale", "bias", "pad_value", "factor"], CONV_ATTRIBUTES),
    "BinaryConvThreshold": (["X", "W", "threshold", "pad_value"], CONV_ATTRIBUTES),
    "BinarizeChannelsLast": (["X", "threshold"], []),
    "BinarizeQuantized": (["X", "threshold"], []),
    "BinaryConvResidual": (["X", "W", "scale", "bias", "pad_value", "residual", "threshold"], CONV_ATTRIBUTES),
    "BinaryMaxPool": (["X"], ["kernel_shape", "strides", "pads", "dilations", "ceil_mode"]),
    "UnpackWeights": (["W", "scale"], ["shape"]),
    "QuantizeLevels": (["X", "thresholds"], ["bits"]),
    "BinaryConvLevels": (["X", "W", "scale", "bias"], [*CONV_ATTRIBUTES, "bits"]),
}


def test_names_inputs_and_attributes() -> None:
    assert (DOMAIN, VERSION) == ("bnn_deploy", 1)
    found = {f.name: (list(f.input), list(f.attribute)) for f in FUNCTIONS}
    assert found == SIGNATURES
    for function in FUNCTIONS:
        assert function.domain == "bnn_deploy"
        outputs = {"BinaryConvResidual": ["Y", "bits"], "BinarizeAbsMean": ["bits", "A"]}.get(function.name, ["Y"])
        assert list(function.output) == outputs
        assert not function.attribute_proto  # no defaults: the reference evaluator does not apply them


def foreign(function: onnx.FunctionProto) -> list[str]:
    """What in a body isn't a standard, current operator of the opset that it imports."""
    if [(o.domain, o.version) for o in function.opset_import] != [("", OPSET)]:
        return [f"imports {function.opset_import}"]
    nodes = list(function.node)
    for node in nodes:  # grows while it runs: the bodies of If and Loop
        nodes.extend(n for a in node.attribute for g in [a.g, *a.graphs] for n in g.node)
    return [
        f"{n.domain}::{n.op_type}"
        for n in nodes
        if n.domain not in ("", "ai.onnx")
        or not onnx.defs.has(n.op_type)
        or onnx.defs.get_schema(n.op_type, OPSET).deprecated
    ]


def test_bodies_use_standard_operators_only() -> None:
    for function in FUNCTIONS:
        assert len(function.node) > 3
        assert foreign(function) == []
    bad = onnx.FunctionProto()
    bad.CopyFrom(FUNCTIONS[1])
    bad.node.append(helper.make_node("FusedConv", ["Y"], ["Z"], domain="com.microsoft"))
    assert foreign(bad) == ["com.microsoft::FusedConv"]
