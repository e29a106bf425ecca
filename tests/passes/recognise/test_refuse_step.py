"""RefuseStep: a sign that is 0 over an interval is 0 and 1, and its layers stay float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy import convert
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.refuse_step import RefuseStep
from bnn_deploy.provenance import REFUSED
from support.graphs import assert_same, eighths, equal, op_types, parse, run_binary, run_float, samples, weights

NORM = {
    "g": eighths(4),
    "b": eighths(4, seed=1) + np.float32(1 / 16),
    "m": eighths(4, seed=2),
    "v": np.ones(4, np.float32),
}

LEVELS = [
    "r = Relu(x)\ns = Sign(r)",
    "r = Clip(x, zero, one)\ns = Sign(r)",
    "r = Relu(x)\nq = Mul(r, k)\ns = Sign(q)",
    "r = Relu(x)\nq = Transpose <perm=[0,1,3,2]> (r)\ns = Sign(q)",
    "r = Max(x, zero)\ns = Sign(r)",
    "r = Relu(x)\nq = Tanh(r)\ns = Sign(q)",
    "r = Relu(x)\nq = MaxPool <kernel_shape=[2,2]> (r)\ns = Sign(q)",
    "r = Relu(x)\nt = Tanh(r)\nq = MaxPool <kernel_shape=[2,2], strides=[2,2], pads=[1,0,1,0]> (t)\ns = Sign(q)",
    "r = Clip(x, , zero)\ns = Sign(r)",  # -1 and 0
    "r = Min(zero, x)\nq = Mul(r, k)\ns = Sign(q)",
]
"""Steps, too, but LowerLevels takes their layers before anyone asks: 0 and 1 are levels."""

OTHER = "o = Conv <pads=[1,1,1,1]> (x, mix)\n"
"""A second tensor, which is not a function of the same element of x."""

STEPS = [
    "r = Round(x)\ns = Sign(r)",
    "r = Relu(x)\nq = Sub(r, some)\ns = Sign(q)",  # 0 in two of the channels
    "r = Relu(x)\nq = MaxPool <kernel_shape=[2,2]> (r)\np = PRelu(q, k)\ns = Sign(p)",
    "r = Relu(x)\nq = AveragePool <kernel_shape=[2,2]> (r)\ns = Sign(q)",
    "r = Relu(x)\nq = Sign(r)\np = Sign(q)\ns = Neg(p)",
    "r = Floor(x)\nq = Sub(r, one)\ns = Sign(q)",
    "r = Cast <to=6> (x)\nq = Cast <to=1> (r)\ns = Sign(q)",
    "r = ThresholdedRelu <alpha=0.5> (x)\ns = Sign(r)",
    "r = Shrink <lambd=0.5> (x)\ns = Sign(r)",
    "r = HardSwish(x)\ns = Sign(r)",
    "r = Mul(x, some)\ns = Sign(r)",  # 0 in two of the channels
    "r = BatchNormalization(x, some4, zero4, m, v)\ns = Sign(r)",  # gamma and beta are 0 in two
    f"{OTHER}r = Relu(x)\nq = Relu(o)\np = Add(r, q)\ns = Sign(p)",
    f"{OTHER}r = Relu(x)\nq = Relu(o)\np = Concat <axis=1> (r, q)\nt = Slice(p, two, six, axis)\ns = Sign(t)",
    f"{OTHER}r = Relu(x)\nq = Sigmoid(o)\np = Mul(r, q)\ns = Sign(p)",
    "r = Relu(x)\nq = Sqrt(r)\ns = Sign(q)",
    f"{OTHER}c = Greater(o, zero)\nr = Where(c, x, zero)\ns = Sign(r)",
    f"{OTHER}c = Greater(o, zero)\nq = Relu(x)\nr = Where(c, x, q)\ns = Sign(r)",
]
SIGNS = [
    "r = Relu(x)\nn = BatchNormalization(r, g, b, m, v)\ns = Sign(n)",
    "r = Clip(x, minus, one)\ns = Sign(r)",
    "r = Relu(x)\nq = GreaterOrEqual(r, zero)\ns = Where(q, one, minus)",  # the source says what it is at 0
    "r = LeakyRelu(x)\ns = Sign(r)",
    "r = Relu(x)\nq = Sub(r, one)\ns = Sign(q)",
    "r = Floor(x)\nq = Add(r, k)\ns = Sign(q)",
    "r = Max(x, one)\ns = Sign(r)",
    "r = BatchNormalization(x, some4, one4, m, v)\ns = Sign(r)",  # gamma is 0 in two
    "r = Relu(x)\nn = Neg(x)\na = Relu(n)\nq = Mul(a, k)\np = Sub(r, q)\ns = Sign(p)",  # a PReLU
    f"{OTHER}r = Relu(o)\np = Add(r, x)\ns = Sign(p)",
    f"{OTHER}r = Relu(o)\nq = Relu(x)\nt = Add(q, one)\np = Add(r, t)\ns = Sign(p)",
    "r = Relu(x)\na = Relu(x)\nq = Sub(a, k)\nt = Add(q, minus)\ns = Sign(t)",
]


def graph(text: str, layer: str = "y = Conv(s, w)", outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    values = NORM | {
        "zero": np.float32(0),
        "one": np.float32(1),
        "minus": np.float32(-1),
        "k": np.float32(0.5),
        "some4": np.float32([0, 1, 0, 1]),
        "one4": np.ones(4, np.float32),
        "zero4": np.zeros(4, np.float32),
        "some": np.float32([0, 1, 0, 1]).reshape(4, 1, 1),
        "mix": eighths(4, 4, 3, 3, seed=9),
        "two": np.array([2]),
        "six": np.array([6]),
        "axis": np.array([1]),
        "w": weights(5, 4, 3, 3),
    }
    read = f"{text}\n{layer}".replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parse(f"{text}\n{layer}", outputs=outputs, **{key: value for key, value in values.items() if key in read})


@pytest.mark.parametrize("text", STEPS)
def test_fires(text: str) -> None:
    model = graph(text)
    binary, left, _ = to_binary(model)
    (declined,) = (decline for decline in left if decline.node == "y")
    assert declined.has_sign_input
    assert "gives 0, too, and not only -1 and 1" in declined.reason
    x = samples(model)
    assert np.allclose(run_binary(binary, x, True)[0], run_float(model, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", LEVELS)
def test_levels_are_none_of_its_business(text: str) -> None:
    model = graph(text)
    binary, left, _ = to_binary(model)
    assert left == []
    assert "BinaryConvLevels" in op_types(binary)
    x = samples(model)
    assert np.allclose(run_binary(binary, x, True)[0], run_float(model, x)[0], rtol=1e-5, atol=1e-5)
    assert not np.allclose(run_binary(binary, x[::-1], True)[0], run_float(model, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", SIGNS)
def test_does_not_fire(text: str) -> None:
    model = graph(text)
    binary, left, _ = to_binary(model)
    assert "y" not in [decline.node for decline in left]
    if "GreaterOrEqual" not in text and OTHER not in text:  # which runs a float layer of its own
        assert_same(model, binary)
    x = samples(model)
    assert equal(run_binary(binary, x, True), run_float(model, x))


def test_without_it_the_result_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(STEPS[0])
    monkeypatch.setattr(RefuseStep, "_flats", lambda self, value: [])
    binary, left, _ = to_binary(model)
    assert left == []
    x = samples(model)
    assert not np.allclose(run_binary(binary, x, True)[0], run_float(model, x)[0], atol=0.1)


def test_fan_out() -> None:
    """The Round feeds one sign directly and another behind a shift by a half; only the first is a step."""
    text = "r = Round(x)\ns = Sign(r)\nq = Sub(r, k)\nt = Sign(q)"
    model = graph(text, "y = Conv(s, w)\nz = Conv(t, w)", outputs=("y", "z"))
    left = to_binary(model)[1]
    assert [decline.node for decline in left] == ["y"]


def test_marks_and_changes_nothing_else() -> None:
    model = graph(STEPS[0])
    before = op_types(model)
    assert RefuseStep()(model).count == 1
    assert op_types(model) == before
    assert [node.op_type for node in model.graph if REFUSED in node.meta] == ["Sign"]


def test_convert_says_so_and_writes_nothing(tmp_path: object) -> None:
    path = f"{tmp_path}/m.onnx"
    with pytest.raises(InputError, match="gives 0, too, and not only -1 and 1: Round 'r'"):
        convert(graph(STEPS[0]), path)
    mixed = graph("r = Round(x)\ns = Sign(r)\nt = Sign(x)", "a = Conv(s, w)\nb2 = Conv(t, w)\ny = Add(a, b2)")
    with pytest.raises(BnnDeployError, match="strict=True: 1 layer "):
        convert(mixed, path, strict=True)


def test_graphs_deeper_than_the_stack() -> None:
    """Of 1,500 functions of one another, the last Relu is found."""
    lines = [f"t{i} = {'Relu' if i % 2 else 'Neg'}({f't{i - 1}' if i else 'x'})" for i in range(1500)]
    model = parse("\n".join([*lines, "s = Sign(t1499)", "y = Conv(s, w)"]), w=weights(4, 4, 1, 1))
    result = RefuseStep()(model)
    assert result.modified
    sign = next(node for node in model.graph if node.op_type == "Sign")
    assert "t1499" in sign.meta[REFUSED].text
