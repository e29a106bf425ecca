"""QuantizeLevels and BinaryConvLevels, function bodies and kernels of every ISA, against plain numpy, bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnn_deploy.operators import bodies
from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import OPSET, VERSION
from bnn_deploy.runtime.session import library_info, load_session

FUNCTIONS = [ir.to_proto(function) for function in bodies.functions()]
ISAS = list(library_info().isas)


def one_node(
    op_type: str,
    x: NDArray[np.generic],
    constants: dict[str, NDArray[np.generic]],
    output: tuple[int, int],
    **attributes: object,
) -> bytes:
    """A checked model of one node; `output` is its element type and rank."""
    node = helper.make_node(op_type, ["X", *constants], ["Y"], name="layer7", domain="bnn_deploy", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("X", helper.np_dtype_to_tensor_dtype(x.dtype), ["N", *x.shape[1:]])],
        [helper.make_tensor_value_info("Y", output[0], [None] * output[1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("bnn_deploy", VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=FUNCTIONS, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def run_bodies(model: bytes, x: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """Place -> output."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return {
        "onnxruntime, not optimised": plain.run(None, {"X": x})[0],
        "onnxruntime, optimised": load_session(model, 1, kernels=False).run(None, {"X": x})[0],
        "ReferenceEvaluator": ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"X": x})[0],
    }


def run_kernels(model: bytes, x: NDArray[np.generic], threads: int = 1) -> dict[str, NDArray[np.generic]]:
    """ISA -> output; its own kernels ran, and no other's."""
    results = {}
    for isa in ISAS:
        before = library_info().calls
        results[isa] = load_session(model, threads, isa=isa).run(None, {"X": x})[0]
        after = library_info().calls
        assert {name for name in after if after[name] > before.get(name, 0)} == {isa}
    return results


def check(results: dict[str, NDArray[np.generic]], expected: NDArray[np.generic]) -> None:
    for place, got in results.items():
        assert got.dtype == expected.dtype and got.shape == expected.shape, place
        assert got.tobytes() == expected.tobytes(), f"{place}: {int((got != expected).sum())} of {got.size} differ"


def nowhere_equal(results: dict[str, NDArray[np.generic]], expected: NDArray[np.generic]) -> bool:
    return all(got.tobytes() != expected.tobytes() for got in results.values())


def planes(levels: NDArray[np.int64], bits: int) -> NDArray[np.uint32]:
    """Levels [N, C, spatial...] -> planes [N, spatial..., bits * words]."""
    last = np.moveaxis(levels, 1, -1)
    return np.concatenate([pack_bits(last >> j & 1 == 1) for j in range(bits)], axis=-1)


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


# --- BinaryConvLevels -------------------------------------------------------------------------------------------


@dataclass
class Conv:
    """One convolution of levels, its contents random."""

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    batch: int = 2
    bits: int = 2
    levels: NDArray[np.int64] = field(init=False, repr=False)
    w: NDArray[np.int64] = field(init=False, repr=False)
    scale: NDArray[np.float32] = field(init=False, repr=False)
    bias: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rank = len(self.kernel)
        self.strides, self.dilations = self.strides or (1,) * rank, self.dilations or (1,) * rank
        self.pads = self.pads or (0,) * (2 * rank)
        rng = np.random.default_rng(1)
        self.levels = rng.integers(0, 2**self.bits, (self.batch, self.channels, *self.size))
        self.w = rng.choice([-1, 1], (self.outputs, self.channels // self.group, *self.kernel))
        self.scale = rng.standard_normal(self.outputs).astype(np.float32)
        self.bias = rng.standard_normal(self.outputs).astype(np.float32)
        self.bias[0] = 0

    def attributes(self) -> dict[str, object]:
        return {
            "channels": self.channels,
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "group": self.group,
            "bits": self.bits,
        }

    def x(self) -> NDArray[np.uint32]:
        return planes(self.levels, self.bits)

    def model(self) -> bytes:
        constants = {"W": pack_bits(np.moveaxis(self.w > 0, 1, -1)), "scale": self.scale, "bias": self.bias}
        output = (TensorProto.FLOAT, self.levels.ndim)
        return one_node("BinaryConvLevels", self.x(), constants, output, **self.attributes())

    def sums(self) -> NDArray[np.int64]:
        rank = len(self.kernel)
        around = [(0, 0), (0, 0), *zip(self.pads[:rank], self.pads[rank:], strict=True)]
        padded = np.pad(self.levels, around)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        out = [(n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, self.strides, strict=True)]
        padded = padded.reshape(self.batch, self.group, -1, *padded.shape[2:])
        w = self.w.reshape(self.group, -1, *self.w.shape[1:])
        total = np.zeros((self.batch, self.group, w.shape[1], *out), np.int64)
        for tap in itertools.product(*map(range, self.kernel)):
            window = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, self.dilations, out, self.strides, strict=True)
            )
            taps = w[(slice(None), slice(None), slice(None), *tap)]
            total += np.einsum("ngc...,goc->ngo...", padded[(slice(None), slice(None), slice(None), *window)], taps)
        return total.reshape(self.batch, self.outputs, *out)

    def expected(self) -> NDArray[np.float32]:
        column = (-1, *[1] * len(self.kernel))
        return self.scale.reshape(column) * self.sums().astype(np.float32) + self.bias.reshape(column)


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


# --- malformed nodes --------------------------------------------------------------------------------------------


def conv_error(attributes: dict[str, object] | None = None, **constants: NDArray[np.generic]) -> str:
    conv = Conv(20, 8, (3, 3), (5, 5), batch=1)
    given = {"W": pack_bits(np.moveaxis(conv.w > 0, 1, -1)), "scale": conv.scale, "bias": conv.bias} | constants
    everything = {name: value for name, value in (conv.attributes() | (attributes or {})).items() if value is not None}
    return error("BinaryConvLevels", conv.x(), given, everything)


def error(
    op_type: str, x: NDArray[np.generic], constants: dict[str, NDArray[np.generic]], attributes: dict[str, object]
) -> str:
    """What a kernel says; without functions, so that no other error comes first."""
    node = helper.make_node(op_type, ["X", *constants], ["Y"], name="layer7", domain="bnn_deploy", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("X", helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)],
        [helper.make_empty_tensor_value_info("Y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("bnn_deploy", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    with pytest.raises(Exception, match="layer7") as caught:
        load_session(model.SerializeToString(), 1).run(None, {"X": x})
    return str(caught.value)


def test_the_base_cases_run() -> None:
    """Each test below changes one thing of what works here."""
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        conv_error()
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        quantize_error()


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"bits": None}, "attribute bits is missing: it is a required int"),
        ({"bits": 0}, "attribute bits = 0: it must be in 1 to 4"),
        ({"bits": 5}, "attribute bits = 5: it must be in 1 to 4"),
        ({"bits": 3}, "input X has shape [1, 5, 5, 2], but it must be [N, H, W, 3]"),
        ({"channels": 40}, "input W has shape [8, 3, 3, 1], but channels = 40, group = 1"),
        ({"group": 3}, "attribute group = 3 must divide channels = 20"),
        (
            {"kernel_shape": [1024, 1024], "channels": 20},
            "channels / group = 20 times 1048576 kernel taps and the highest level 3 must be at most 16777215",
        ),
        ({"pads": None}, "attribute pads is missing"),
    ],
)
def test_conv_attributes(attributes: dict[str, object], text: str) -> None:
    message = conv_error(attributes)
    assert "BinaryConvLevels 'layer7': " in message
    assert text in message


def test_conv_constants() -> None:
    assert "input scale has shape [7], but W has 8 output channels and needs [8]" in conv_error(
        scale=np.ones(7, np.float32)
    )
    assert "input bias has shape [7], but W has 8 output channels and needs [8]" in conv_error(
        bias=np.ones(7, np.float32)
    )
    tiny = np.full(8, 1e-45, np.float32)
    assert "input scale[0] is too small: it must be 0 or at least 2^-125 in magnitude" in conv_error(scale=tiny)
    bits = np.full((8, 3, 3, 1), 1 << 20, np.uint32)
    assert "input W has bits set beyond channel 19" in conv_error(W=bits)


def quantize_error(
    x: NDArray[np.float32] | None = None, thresholds: NDArray[np.float32] | None = None, bits: int | None = 2
) -> str:
    x = np.zeros((1, 4, 3), np.float32) if x is None else x
    thresholds = np.arange(12, dtype=np.float32).reshape(3, 4) if thresholds is None else thresholds
    return error("QuantizeLevels", x, {"thresholds": thresholds}, {} if bits is None else {"bits": bits})


def test_quantize_errors() -> None:
    ascending = np.arange(12, dtype=np.float32).reshape(3, 4)
    falling, nan = ascending.copy(), ascending.copy()
    falling[2, 1], nan[1, 3] = 4, np.nan
    cases = {
        "attribute bits is missing: it is a required int": quantize_error(bits=None),
        "attribute bits = 5: it must be in 1 to 4": quantize_error(bits=5),
        "input thresholds has shape [3, 4], but it must be [2^bits - 1, C] = [7, C]": quantize_error(bits=3),
        "input thresholds has shape [12], but it must be [2^bits - 1, C]": quantize_error(
            thresholds=ascending.reshape(-1)
        ),
        "input thresholds has shape [3, 0]": quantize_error(thresholds=np.zeros((3, 0), np.float32)),
        "input thresholds[2][1] = 4.000000, which is not at least the one before, 5.000000: "
        "the thresholds of a channel must ascend": quantize_error(thresholds=falling),
        "input thresholds[1][3] = nan": quantize_error(thresholds=nan),
        "input X has shape [1, 5, 3], but it must be [N, 4, 0 to 3 spatial dimensions], as thresholds has 4 columns": (
            quantize_error(np.zeros((1, 5, 3), np.float32))
        ),
        "input X has shape [4], but it must be [N, 4,": quantize_error(np.zeros(4, np.float32)),
    }
    for text, message in cases.items():
        assert "QuantizeLevels 'layer7': " in message
        assert text in message
