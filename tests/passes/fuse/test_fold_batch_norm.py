"""FoldBatchNorm: BatchNorm goes into the layer before or after it, up to the rounding of floats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.fuse.fold_batch_norm import FoldBatchNorm
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import (
    batch_norm,
    copy,
    eighths,
    equal,
    lower,
    op_types,
    parse,
    run_binary,
    run_float,
    samples,
    weights,
)

NORM = "BatchNormalization({}, g, b, m, v)"
X = ("N", 4, 6, 6)


def folded(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, FoldBatchNorm()(after).count


def error(model: ir.Model, after: ir.Model, kernels: bool = True) -> float:
    x = samples(model)
    expected = (
        run_float(model, x)[0] if all(n.domain != DOMAIN for n in model.graph) else run_binary(model, x, False)[0]
    )
    got = run_binary(after, x, kernels)[0] if any(n.domain == DOMAIN for n in after.graph) else run_float(after, x)[0]
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def break_constant(model: ir.Model, op_type: str, place: int) -> ir.Model:
    wrong = copy(model)
    value = next(n for n in wrong.graph if n.op_type == op_type).inputs[place]
    assert value is not None
    array = np.array(constant(value))
    array.flat[0] += 0.1
    value.const_value = ir.tensor(array, name=value.name)
    return wrong


CASES = {
    "behind a BinaryConv": ("s = Sign(x)\nc = Conv(s, w, bias)\ny = " + NORM.format("c"), "BinaryConv", 2),
    "behind a Conv": ("c = Conv(x, w, bias)\ny = " + NORM.format("c"), "Conv", 1),
    "before a Conv": ("n = " + NORM.format("x") + "\ny = Conv(n, w, bias)", "Conv", 2),
    "without bias": ("n = " + NORM.format("x") + "\ny = Conv(n, w)", "Conv", 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gamma", [None, [1, -1, 0, 2]])
def test_folds(case: str, gamma: list[float] | None) -> None:
    text, op_type, place = CASES[case]
    model = parse(text, X, w=weights(4, 4, 3, 3), bias=eighths(4), **batch_norm(4, gamma=gamma))
    model = lower(model) if op_type == "BinaryConv" else model
    after, modified = folded(model)
    assert modified == 1
    assert "BatchNormalization" not in op_types(after)
    assert error(model, after) < 1e-6
    assert error(model, break_constant(after, op_type, place)) > 1e-3


@pytest.mark.parametrize("transposed", [0, 1])
def test_folds_into_a_gemm(transposed: int) -> None:
    w = weights(3, 4) if transposed else weights(4, 3)
    text = f"n = {NORM.format('x')}\ny = Gemm <transB={transposed}> (n, w, bias)"
    model = parse(text, ("N", 4), w=w, bias=eighths(3), **batch_norm(4))
    after, modified = folded(model)
    assert modified == 1
    assert op_types(after) == ["Gemm"]
    assert error(model, after) < 1e-6
    assert error(model, break_constant(after, "Gemm", 1)) > 1e-3


DECLINED = {
    "padding, whose zeros would not be shifted": "n = " + NORM.format("x") + "\ny = Conv <pads=[1,1,1,1]> (n, w)",
    "groups": "n = " + NORM.format("x") + "\ny = Conv <group=2> (n, w2)",
    "another user of the layer": "c = Conv(x, w)\nn = " + NORM.format("c") + "\ny = Add(n, c)",
    "another user of the BatchNorm": "n = " + NORM.format("x") + "\nc = Conv(n, w1)\ny = Add(n, c)",
    "a ReLU between": "c = Conv(x, w)\nr = Relu(c)\ny = " + NORM.format("r"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_does_not_fold(case: str) -> None:
    constants = {"w": weights(4, 4, 3, 3), "w1": weights(4, 4, 1, 1), "w2": weights(4, 2, 3, 3)}
    model = parse(DECLINED[case], X, **constants, **batch_norm(4))
    after, modified = folded(model)
    assert modified == 0
    assert "BatchNormalization" in op_types(after)


def test_weights_that_another_layer_shares_keep_their_values() -> None:
    text = "n = " + NORM.format("x") + "\na = Conv(n, w)\nc = Conv(x, w)\ny = Add(a, c)"
    model = parse(text, X, w=weights(4, 4, 3, 3), **batch_norm(4))
    after, modified = folded(model)
    assert modified == 1
    assert error(model, after) < 1e-6


ARITHMETIC = {
    "a learned alpha": "t = Mul(c, k)\ny = Relu(t)",
    "alpha on the left": "t = Mul(k, c)\ny = Relu(t)",
    "Keras's BatchNorm": "t = Mul(c, k)\nu = Add(t, e)\ny = Relu(u)",
    "a difference": "t = Sub(c, e)\ny = Relu(t)",
    "the other difference": "t = Sub(e, c)\ny = Relu(t)",
    "a quotient": "t = Div(c, k)\ny = Relu(t)",
}


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("layer", ["c = Conv(s, w, bias)", "c = Conv(x, w, bias)"])
def test_arithmetic_per_channel_behind_a_layer(name: str, layer: str) -> None:
    """Powers of two and eighths: nothing is rounded, and the results are the same to the last bit."""
    text = f"{layer}\n{ARITHMETIC[name]}"
    values = {
        "w": weights(8, 4, 3, 3),
        "bias": eighths(8),
        "k": np.float32([0.5, 2, -1, 4, 1, 0.25, -0.5, -2]).reshape(8, 1, 1),
        "e": eighths(8, 1, 1, seed=1),
    }
    read = text.replace("(", " ").replace(")", "").replace(",", "").split()
    model = parse(
        f"s = Sign(x)\n{text}" if "s" in read else text, **{key: v for key, v in values.items() if key in read}
    )
    after = to_binary(model)[0] if "s" in read else folded(model)[0]
    assert op_types(after)[-2:] in (["BinaryConv", "Relu"], ["Conv", "Relu"])
    x = np.round(samples(model) * 8) / 8
    x += (x == 0) / np.float32(8)
    assert equal(run_binary(after, x, True), run_float(model, x))
    conv = next(node for node in after.graph if node.op_type in ("BinaryConv", "Conv"))
    value = conv.inputs[3 if conv.op_type == "BinaryConv" else 2]
    assert value is not None
    value.const_value = ir.tensor(np.array(constant(value)) + np.float32(0.125), name=value.name)
    assert not equal(run_binary(after, x, True), run_float(model, x))


@pytest.mark.parametrize(
    "text",
    [
        "c = Conv(s, w)\nt = Mul(c, full)\ny = Relu(t)",  # not one value per channel
        "c = Conv(s, w)\nt = Div(k, c)\ny = Relu(t)",  # divides by data
        "c = Conv(s, w)\nt = Mul(c, k)\ny = Relu(t)\nz = Neg(c)",  # used elsewhere
    ],
)
def test_does_not_fold_other_arithmetic(text: str) -> None:
    values = {
        "w": weights(8, 4, 3, 3),
        "k": np.float32([0.5, 2, -1, 4, 1, 0.25, -0.5, -2]).reshape(8, 1, 1),
        "full": eighths(1, 1, 4, 4),
    }
    read = text.replace("(", " ").replace(")", "").replace(",", "").split()
    outputs = ("y", "z") if "z =" in text else ("y",)
    model = parse(f"s = Sign(x)\n{text}", outputs=outputs, **{k: v for k, v in values.items() if k in read})
    assert {"Mul", "Div"} & set(op_types(to_binary(model)[0]))
