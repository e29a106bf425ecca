"""SimplifyPRelu: a PReLU that is written with two ReLUs becomes one operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.normalise.simplify_prelu import SimplifyPRelu
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import assert_same, copy, equal, op_types, parse, run_float, samples, weights

SLOPE = np.float32([0.25, 0.3, 0, 1.5]).reshape(4, 1, 1)

# What is made of x, with c = slope or -slope.
FORMS = {
    "Keras, by tf2onnx": ("p = Relu(x)\na = Neg(x)\nb = Relu(a)\nm = Mul(minus, b)\ny = Add(p, m)"),
    "the other way round": ("p = Relu(x)\na = Neg(x)\nb = Relu(a)\nm = Mul(b, minus)\ny = Add(m, p)"),
    "subtracted": "p = Relu(x)\na = Neg(x)\nb = Relu(a)\nm = Mul(b, slope)\ny = Sub(p, m)",
    "Neg of Relu of Neg": "p = Relu(x)\na = Neg(x)\nb = Relu(a)\nd = Neg(b)\nm = Mul(slope, d)\ny = Add(p, m)",
    "Min": "p = Relu(x)\nb = Min(x, zero)\nm = Mul(b, slope)\ny = Add(p, m)",
    "Clip from above": "p = Relu(x)\nb = Clip(x, , zero)\nm = Mul(b, slope)\ny = Add(p, m)",
    "no constant: x itself": "p = Relu(x)\na = Neg(x)\nb = Relu(a)\ny = Sub(p, b)",
}


def model_of(text: str, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    values = {
        "slope": SLOPE,
        "minus": -SLOPE,
        "zero": np.float32(0),
        "two": np.float32(2.25),
        "w": weights(5, 4, 3, 3),
    } | {"first": weights(4, 4, 3, 3, seed=1)}
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parse(text, outputs=outputs, **{key: value for key, value in values.items() if key in read})


def simplify(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, SimplifyPRelu()(after).count


@pytest.mark.parametrize("form", FORMS)
def test_fires(form: str) -> None:
    model = model_of(FORMS[form])
    after, modified = simplify(model)
    assert (modified, op_types(after)) == (1, ["PRelu"])
    x = samples(model)
    x.flat[::5], x.flat[1::10] = 0, -0.0
    assert equal(run_float(after, x), run_float(model, x))
    value = next(iter(after.graph)).inputs[1]
    assert value is not None
    value.const_value = ir.tensor(-np.array(constant(value)) + 1, name=value.name)
    assert not equal(run_float(after, x), run_float(model, x))


@pytest.mark.parametrize("form", FORMS)
def test_between_two_binary_layers_it_becomes_a_threshold(form: str) -> None:
    prelu = FORMS[form].replace("(x", "(c").replace("y = ", "r = ")
    model = model_of(f"s = Sign(x)\nc = Conv(s, first)\n{prelu}\nt = Sub(r, two)\nu = Sign(t)\ny = Conv(u, w)")
    binary = to_binary(model)[0]
    assert op_types(binary) == ["Binarize", "BinaryConvThreshold", "BinaryConv"]
    assert_same(model, binary)


@pytest.mark.parametrize(
    "text",
    [
        "p = Relu(x)\na = Neg(x)\nb = Relu(a)\nm = Mul(b, slope)\nk = Mul(m, two)\ny = Add(p, k)",  # a product
        "p = Relu(x)\nz = Abs(x)\na = Neg(z)\nb = Relu(a)\nm = Mul(b, slope)\ny = Add(p, m)",  # of something else
        "p = Relu(x)\nb = Min(x, two)\nm = Mul(b, slope)\ny = Add(p, m)",  # not the negative part
        "a = Neg(x)\nb = Relu(a)\np = Relu(x)\nm = Mul(b, slope)\ny = Sub(m, p)",  # minus the positive part
    ],
)
def test_does_not_fire(text: str) -> None:
    model = model_of(text)
    before = op_types(model)
    after, modified = simplify(model)
    assert (modified, op_types(after)) == (0, before)


def test_fan_out() -> None:
    """Relu(x) is read by something else too, and stays for that."""
    model = model_of(FORMS["Keras, by tf2onnx"] + "\nz = Neg(p)", outputs=("y", "z"))
    after, modified = simplify(model)
    assert (modified, sorted(op_types(after))) == (1, ["Neg", "PRelu", "Relu"])
    assert equal(run_float(after, samples(model)), run_float(model, samples(model)))


def test_shared_constant() -> None:
    model = model_of(FORMS["subtracted"] + "\nz = Mul(x, slope)", outputs=("y", "z"))
    after, modified = simplify(model)
    assert modified == 1
    assert equal(run_float(after, samples(model)), run_float(model, samples(model)))
