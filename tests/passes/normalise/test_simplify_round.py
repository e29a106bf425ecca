"""SimplifyRound: BinaryNet's 2 * round(hard_sigmoid(x)) - 1 is a sign."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.normalise.simplify_round import SimplifyRound
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import Array, assert_same, copy, equal, op_types, parse, run_float, samples, weights

FORMS = {
    "ONNX's HardSigmoid": "h = HardSigmoid <alpha=0.5, beta=0.5> (x)",
    "Theano's": "a = Add(x, one)\nb = Div(a, two)\nh = Clip(b, zero, one)",
    "Keras's": "a = Mul(fifth, x)\nb = Add(a, half)\nh = Clip(b, zero, one)",
    "Max and Min": "a = Mul(x, half)\nb = Add(a, half)\nc = Min(b, one)\nh = Max(c, zero)",
    "of a threshold": "t = Sub(x, fifth)\nh = HardSigmoid <alpha=0.5, beta=0.5> (t)",
}
SIGN = "r = Round(h)\nm = Mul(r, two)\ns = Sub(m, one)"


def model_of(text: str, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    numbers = {"zero": 0, "one": 1, "two": 2, "fifth": 0.2, "half": 0.5, "three": 3}
    values: dict[str, Array] = {name: np.array(number, np.float32) for name, number in numbers.items()}
    values["w"] = weights(5, 4, 3, 3)
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parse(text, outputs=outputs, **{key: value for key, value in values.items() if key in read})


def simplify(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, SimplifyRound()(after).count


def near_zero(model: ir.Model) -> Array:
    """Inputs of which some are 0, and the next numbers to the thresholds."""
    x = samples(model)
    numbers = [0, -0.0, 1e-8, -1e-8, 5e-8, 6e-8, 1.1e-7, 1.2e-7, 1.3e-7, 0.2, 0.20000002, 0.19999999, 1e30, -1e30]
    x.flat[: len(numbers) * 3 : 3] = numbers
    return x


@pytest.mark.parametrize("form", FORMS)
def test_fires(form: str) -> None:
    model = model_of(f"{FORMS[form]}\n{SIGN}\ny = Conv(s, w)")
    after, modified = simplify(model)
    assert modified == 1
    assert "Round" not in op_types(after)
    x = near_zero(model)
    assert equal(run_float(after, x), run_float(model, x))
    threshold = after.graph.initializers["r_threshold"]
    moved = np.nextafter(np.float32(constant(threshold)), np.float32(np.inf))
    x.flat[0] = np.float32(constant(threshold))
    assert equal(run_float(after, x), run_float(model, x))
    threshold.const_value = ir.tensor(np.array(moved), name="r_threshold")
    assert not equal(run_float(after, x), run_float(model, x)), "one float32 number off is not seen"


@pytest.mark.parametrize("form", FORMS)
def test_it_becomes_a_binary_layer(form: str) -> None:
    model = model_of(f"{FORMS[form]}\n{SIGN}\ny = Conv(s, w)")
    binary, left, _ = to_binary(model)
    assert (left, op_types(binary)) == ([], ["Binarize", "BinaryConv"])
    assert_same(model, binary, near_zero(model))


@pytest.mark.parametrize(
    "text",
    [
        "h = Clip(x, zero, three)\nr = Round(h)\ny = Mul(r, two)",  # four numbers
        "h = Clip(x, zero, one)\ny = Round(h)",  # nothing makes ±1 of it
        "h = Clip(x, zero, one)\nr = Round(h)\ny = Conv(r, w)",
        "h = Sigmoid(x)\nr = Round(h)\ny = Mul(r, two)",  # is monotone only up to its rounding
        "h = Clip(x, half, one)\ng = Mul(h, x)\nr = Round(g)\ny = Mul(r, two)",  # no function with one number
    ],
)
def test_does_not_fire(text: str) -> None:
    model = model_of(text)
    before = op_types(model)
    after, modified = simplify(model)
    assert (modified, op_types(after)) == (0, before)


def test_a_falling_function() -> None:
    model = model_of(f"n = Neg(x)\nh = HardSigmoid <alpha=0.5, beta=0.5> (n)\n{SIGN}\ny = Conv(s, w)")
    assert simplify(model)[1] == 1
    assert_same(model, to_binary(model)[0], near_zero(model))


def test_fan_out() -> None:
    """Something else reads the hard sigmoid, which stays for that."""
    text = FORMS["Theano's"]
    model = model_of(f"{text}\n{SIGN}\ny = Conv(s, w)\nz = Neg(h)", outputs=("y", "z"))
    after, modified = simplify(model)
    assert modified == 1
    assert equal(run_float(after, near_zero(model)), run_float(model, near_zero(model)))
