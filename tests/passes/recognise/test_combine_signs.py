"""CombineSigns: what is ±s whatever several signs are is a sign in front of its layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy import convert, verify
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.combine_signs import CombineSigns
from support.graphs import assert_same, batch_norm, copy, equal, op_types, parse, run_float, samples, weights

SIGNS = "n = BatchNormalization(x, g, b, m, v)\ns = Sign(x)\nt = Sign(n)\n"
OR = (
    "s0 = Add(s, one)\ns1 = Mul(s0, half)\nt0 = Add(t, one)\nt1 = Mul(t0, half)\n"
    "o = Add(s1, t1)\nc = Clip(o, zero, one)\nd = Mul(c, two)\nf = Sub(d, one)\n"
)
LOGIC = {
    "XNOR": "f = Mul(s, t)\n",
    "XOR": "k = Mul(s, t)\nf = Neg(k)\n",
    "OR": OR,
    "maximum": "f = Max(s, t)\n",
    "minimum, times a half": "k = Min(s, t)\nf = Mul(k, half)\n",
    "selection": "p = Greater(s, zero)\nk = Neg(t)\nf = Where(p, t, k)\n",
    "straight through": "k = Mul(s, t)\nr = Round(n)\nd = Sub(k, r)\nf = Add(d, r)\n",
    "moved in two ways": "r = Transpose <perm=[0, 1, 3, 2]> (s)\nf = Mul(s, r)\n",
    "of three, one backwards": "p = Mul(s, t)\nq = Slice(s, start, end, axis, step)\nf = Max(p, q)\n",
}
NUMBERS = {
    **{"one": np.float32(1), "half": np.float32(0.5), "two": np.float32(2), "zero": np.float32(0)},
    **{"start": np.array([7]), "end": np.array([-100]), "axis": np.array([3]), "step": np.array([-1])},
    **{"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "per_channel": np.full((1, 32, 1, 1), 2, np.float32)},
}
PADDED = 'e = Pad <mode="edge"> (f, pads)\ny = Conv(e, w)'


def graph(text: str, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    text = SIGNS + text
    values = {"w": weights(6, 32, 3, 3), **batch_norm(32), **NUMBERS}
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {key: value for key, value in values.items() if key in read}
    return parse(text, outputs=outputs, x=("N", 32, 8, 8), **used)


def combine(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, CombineSigns()(after).count


@pytest.mark.parametrize("logic", LOGIC)
def test_fires(logic: str) -> None:
    model = graph(LOGIC[logic] + PADDED)
    binary, left, _ = to_binary(model)
    assert op_types(binary).count("BinaryConv") == 1 and not left
    assert_same(model, binary)


def test_keeps_the_values_of_zeros() -> None:
    """Signs of 0 are 0 here, and XNOR and OR of them are, too."""
    for logic in ("XNOR", "OR"):
        model = graph(LOGIC[logic] + PADDED, outputs=("y", "f"))
        after, modified = combine(model)
        x = samples(model)
        x[:, ::3] = 0
        assert modified == 1 and equal(run_float(after, x), run_float(model, x))


def test_logic_of_signs_that_are_never_0_is_never_0() -> None:
    """Where the zeros are kept, they cost such a layer nothing."""
    text = "p = GreaterOrEqual(x, zero)\ns = Where(p, one, minus)\nq = Greater(x, half)\nt = Where(q, one, minus)\n"
    constants = {
        "w": weights(6, 4, 3, 3),
        "minus": np.float32(-1),
        **{key: NUMBERS[key] for key in ("zero", "one", "half")},
    }
    model = parse(f"{text}f = Mul(s, t)\ny = Conv(f, w)", **constants)
    kept: set[str] = set()
    binary, left, _ = to_binary(model, kept_zeros=kept)
    assert op_types(binary).count("BinaryConv") == 1 and not left and not kept
    x = samples(model)
    x[:, ::2, ::3] = 0
    assert_same(model, binary, x)


@pytest.mark.filterwarnings("error")
def test_a_quotient_of_signs_may_be_none() -> None:
    """1 / 0, and 0 / 0: infinity and NaN are no sign, and no warning either."""
    assert combine(graph("f = Div(s, t)\ny = Conv(f, w)"))[1] == 0


def test_a_sign_is_one_for_the_logic_behind_it() -> None:
    """Two layers, the second of which reads what the first reads, and more."""
    text = LOGIC["XNOR"] + "y = Conv(f, w)\nu = Max(f, r)\nz = Conv(u, w)\nr = Sign(r0)\nr0 = Add(x, half)\n"
    *lines, last, first = text.strip().splitlines()
    model = graph("\n".join([first, last, *lines]), outputs=("y", "z"))
    binary, left, _ = to_binary(model)
    assert op_types(binary).count("BinaryConv") == 2 and not left
    assert_same(model, binary)


@pytest.mark.parametrize(
    "text",
    [
        "f = Add(s, t)\n",  # three levels
        "f = Mul(s, x)\n",  # a real number
        "k = Add(s, half)\nf = Mul(k, t)\n",  # four levels
        "k = Relu(s)\nf = Mul(k, t)\n",  # three: 0 is no rounding here
        "f = Mul(s, per_channel)\n",  # one sign
        "k = Mul(s, t)\nf = Mul(k, per_channel)\n",  # DelayScale's
    ],
)
def test_does_not_fire(text: str) -> None:
    assert combine(graph(text + "y = Conv(f, w)"))[1] == 0


def test_a_long_chain_takes_no_time() -> None:
    """Each step reads the one before it twice."""
    steps = "".join(f"f{i + 1} = Max(f{i}, f{i})\n" for i in range(60))
    assert combine(graph(f"f0 = Mul(s, t)\n{steps}y = Conv(f60, w)"))[1] == 1


def test_does_not_fire_without_a_layer_or_twice() -> None:
    assert combine(graph("f = Mul(s, t)\ny = Relu(f)"))[1] == 0
    after, modified = combine(graph("f = Mul(s, t)\ny = Conv(f, w)"))
    assert (modified, combine(after)[1]) == (1, 0)


def test_verify_proves_it_and_sees_a_corruption(tmp_path: Path) -> None:
    model = graph(LOGIC["OR"] + PADDED)
    convert(model, tmp_path / "binary.onnx")
    x = samples(model, 8)
    assert verify(tmp_path / "binary.onnx", model, data=x, isas=["scalar"]).passed
    weight = constant(model.graph.initializers["w"])
    assert weight is not None
    wrong = weight.copy()
    wrong[2, 5] *= -1
    model.graph.initializers["w"].const_value = ir.tensor(wrong, name="w")
    assert not verify(tmp_path / "binary.onnx", model, data=x, isas=["scalar"]).passed
