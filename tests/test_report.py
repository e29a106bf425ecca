"""The conversion report: every field's every value, an advice for every reason, and the files that it is written to."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from conftest import Converted
from graphs import Array, assert_same, batch_norm, eighths, equal, parse, run_binary, run_float, samples, weights
from networks import mnist
from test_dialects import BRANCHES, PADDINGS, SIGNS, WEIGHTS, matrix
from torch import Tensor, nn

from bnn_deploy import passes
from bnn_deploy.architectures.birealnet18 import BiRealBlock
from bnn_deploy.cli import main
from bnn_deploy.cli.console import TIMES
from bnn_deploy.conversion import convert
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.operators.contract import DOMAIN, OPERATORS
from bnn_deploy.passes.advice import UNKNOWN, advice
from bnn_deploy.passes.lower.audit_leftovers import LAYER_OPERATORS
from bnn_deploy.passes.pipeline import fold, to_binary
from bnn_deploy.report.canonical import Canonical
from bnn_deploy.report.layers import layer_reports
from bnn_deploy.report.summary import LayerReport

W = weights(8, 4, 3, 3)


def report_on(model: ir.Model) -> tuple[LayerReport, ...]:
    """The layers of a float model, each of which is reported on once."""
    fold(model)
    seen = Canonical()
    binary, left, _ = to_binary(model, look=seen.look)
    layers = layer_reports(model, seen, binary, left, "as-is", {})
    names = [node.name for node in model.graph if node.op_type in LAYER_OPERATORS]
    assert [layer.name for layer in layers] == names
    for layer in layers:
        assert (layer.reason is None) == (layer.status not in ("float", "removed"))
        assert (layer.reason is None) == (layer.advice is None)
        assert layer.advice != UNKNOWN
    json.dumps([asdict(layer) for layer in layers], allow_nan=False)
    return layers


def only_layer(nodes: str, x: Any = ("N", 4, 6, 6), **constants: Array) -> LayerReport:
    """The report on a model with one layer."""
    (layer,) = report_on(parse(nodes, x, **constants))
    return layer


# The networks that come along.


def test_lenet5(lenet5: Converted) -> None:
    first, conv, linear, last = lenet5.conversion.layers
    assert [layer.name for layer in (first, conv, linear, last)] == ["conv1", "bin_conv2.conv", "bin_ip1.linear", "ip2"]
    assert [layer.status for layer in (first, conv, linear, last)] == ["float", "binary", "binary", "float"]
    assert [layer.shape for layer in (first, conv, linear, last)] == [
        f"5{TIMES}5 1→20",
        f"5{TIMES}5 20→50",
        "800→500",
        "500→10",
    ]
    assert first.advice is not None and "first layers stay float" in first.advice
    assert last.advice is not None and "last layers stay float" in last.advice
    assert first.weights == last.weights == "constant, real-valued"
    assert first.activation is None and first.scale is None
    for layer in (conv, linear):
        assert (layer.activation, layer.sign_of_zero, layer.converted_sign_of_zero) == ("Sign(x)", 0, 1)
        assert (layer.weights, layer.zeros, layer.latent_zeros) == ("latent, binarised by xnor-centred", 0, 0)
        assert layer.scale is not None and 0 < layer.scale[0] < layer.scale[1] < 1
        assert layer.padding == "none"
    assert conv.binarisation == ("BatchNorm", "ReLU", "MaxPool", "BatchNorm")
    assert conv.fused == ("bias", "ReLU", "MaxPool", "BatchNorm", "sign")
    assert (conv.becomes, linear.becomes) == ("BinaryConvThreshold", "BinaryConv")
    assert linear.fused == ("bias",) and linear.binarisation == ()
    assert lenet5.conversion.binary_layers == tuple(x.name for x in lenet5.conversion.layers if x.status == "binary")


def test_nin(nin: Converted) -> None:
    layers = {layer.name: layer for layer in nin.conversion.layers}
    assert len(layers) == 9
    assert [name for name, layer in layers.items() if layer.status == "float"] == ["xnor.0", "xnor.13"]
    assert [name for name, layer in layers.items() if layer.padding == "zero"] == [
        "xnor.0",
        "xnor.6.conv",
        "xnor.10.conv",
    ]
    assert layers["xnor.6.conv"].pads == (2, 2, 2, 2)
    assert layers["xnor.13"].fused == ("BatchNorm",), "a BatchNorm in front of a float layer goes into its weights"
    assert layers["xnor.4.conv"].fused == ("bias", "ReLU", "MaxPool", "BatchNorm", "sign")


class BiReal(nn.Module):
    """Two blocks of Bi-Real Net between float layers."""

    input_shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, bias=False)
        self.blocks = nn.Sequential(BiRealBlock(32, 32, 1), BiRealBlock(32, 64, 2))
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.first(x))
        return self.last(x.mean((2, 3)))


def test_bi_real_blocks(tmp_path: Path, seeded_torch: None) -> None:
    result = convert(BiReal().eval(), tmp_path / "m.onnx")
    layers = {layer.name: layer for layer in result.layers}
    assert len(layers) == 5
    one, two = layers["blocks.0.binary_conv"], layers["blocks.1.binary_conv"]
    assert (one.becomes, two.becomes) == ("BinaryConvResidual", "BinaryConv")
    assert one.fused == ("BatchNorm", "residual Add", "sign")
    assert two.fused == ("BatchNorm",)
    assert two.shape == f"3{TIMES}3 32→64 s2"
    assert one.weights == "mean|W| * Sign(W), folded"
    assert one.scale is not None and one.scale[0] < one.scale[1] < 0.001
    downsample = layers["blocks.1.downsample.1"]
    assert downsample.reason == "its input is real-valued: the output of AveragePool, not of a sign"
    assert downsample.advice is not None and "put a sign in front of it" in downsample.advice
    assert not any(layer.binary_in_training for layer in result.layers)


# Signs, weights, padding, and what follows, in all the forms of the catalogue.

ACTIVATIONS = {
    "A1 Sign": "Sign(x)",
    "A2 Sign, Add, Sign": "Sign(Sign(x) + 0.1)",
    "A3 Where(x > 0)": "Where(x > 0, 1, -1)",
    "A3 2 * Cast(x >= 0) - 1": "Cast(x >= 0) * 2 - 1",
    "A3 the same times a number": "(Cast(x > 0) * 2 - 1) * 0.25",
    "A3 1 - 2 * Cast(x < 0)": "1 - Cast(x < 0) * 2",
    "A3 Where(0 < x), ones of x's shape": "Where(0 < x, 1, -1)",
    "A4 (Sign - Clip) + Clip, computed twice": "straight-through trick over Sign(x)",
    "A4 x + (Sign - x)": "straight-through trick over Sign(x)",
    "A4 with Bi-Real Net's polynomial": "straight-through trick over Sign(x)",
    "A4 over A3": "straight-through trick over Where(x >= 0, 1, -1)",
    "A5 channels last": "Where(x >= 0, 1, -1)",
    "A6 Add [1, C, 1, 1]": "Sign(x + t), learned threshold",
    "A6 Sub Expand": "Where(x - t > 0, 1, -1), learned threshold",
    "A6 compared with [1, C, 1, 1]": "Where(x >= t, 1, -1), learned threshold",
    "A7 BipolarQuant": "BipolarQuant(x) * 0.25",
}


@pytest.mark.parametrize("sign", ACTIVATIONS)
def test_signs(sign: str) -> None:
    layers = report_on(matrix(sign, "W1 constant", 1 / 16))
    zero = SIGNS[sign][1]
    for layer in layers[::2]:  # the first convolution of each branch
        assert layer.activation is not None
        assert layer.activation.replace("Pad(x)", "x") == ACTIVATIONS[sign]
        assert (layer.sign_of_zero, layer.converted_sign_of_zero) == (zero, zero or 1)
        assert layer.status == "binary"


def test_a_linear_layers_bias_is_no_learned_threshold() -> None:
    model = parse(
        "s = Sign(x)\na = MatMul(s, u)\nb = Add(a, t)\nr = Sign(b)\ny = MatMul(r, v)",
        ("N", 4),
        u=weights(4, 8),
        v=weights(8, 3),
        t=eighths(8),
    )
    assert [layer.activation for layer in report_on(model)] == ["Sign(x)", "Sign(x)"]


WEIGHT_TEXTS = {
    "W1 constant": "constant, two-valued",
    "W2 Sign": "Sign(W), folded",
    "W2 compared": "Where(W >= 0, 1, -1), folded",
    "W3 mean": "Sign(W) * mean|W|, folded",
    "W3 learned": "Sign(W) * c, folded",
    "W4 straight through": "straight-through trick over mean|W| * Sign(W), folded",
    "W5 transposed": "Sign(W), folded",
    "W7 BipolarQuant": "BipolarQuant(W) * c, folded",
}


def test_weights() -> None:
    assert set(WEIGHT_TEXTS) == set(WEIGHTS)
    for weight, text in WEIGHT_TEXTS.items():
        layer = report_on(matrix("A1 Sign", weight, 1 / 16))[0]
        assert layer.weights == text
        assert layer.latent_zeros == (None if weight == "W1 constant" else 0)


EXPECTED_PADDINGS = {
    "none": ("none", (0, 0, 0, 0), None),
    "zero": ("zero", (1, 1, 1, 1), "Conv"),
    "zero, asymmetric": ("zero", (0, 0, 1, 2), "Conv"),
    "Pad 0, and zero": ("zero", (1, 2, 2, 1), "Conv and Pad"),
    "Pad -1": ("-1", (1, 1, 1, 1), "Pad"),
    "Pad +1, asymmetric": ("+1", (0, 1, 2, 1), "Pad"),
}
FUSED = {
    "bias": ("bias", "sign"),
    "BatchNorm, some gammas negative": ("bias", "BatchNorm", "sign"),
    "ReLU": ("bias", "ReLU", "Sub", "sign"),
    "PReLU": ("bias", "PReLU", "Add", "sign"),
    "MaxPool": ("bias", "MaxPool", "sign"),
}


@pytest.mark.parametrize(
    ("sign", "border"), [("A1 Sign", "zero"), ("A3 Where(x >= 0)", "+1"), ("A3 Where(x > 0)", "-1")]
)
def test_padding_and_what_follows(sign: str, border: str) -> None:
    expected = EXPECTED_PADDINGS | {"Pad before the sign": (border, (1, 1, 1, 1), "Pad before the sign")}
    assert set(expected) == set(PADDINGS)
    layers = report_on(matrix(sign, "W1 constant", 1 / 16))[::2]
    for (padding, follower), layer in zip(BRANCHES, layers, strict=True):
        assert (layer.padding, layer.pads, layer.padded_by) == expected[padding]
        assert layer.asymmetric == (padding in ("zero, asymmetric", "Pad 0, and zero", "Pad +1, asymmetric"))
        assert layer.fused == FUSED[follower], (padding, follower)


SIGN_CONV = "s = Sign(x)\ny = Conv<pads=[1,1,1,1]>(s, w)"


def with_weight(value: float, index: tuple[int, ...] = (2, 1, 0, 0), source: Array = W) -> Array:
    """The weights with one of them changed."""
    changed = source.copy()
    changed[index] = value
    return changed


STAYS = {"status": "float", "becomes": "Conv", "converted_sign_of_zero": 0, "binary_in_training": True}
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
            "reason": "filter 2 has 1 weights that are exactly 0, which one bit cannot hold",
            "advice": advice("exactly 0, which one bit cannot hold"),
            **STAYS,
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
            "weights": "constant, real-valued",
            "spread": 0.75,
            "scale": None,
            "reason": "its weights are real-valued: filter 2 has |w| from 0.5 to 2",
            "advice": advice("its weights are real-valued"),
            **STAYS,
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
        {"activation": "Where(x >= 0, 1, -1)", "sign_of_zero": 1},
    ),
    "sign(0) = -1": (
        "a = Greater(x, zero)\ns = Where(a, one, minus)\ny = Conv<pads=[1,1,1,1]>(s, w)",
        {"w": W, **NUMBERS},
        {"activation": "Where(x > 0, 1, -1)", "sign_of_zero": -1, "converted_sign_of_zero": -1},
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
LEFT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a first layer": ("y = Conv(x, w)", {"w": eighths(8, 4, 3, 3)}, "the model's real-valued input"),
    "real weights": ("s = Sign(x)\ny = Conv(s, w)", {"w": eighths(8, 4, 3, 3) + 2}, "its weights are real-valued"),
    "NaN": ("s = Sign(x)\ny = Conv(s, w)", {"w": W * np.float32(np.nan)}, "holds NaN or infinity"),
    "exact zeros": ("s = Sign(x)\ny = Conv(s, w)", {"w": W * (np.arange(3) > 0)}, "which one bit cannot hold"),
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
    "reflected borders": (
        's = Sign(x)\np = Pad<mode="reflect">(s, pads)\ny = Conv(p, w)',
        {"w": W, "pads": PADS},
        "another mode than constant",
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
        "Mul stands between the sign and it",
    ),
    "ConvTranspose": ("s = Sign(x)\ny = ConvTranspose(s, w)", {"w": weights(4, 8, 3, 3)}, "has no binary operator"),
}


@pytest.mark.parametrize("name", LEFT)
def test_reasons(name: str) -> None:
    text, constants, reason = LEFT[name]
    constants = {key: np.float32(v) if np.asarray(v).dtype == np.float64 else v for key, v in constants.items()}
    layer = only_layer(text, **constants)
    assert layer.status == "float"
    assert layer.reason is not None and reason in layer.reason
    assert layer.advice == advice(layer.reason, last=True) != UNKNOWN
    assert layer.binary_in_training == (name != "a first layer")
    assert (layer.activation is None) == (name == "a first layer")


def test_padding_of_what_stays_float() -> None:
    mixed, number = (only_layer(LEFT[name][0], **LEFT[name][1]) for name in ("zeros and ones", "another number"))
    assert (mixed.padding, mixed.pads, mixed.padded_by) == ("mixed", (2, 2, 2, 2), "Conv and Pad")
    assert (number.padding, number.pads, number.padded_by) == ("-2", (1, 1, 1, 1), "Pad")
    first = only_layer("p = Pad(x, pads, c)\ny = Conv(p, w)", w=eighths(8, 4, 3, 3), pads=PADS, c=np.float32(0.5))
    assert (first.padding, first.padded_by) == ("+0.5", "Pad")


def test_auto_pad_that_cannot_be_resolved() -> None:
    layer = only_layer('s = Sign(x)\ny = Conv<auto_pad="SAME_UPPER">(s, w)', ("N", 4, "H", "V"), w=W)
    assert (layer.padding, layer.status) == ("SAME_UPPER", "float")
    assert layer.advice is not None and "--input-shape" in layer.advice


def _sample(node: ast.expr) -> Iterator[str]:
    """What a string in the source may look like, with a 7 for every value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _sample(node.body)
        yield from _sample(node.orelse)


def reasons() -> set[str]:
    """Every reason in the source of the passes for which a layer can stay float."""
    found: set[str] = set()
    folder = Path(passes.__file__).parent
    for path in (*folder.glob("lower_*.py"), folder / "hoist_pad.py", folder / "audit_leftovers.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            texts: list[ast.expr] = []
            if isinstance(node, ast.Return) and node.value is not None:
                texts = [node.value]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "NotTwoValuedError",
                "result.decline",
                "Decline",
            ):
                texts = node.args
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).split(".")[-1] in (
                "problem",
                "reason",
                "metadata_props[REFUSED]",
            ):
                texts = [node.value]
            found |= {text for part in texts for text in _sample(part) if len(text) > 12}
    return found


def test_every_reason_has_an_advice() -> None:
    known = reasons()
    assert len(known) >= 27
    assert {text for text in known if advice(text) == UNKNOWN} == set()
    assert advice("the moon is full") == UNKNOWN


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
    left = [replace(decline, has_sign_input=reads_sign) for decline in left]
    (layer,) = layer_reports(model, seen, binary, left, "as-is", {})
    assert (layer.status, layer.becomes, layer.binary_in_training) == ("binary weights only", "Conv", reads_sign)
    assert (layer.reason is not None) == reads_sign, "a layer of signs should be more than that"


def test_operators_by_their_names() -> None:
    """A layer is what its operator in the converted model says."""
    model = parse("y = Conv(x, w)", w=W)
    fold(model)
    seen = Canonical()
    to_binary(model, look=seen.look)
    for operator in OPERATORS:
        other = ir.Node(DOMAIN, operator, [ir.Value(name="x")], [ir.AttrInt64("bits", 2)], name="y")
        graph = ir.Graph([], other.outputs, nodes=[other])
        (layer,) = layer_reports(model, seen, ir.Model(graph, ir_version=10), [], "as-is", {})
        status = "binary, 2-bit activations" if operator == "BinaryConvLevels" else "binary"
        assert (layer.status, layer.becomes) == (status, operator)


# Less usual graphs: exact, or with a reason.


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize(("group", "dilation"), [(1, 2), (2, 1), (4, 2)])
def test_grouped_and_dilated_convolutions(group: int, dilation: int, pads: int) -> None:
    text = (
        f"s = Sign(x)\nc = Conv<group={group}, dilations=[{dilation},{dilation}], pads=[{pads},{pads},{pads},{pads}]>"
        "(s, w)\nn = BatchNormalization(c, g, b, m, v)\nt = Sign(n)\ny = Conv(t, last)"
    )
    model = parse(
        text,
        ("N", 4, 9, 9),
        w=weights(8, 4 // group, 3, 3),
        last=weights(3, 8, 1, 1),
        **batch_norm(8, gamma=[1, -1] * 4),
    )
    assert_same(model, to_binary(model)[0])
    layer = report_on(model)[0]
    assert (layer.group, layer.dilations, layer.status) == (group, (dilation, dilation), "binary")
    assert layer.shape == f"3{TIMES}3 4→8" + f" d{dilation}" * (dilation > 1) + f" g{group}" * (group > 1)


CONCAT = {
    "of signs": "s = Sign(x)\nb = Neg(x)\nt = Sign(b)\na = Concat<axis=1>(s, t)",
    "behind the advice": "b = Neg(x)\nc = Concat<axis=1>(x, b)\na = Sign(c)",
    "of a sign and something real": "s = Sign(x)\nb = Neg(x)\na = Concat<axis=1>(s, b)",
}


def test_a_concat_of_signs() -> None:
    """Declined, with an advice that works: the sign of the Concat is the same, and becomes bits."""
    # The bias keeps sums away from exact zeros.
    constants = {"w": weights(8, 8, 3, 3), "k": np.full(8, 1 / 16, np.float32), "u": weights(3, 8, 1, 1)}
    models = [parse(f"{text}\nd = Conv(a, w, k)\ne = Sign(d)\ny = Conv(e, u)", **constants) for text in CONCAT.values()]
    signs, advised, mixed = (report_on(model)[0] for model in models)
    assert (signs.status, signs.binary_in_training, signs.activation) == ("float", True, "Sign(x)")
    assert signs.reason == "Concat stands between the sign and it, which no pass looks through"
    assert signs.advice is not None and "take the sign behind that operator" in signs.advice
    assert (mixed.status, mixed.binary_in_training, mixed.activation) == ("float", False, None)
    assert mixed.reason == "its input is real-valued: the output of Concat, not of a sign"
    assert advised.status == "binary"
    assert equal(run_float(models[0], samples(models[0])), run_float(models[1], samples(models[1])))
    for model in models:
        x = samples(model)
        assert equal(run_binary(to_binary(model)[0], x, True), run_float(model, x))


def test_one_sign_to_many_consumers() -> None:
    text = (
        "s = Sign(x)\na = Conv(s, w)\nb = Conv(s, u)\nf = Flatten(s)\nc = MatMul(f, v)\n"
        "y = Add(a, b)\nz = ReduceMean<keepdims=0>(s, axis)"
    )
    model = parse(
        text,
        outputs=("y", "z", "c"),
        w=W,
        u=weights(8, 4, 3, 3, seed=1),
        v=weights(144, 5),
        axis=np.array([2, 3]),
    )
    assert_same(model, to_binary(model)[0])
    assert [layer.status for layer in report_on(model)] == ["binary"] * 3


def test_an_average_pool_behind_a_binary_layer() -> None:
    pool = "AveragePool<kernel_shape=[2,2],strides=[2,2]>"
    text = f"s = Sign(x)\na = Conv(s, w, c)\np = {pool}(a)\nt = Sign(p)\ny = Conv(t, u)"
    # The bias keeps averages away from exact zeros.
    model = parse(text, w=W, u=weights(3, 8, 1, 1), c=np.full(8, 1 / 16, np.float32))
    assert_same(model, to_binary(model)[0])
    first, second = report_on(model)
    assert (first.becomes, first.fused, second.status, second.binarisation) == ("BinaryConv", ("bias",), "binary", ())


# The files and the command line.


def small() -> ir.Model:
    """A binary layer, and one that reads a sign with real-valued weights."""
    return parse("s = Sign(x)\nc = Conv(s, w)\nt = Sign(c)\ny = Conv(t, u)", w=W, u=eighths(3, 8, 1, 1) + 2)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_report_is_what_the_command_prints_as_json(tmp_path: Path) -> None:
    ir.save(small(), tmp_path / "f.onnx")
    arguments = ["convert", tmp_path / "f.onnx", "-o", tmp_path / "m.onnx", "--weights", "as-is"]
    result = run(*arguments, "--report", tmp_path / "r.json", "--json")
    assert result.exit_code == 0, result.output
    written, printed = json.loads((tmp_path / "r.json").read_text()), json.loads(result.stdout)
    assert written["format"] == 1
    assert written["source"] == str(tmp_path / "f.onnx")
    assert written["counts"] == {"binary": 1, "float": 1}
    assert {key: printed[key] for key in written} == written
    result = run(*arguments, "--report", tmp_path / "r.json")
    assert f"and {tmp_path}/r.json" in result.stdout.splitlines()[-1]
    assert "-> if they are latent, say by which recipe" in result.stdout
    assert "WARNING: 1 layer reads a sign but stays float, see above: y" in result.stdout


def test_latent_weights_are_named_with_their_zeros(tmp_path: Path) -> None:
    latent = with_weight(0, source=W * (eighths(8, 4, 3, 3, seed=5) + np.float32(2)))
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=latent)
    (layer,) = convert(model, tmp_path / "m.onnx", weights="xnor-centred").layers
    assert (layer.weights, layer.latent_zeros, layer.zeros) == ("latent, binarised by xnor-centred", 1, 0)
    (layer,) = convert(parse("s = Sign(x)\ny = Conv(s, w)", w=latent + 4), tmp_path / "m.onnx", weights="xnor").layers
    assert (layer.weights, layer.latent_zeros) == ("latent, binarised by xnor", 0)


def test_the_advice_for_latent_weights_works(tmp_path: Path) -> None:
    latent = W * (eighths(8, 4, 3, 3, seed=5) + np.float32(2))
    model = parse("s = Sign(x)\nc = Conv(s, w)\nt = Sign(c)\ny = Conv(t, u)", w=W, u=latent[:3, :1].repeat(8, axis=1))
    before = convert(model, tmp_path / "m.onnx", weights="as-is", float_output=tmp_path / "f.onnx").layers[1]
    assert before.status == "float" and before.advice is not None
    assert "--weights xnor, xnor-centred or sign" in before.advice and "the file that --float writes" in before.advice
    after = convert(tmp_path / "f.onnx", tmp_path / "m.onnx", weights="xnor").layers[1]
    assert (after.status, after.weights) == ("binary", "latent, binarised by xnor")


def test_channels_that_never_change_are_named_by_their_layer(tmp_path: Path) -> None:
    norm = batch_norm(4, gamma=[1, 0, 1, 1])
    text = (
        "n = BatchNormalization(x, g, b, m, v)\ns = Sign(n)\nc = Conv(s, w)\nd = Add(c, t)\ne = Sign(d)\ny = Conv(e, u)"
    )
    shift = np.zeros((8, 1, 1), np.float32)
    shift[2], shift[5] = 100, -100
    model = parse(text, w=W, u=weights(3, 8, 1, 1), t=shift, **norm)
    result = convert(model, tmp_path / "m.onnx")
    assert result.constant_channels == (("the input of c", 1, 4), ("the output of c", 2, 8))
    unchanged = parse(text, w=W, u=weights(3, 8, 1, 1), t=np.full((8, 1, 1), 1 / 16, np.float32), **batch_norm(4))
    assert convert(unchanged, tmp_path / "m.onnx").constant_channels == ()


def test_strict_writes_the_report_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(
        BnnDeployError,
        match=r"--strict: 1 layer whose input is a sign or has few levels stays float: .*; see .*r\.json$",
    ):
        convert(small(), tmp_path / "m.onnx", weights="as-is", strict=True, report=tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    zeros = {"u": with_weight(0), "v": with_weight(0, source=-W)}
    two = parse("s = Sign(x)\na = Conv(s, u)\nb = Conv(s, v)\ny = Add(a, b)", **zeros)
    with pytest.raises(
        BnnDeployError, match=r"2 layers .* stay float: Conv 'a', Conv 'b': filter 2 has 1 weights that"
    ):
        convert(two, tmp_path / "m.onnx", strict=True)
    layers = json.loads((tmp_path / "r.json").read_text())["layers"]
    assert [layer["binary_in_training"] for layer in layers] == [False, True]
    convert(parse(SIGN_CONV, w=W), tmp_path / "m.onnx", strict=True)


def test_the_report_says_why_no_layer_is_binary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no layer of the model is binary: .*; see "):
        convert(parse("y = Conv(x, w)", w=W), tmp_path / "m.onnx", report=tmp_path / "r.json")
    (layer,) = json.loads((tmp_path / "r.json").read_text())["layers"]
    assert (layer["status"], layer["weights"]) == ("float", "constant, two-valued")


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ("f.onnx", "is the model itself"),
        ("m.onnx", "asked for twice, for the report and for a model"),
        ("no/r.json", "does not exist"),
    ],
)
def test_refused_reports(report: str, text: str, tmp_path: Path) -> None:
    ir.save(small(), tmp_path / "f.onnx")
    before = (tmp_path / "f.onnx").read_bytes()
    result = run("convert", tmp_path / "f.onnx", "-o", tmp_path / "m.onnx", "--report", tmp_path / report)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert text in line
    assert [path.name for path in tmp_path.iterdir()] == ["f.onnx"]
    assert (tmp_path / "f.onnx").read_bytes() == before


def test_eight_bit_edges(lenet5: Converted, tmp_path: Path) -> None:
    result = convert(lenet5.checkpoint, tmp_path / "m.onnx", arch="lenet5", calibration=mnist()[0][:8].numpy())
    assert [layer.status for layer in result.layers] == ["int8", "binary", "binary", "int8"]
    assert result.layers[0].advice == "nothing: --edges int8 has stored it in 8 bits"
    same = [layer.reason for layer in result.layers] == [layer.reason for layer in lenet5.conversion.layers]
    assert same


def test_printed_at_100_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nin: Converted) -> None:
    """No line is longer, and no layer's name is broken."""
    from bnn_deploy.cli import console
    from bnn_deploy.cli.layer_table import print_layers
    from bnn_deploy.inspection import inspect_model

    printed: list[str] = []
    monkeypatch.setattr(console.click, "echo", lambda text, **_: printed.append(text))
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", 100)
    monkeypatch.setattr(console.out, "_height", 50)
    print_layers(nin.conversion.report, inspect_model(nin.float_model), inspect_model(nin.model))
    lines = "\n".join(printed).splitlines()
    assert max(map(len, lines)) <= 100
    for layer in nin.conversion.layers:
        assert any(line.startswith(f"{layer.name} ") for line in lines)
    assert sum("as in the papers, whose first layers stay float" in line for line in lines) == 1
