"""FoldBatchNorm: BatchNorm goes into the layer before or after it, up to the rounding of floats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import batch_norm, copy, eighths, op_types, parse, run_binary, run_float, samples, weights
from test_passes_fold_threshold import lower

from bnn_deploy.operators import DOMAIN
from bnn_deploy.passes.fold_batch_norm import FoldBatchNorm
from bnn_deploy.passes.graph import constant

NORM = "BatchNormalization({}, g, b, m, v)"
X = ("N", 4, 6, 6)


def folded(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, FoldBatchNorm()(after).modified


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
