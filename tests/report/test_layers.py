"""The conversion report: it follows every change of the source, and has an advice for every reason."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.operators.contract import DOMAIN, OPERATORS
from bnn_deploy.passes.pipeline import fold, to_binary
from bnn_deploy.passes.reasons import InputShape, ModelInput
from bnn_deploy.report.canonical import Canonical
from bnn_deploy.report.layers import layer_reports
from support.graphs import batch_norm, eighths, parse, weights
from support.reports import SIGN_CONV, W, only_layer, report_on, with_weight

COUNTS = ("bits", "planes", "bases")
STATUSES = {"BinaryConvLevels": "binary, 2-bit activations", "BinaryConvBases": "binary, 2 x 2 bit planes"}
STATUSES |= dict.fromkeys(
    ("DirectConv", "DirectConvThreshold", "ImageConv", "ImageConvThreshold", "ReluLinear"), "float"
)
TWO_BASES = {"status": "binary, 1 x 2 bit planes", "becomes": "BinaryConvBases"}
NUMBERS = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}
WHERE = "a = GreaterOrEqual(w, zero)\nb = Where(a, one, minus)\ns = Sign(x)\ny = Conv<pads=[1,1,1,1]>(s, b)"

CHANGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pads": (SIGN_CONV.replace("1,1,1,1", "1,1,0,0"), {"w": W}, {"pads": (1, 1, 0, 0)}),
    "no pads": (
        SIGN_CONV.replace("1,1,1,1", "0,0,0,0"),
        {"w": W},
        {"padding": "none", "pads": (0, 0, 0, 0), "padded_by": None},
    ),
    "no pads attribute": (
        "s = Sign(x)\ny = Conv(s, w)",
        {"w": W},
        {"padding": "none", "pads": (0, 0, 0, 0), "padded_by": None},
    ),
    "alpha": (SIGN_CONV, {"w": W * np.float32(2)}, {"scale": (1.0, 1.0)}),
    "alpha per filter": (
        SIGN_CONV,
        {"w": W * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1)},
        {"scale": (0.5, 4.0)},
    ),
    "stride": (SIGN_CONV.replace("<", "<strides=[2,1],"), {"w": W}, {"strides": (2, 1)}),
    "dilation": (SIGN_CONV.replace("<", "<dilations=[2,2],"), {"w": W}, {"dilations": (2, 2)}),
    "groups": (SIGN_CONV.replace("<", "<group=2,"), {"w": W[:, :2].copy()}, {"group": 2}),
    "a bias": (SIGN_CONV.replace("w)", "w, c)"), {"w": W, "c": eighths(8)}, {"fused": ("bias",)}),
    "a zero": (
        SIGN_CONV,
        {"w": with_weight(0)},
        {
            "weights": "constant, two-valued but for 1 exact zero",
            "zeros": 1,
            **TWO_BASES,
        },
    ),
    "rounding": (
        SIGN_CONV,
        {"w": with_weight(0.50003)},
        {"weights": "constant, two-valued, spread 6e-05", "spread": pytest.approx(6e-5, rel=0.01), "scale": None},
    ),
    "another magnitude": (
        SIGN_CONV,
        {"w": with_weight(2)},
        {
            "weights": "constant, 3 values per filter",
            "spread": 0.75,
            "scale": None,
            **TWO_BASES,
        },
    ),
    "Sign of the weights": (
        WHERE.replace("a = GreaterOrEqual(w, zero)\nb = Where(a, one, minus)", "b = Sign(w)"),
        {"w": W},
        {"weights": "Sign(W), folded", "latent_zeros": 0, "scale": (1.0, 1.0)},
    ),
    "a latent zero": (
        WHERE,
        {"w": with_weight(0), **NUMBERS},
        {"weights": "Where(W >= 0, 1, -1), folded", "latent_zeros": 1, "scale": (1.0, 1.0)},
    ),
    "sign(0) = +1": (
        "a = GreaterOrEqual(x, zero)\ns = Where(a, one, minus)\ny = Conv<pads=[1,1,1,1]>(s, w)",
        {"w": W, **NUMBERS},
        {"activation": "Where(x >= 0, 1, -1)", "sign_of_zero": 1, "zero_cause": None},
    ),
    "sign(0) = -1": (
        "a = Greater(x, zero)\ns = Where(a, one, minus)\ny = Conv<pads=[1,1,1,1]>(s, w)",
        {"w": W, **NUMBERS},
        {"activation": "Where(x > 0, 1, -1)", "sign_of_zero": -1, "converted_sign_of_zero": -1, "zero_cause": None},
    ),
    "in front of the sign": (
        f"m = LeakyRelu(x)\nn = Neg(m)\n{SIGN_CONV.replace('(x)', '(n)')}",
        {"w": W},
        {"binarisation": ("LeakyReLU", "Neg")},
    ),
    "behind the layer": (
        "s = Sign(x)\nc = Conv<pads=[1,1,1,1]>(s, w)\ny = BatchNormalization(c, g, b, m, v)",
        {"w": W, **batch_norm(8)},
        {"name": "c", "fused": ("BatchNorm",)},
    ),
}


@pytest.mark.usefixtures("small_sums_pay")
@pytest.mark.parametrize("name", CHANGES)
def test_the_report_follows_the_source(name: str) -> None:
    """Change one thing in the source, and the report says so, and else the same."""
    text, constants, expected = CHANGES[name]
    before, after = asdict(only_layer(SIGN_CONV, w=W)), asdict(only_layer(text, **constants))
    if name == "rounding":  # the mean of the magnitudes
        expected = expected | {"scale": (0.5, pytest.approx(0.5, abs=1e-5))}
        assert after["scale"][1] > 0.5
    renamed = {"name": after["name"]} if after["name"] != before["name"] else {}
    assert {key: value for key, value in after.items() if value != before[key]} == expected | renamed


def test_a_batch_norm_written_as_mul_and_add_is_no_learned_threshold() -> None:
    constants = {"m": np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1), "t": eighths(4, 1, 1)}
    layer = only_layer("a = Mul(x, m)\nb = Add(a, t)\ns = Sign(b)\ny = Conv(s, w)", w=W, **constants)
    assert (layer.activation, layer.binarisation) == ("Sign(x)", ("Mul", "Add"))


def test_both_a_pad_before_the_sign_and_pads() -> None:
    layer = only_layer("p = Pad(x, pads)\ns = Sign(p)\ny = Conv<pads=[1,1,1,1]>(s, w)", w=W, pads=PADS)
    assert (layer.padding, layer.pads, layer.padded_by) == ("zero", (2, 2, 2, 2), "Conv and Pad before the sign")


def test_scale_times_the_magnitude_of_the_signs() -> None:
    layer = only_layer("s = Sign(x)\na = Mul(s, c)\ny = Conv(a, w)", w=W, c=np.float32(0.25))
    assert layer.scale == (0.125, 0.125)


# What stays float.

PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
REAL = np.random.default_rng(0).standard_normal((8, 4, 3, 3), np.float32)
LEFT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a first layer": ("y = Conv(x, w)", {"w": eighths(8, 4, 3, 3)}, "the model's real-valued input"),
    "real weights": ("s = Sign(x)\ny = Conv(s, w)", {"w": REAL}, "its weights are real-valued"),
    "NaN": ("s = Sign(x)\ny = Conv(s, w)", {"w": W * np.float32(np.nan)}, "holds NaN or infinity"),
    "exact zeros": (
        "s = Sign(x)\ny = Conv(s, w)",
        {"w": np.array([[1.0, -1, 1, 0], [-1, 1, 1, -1]]).reshape(2, 4, 1, 1)},
        "which one bit cannot hold",
    ),
    "weights that are data": (
        "a = ReduceMean<keepdims=1>(x, axis)\nb = Mul(a, a)\nc = Add(b, w)\ns = Sign(x)\ny = Conv(s, c)",
        {"w": W, "axis": np.array([0, 1, 2, 3])},
        "its weights are not constant",
    ),
    "a bias that is data": (
        "a = ReduceMean<keepdims=0>(x, axis)\nc = Add(a, b)\ns = Sign(x)\ny = Conv(s, w, c)",
        {"w": W, "b": eighths(8), "axis": np.array([0, 1, 2, 3])},
        "its bias is not constant",
    ),
    "borders cut off": (
        "s = Sign(x)\np = Pad(s, pads)\ny = Conv(p, w)",
        {"w": W, "pads": -PADS},
        "pads that are not constant, or negative",
    ),
    "padded channels": (
        "s = Sign(x)\np = Pad(s, pads)\ny = Conv(p, w)",
        {"w": weights(8, 5, 3, 3), "pads": np.array([0, 1, 0, 0, 0, 0, 0, 0])},
        "pads channels",
    ),
    "another number": (
        "s = Sign(x)\np = Pad(s, pads, c)\ny = Conv(p, w)",
        {"w": W, "pads": PADS, "c": np.float32(-2)},
        "times the magnitude of the signs",
    ),
    "zeros and ones": (
        "s = Sign(x)\np = Pad(s, pads, c)\ny = Conv<pads=[1,1,1,1]>(p, w)",
        {"w": W, "pads": PADS, "c": np.float32(1)},
        "which cannot be mixed",
    ),
    "zeros in some channels": (
        "p = Pad(x, pads)\na = Add(p, t)\ns = Sign(a)\ny = Conv(s, w)",
        {"w": W, "pads": PADS, "t": np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)},
        "is 0 in channel 0 and ±1 in others",
    ),
    "Gemm with alpha": (
        "f = Flatten(x)\ns = Sign(f)\ny = Gemm<alpha=2.0>(s, w)",
        {"w": weights(144, 5)},
        "a Gemm with alpha, beta or transA",
    ),
    "a stranger": (
        "s = Sign(x)\na = Mul(s, c)\ny = Conv(a, w)",
        {"w": W, "c": np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)},
        "multiplied by a number per channel",
    ),
    "output_shape": (
        "s = Sign(x)\ny = ConvTranspose<output_shape=[8, 8]>(s, w)",
        {"w": weights(4, 8, 3, 3)},
        "output_shape gives its pads",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_reasons(name: str) -> None:
    text, constants, reason = LEFT[name]
    constants = {key: np.float32(v) if np.asarray(v).dtype == np.float64 else v for key, v in constants.items()}
    layer = only_layer(text, **constants)
    assert layer.status == "float"
    assert layer.reason is not None and reason in layer.reason
    assert layer.advice is not None
    assert layer.binary_in_training == (name != "a first layer")
    assert (layer.activation is None) == (name == "a first layer")


def test_padding_of_what_stays_float() -> None:
    mixed, number = (only_layer(LEFT[name][0], **LEFT[name][1]) for name in ("zeros and ones", "another number"))
    assert (mixed.padding, mixed.pads, mixed.padded_by) == ("mixed", (2, 2, 2, 2), "Conv and Pad")
    assert (number.padding, number.pads, number.padded_by) == ("-2", (1, 1, 1, 1), "Pad")
    first = only_layer("p = Pad(x, pads, c)\ny = Conv(p, w)", w=eighths(8, 4, 3, 3), pads=PADS, c=np.float32(0.5))
    assert (first.padding, first.padded_by) == ("+0.5", "Pad")


def test_auto_pad_that_cannot_be_resolved() -> None:
    layer = only_layer('s = Sign(x)\ny = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(s, w)', ("N", 4, "H", "V"), w=W)
    assert (layer.padding, layer.status) == ("SAME_UPPER", "float")
    assert layer.advice is not None and "input_shape" in layer.advice


# Layers that are in the float graph only.


def test_equal_layers_are_computed_once() -> None:
    model = parse("s = Sign(x)\na = Conv(s, w)\nb = Conv(s, w)\ny = Add(a, b)", w=W)
    first, second = report_on(model)
    assert (first.same_as, second.same_as) == (None, "a")
    assert (second.name, second.status, second.becomes) == ("b", "binary", "BinaryConv")
    different = parse(
        "s = Sign(x)\na = Conv(s, w)\nb = Conv<pads=[0,0,0,0],strides=[1,1]>(s, u)\ny = Add(a, b)", w=W, u=-W
    )
    assert [layer.same_as for layer in report_on(different)] == [None, None]


def test_a_layer_that_cancels_out() -> None:
    """(Sign - S) + S with a convolution in S: its result is not used."""
    text = "s = Sign(x)\nc = Conv<pads=[1,1,1,1]>(x, u)\na = Sub(s, c)\nb = Add(a, c)\ny = Conv(b, w)"
    removed, conv = report_on(parse(text, u=eighths(4, 4, 3, 3), w=W))
    assert (removed.status, removed.becomes) == ("removed", None)
    assert removed.reason is not None and "cancels out" in removed.reason
    assert (conv.status, conv.activation) == ("binary", "straight-through trick over Sign(x)")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("reads_sign", [False, True])
def test_a_standard_layer_whose_weights_are_bits(transposed: bool, reads_sign: bool) -> None:
    model = parse("y = Conv(x, w)", w=W)
    fold(model)
    seen = Canonical()
    binary, left, _ = to_binary(model, look=seen.look)
    (conv,) = binary.graph
    makers = [ir.Node(DOMAIN, "UnpackWeights", [conv.inputs[1]])]
    if transposed:
        makers.append(ir.Node("", "Transpose", makers[0].outputs))
    binary.graph.insert_before(conv, makers)
    conv.replace_input_with(1, makers[-1].outputs[0])
    why = InputShape() if reads_sign else ModelInput()
    left = [replace(decline, why=why) for decline in left]
    (layer,) = layer_reports(model, seen, binary, left, "as-is", {})
    assert (layer.status, layer.becomes, layer.binary_in_training) == ("binary weights only", "Conv", reads_sign)
    assert (layer.reason is not None) == reads_sign, "a layer of signs should be more than that"


def test_operators_by_their_names() -> None:
    """A layer is what its operator in the converted model says."""
    model = parse("y = Conv(x, w)", w=W)
    fold(model)
    seen = Canonical()
    to_binary(model, look=seen.look)
    for operator in (name for name, row in OPERATORS.items() if row.is_layer):
        other = ir.Node(DOMAIN, operator, [ir.Value(name="x")], [ir.AttrInt64(n, 2) for n in COUNTS], name="y")
        graph = ir.Graph([], other.outputs, nodes=[other])
        (layer,) = layer_reports(model, seen, ir.Model(graph, ir_version=10), [], "as-is", {})
        assert (layer.status, layer.becomes) == (STATUSES.get(operator, "binary"), operator)
