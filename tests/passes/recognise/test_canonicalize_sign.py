"""CanonicalizeSign: what is a sign, by its values; the forms themselves are in test_dialects."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.lower.expand_sign import ExpandSign
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.canonicalize_sign import CanonicalizeSign
from bnn_deploy.provenance import BEFORE, SOURCE, ZERO, read_before
from support.graphs import assert_same, copy, eighths, equal, only, op_types, parse, run_float, samples, weights

NUMBERS = {"zero": 0.0, "one": 1.0, "minus": -1.0, "two": 2.0, "half": 0.5}


def graph(text: str, outputs: tuple[str, ...] = ("y",), **constants: Any) -> ir.Model:
    known = {name: np.float32(value) for name, value in NUMBERS.items()} | constants
    return parse(text, outputs=outputs, **{name: value for name, value in known.items() if name in text})


def canonical(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, CanonicalizeSign()(after).count


def with_zeros(model: ir.Model, *values: float) -> Any:
    x = samples(model)
    for i, value in enumerate((0.0, -0.0, *values, *np.nextafter(np.float32(values), np.float32(9)))):
        x.flat[i::17] = value
    return x


CONV = "\ny = Conv(s, w)"


def test_fires_and_says_where_it_comes_from() -> None:
    model = graph("a = Greater(x, zero)\ns = Where(a, one, minus)" + CONV, w=weights(8, 4, 3, 3))
    after, modified = canonical(model)
    assert (modified, op_types(after)) == (1, ["Sign", "Conv"])
    sign = only(after, "Sign")
    assert sign.outputs[0].name == "s"
    assert sign.metadata_props == {SOURCE: "s", BEFORE: '["x"]', ZERO: "-1"}
    assert_same(model, to_binary(model)[0], with_zeros(model))


def test_a_threshold_is_subtracted_and_a_falling_step_negated() -> None:
    thresholds = eighths(4).reshape(4, 1, 1)
    for text, ops in (
        ("a = GreaterOrEqual(x, t)\ns = Where(a, one, minus)", ["Sub", "Sign"]),
        ("a = GreaterOrEqual(x, t)\ns = Where(a, minus, one)", ["Neg", "Sub", "Sign"]),
        ("a = Less(x, half)\ns = Where(a, one, minus)", ["Neg", "Sub", "Sign"]),
    ):
        model = graph(text + CONV, t=thresholds, w=weights(8, 4, 3, 3))
        after, _ = canonical(model)
        assert op_types(after) == [*ops, "Conv"]
        assert_same(model, to_binary(model)[0], with_zeros(model, 0.5, *thresholds.ravel()))


ROUNDED = "a = Sign(x)\nb = Mul(a, half)\nc = {}(b)\nd = Mul(c, two)\ns = {}(d, one)"

FORMS: dict[str, tuple[str, int]] = {
    "Ceil": (ROUNDED.format("Ceil", "Sub"), -1),
    "Floor": (ROUNDED.format("Floor", "Add"), 1),
    "Round": ("a = Sign(x)\nb = Mul(a, most)\ns = Round(b)", 0),
    "Max and Min of one number per channel": ("a = Sign(x)\nb = Mul(a, two)\nc = Max(b, low)\ns = Min(high, c)", 0),
    "Max, over 0": ("a = Greater(x, zero)\nb = Where(a, two, minus)\nc = Max(b, minus)\ns = Min(c, one)", -1),
    "assigned by masks": (
        "a = GreaterOrEqual(x, zero)\nb = Where(a, one, x)\nc = Less(x, zero)\ns = Where(c, minus, b)",
        1,
    ),
    "Ceil of a Clip": ("a = Clip(x, zero, one)\nb = Ceil(a)\nc = Mul(b, two)\ns = Sub(c, one)", -1),
    "through float16": ("a = Sign(x)\nb = Cast <to=10> (a)\ns = Cast <to=1> (b)", 0),
    "in float16": ("a = Cast <to=10> (x)\nb = Sign(a)\ns = Cast <to=1> (b)", 0),
    "in float64": ("a = Cast <to=11> (x)\nb = Sign(a)\ns = Cast <to=1> (b)", 0),
    "through int16": ("a = Sign(x)\nb = Cast <to=5> (a)\ns = Cast <to=1> (b)", 0),
    "through uint8": (
        "a = Greater(x, zero)\nb = Cast <to=2> (a)\nc = Cast <to=1> (b)\nd = Mul(c, two)\ns = Sub(d, one)",
        -1,
    ),
    "a power of -1": ("a = Less(x, zero)\nb = Cast <to=1> (a)\ns = Pow(minus, b)", 1),
    "a power of -1, of integers": ("a = LessOrEqual(x, zero)\nb = Cast <to=7> (a)\ns = Pow(minus, b)", -1),
    "a table": ("a = GreaterOrEqual(x, zero)\nb = Cast <to=7> (a)\ns = Gather(table, b)", 1),
    "HardSigmoid": ("a = Sign(x)\nb = Mul(a, nine)\nc = HardSigmoid(b)\nd = Mul(c, two)\ns = Sub(d, one)", 0),
}


@pytest.mark.parametrize("name", FORMS)
def test_any_elementwise_operator_of_a_sign(name: str) -> None:
    text, zero = FORMS[name]
    ones = np.ones((4, 1, 1), np.float32)
    numbers = {"most": np.float32(0.75), "nine": np.float32(9), "table": np.float32([-1, 1])}
    model = graph(text + CONV, w=weights(8, 4, 3, 3), low=-ones, high=ones, **numbers)
    after, _ = canonical(model)
    assert op_types(after) == ["Sign", "Conv"]
    sign = only(after, "Sign")
    assert int(sign.metadata_props.get(ZERO, "0")) == zero
    x = with_zeros(model)
    for value in (-1, 0, 1):  # what the sign gives at 0 can be seen
        sign.metadata_props[ZERO] = str(value)
        if value == 0:
            del sign.metadata_props[ZERO]
        expanded = copy(after)
        ExpandSign()(expanded)
        assert equal(run_float(expanded, x), run_float(model, x)) == (value == zero)
    if zero:
        assert_same(model, to_binary(model)[0], x)
    else:  # a bit has +1 at 0
        assert_same(model, to_binary(model)[0])


@pytest.mark.parametrize(
    "text",
    [
        "a = Abs(x)\ns = Div(x, a)",
        "a = Sigmoid(x)\nb = Round(a)\nc = Mul(b, two)\ns = Sub(c, one)",
        "a = Sigmoid(x)\nb = Add(a, half)\nc = Floor(b)\nd = Mul(c, two)\ns = Sub(d, one)",
    ],
)
def test_forms_that_round_near_zero_or_are_nothing_at_it(text: str) -> None:
    model = graph(text + CONV, w=weights(8, 4, 3, 3))
    after, _ = canonical(model)
    assert op_types(after)[-2:] == ["Sign", "Conv"]
    assert_same(model, to_binary(model)[0])


def test_a_thermometer_code() -> None:
    """One bit per threshold: x is compared with several numbers, which become channels."""
    code = "u = Unsqueeze(x, third)\na = GreaterOrEqual(u, t)\nb = Where(a, one, minus)\ns = Reshape(b, shape)"
    constants = {"third": np.array([2]), "shape": np.array([0, 12, 6, 6]), "w": weights(8, 12, 3, 3)}
    model = graph(code + CONV, t=np.float32([-0.5, 0, 0.5]).reshape(1, 1, 3, 1, 1), **constants)
    binary, left, _ = to_binary(model)
    assert not left
    assert_same(model, binary, with_zeros(model, -0.5, 0.5))
    x = samples(model)
    sign = next(node for node in binary.graph if node.op_type == "Binarize")
    before = read_before(sign.metadata_props)
    assert before is not None
    repeated = np.repeat(x[:, :, np.newaxis], 3, axis=2) - np.float32([-0.5, 0, 0.5]).reshape(3, 1, 1)
    np.testing.assert_array_equal(before.read({before.tensor: x[:, :, np.newaxis]}), repeated.reshape(-1, 12, 6, 6))


def test_a_factor_stays_behind_the_sign() -> None:
    model = graph(
        "a = Sign(x)\nb = Greater(a, minus)\nc = Where(b, half, q)\ns = Mul(c, two)" + CONV,
        q=np.float32(-0.5),
        w=weights(8, 4, 3, 3),
    )
    after, _ = canonical(model)
    assert op_types(after) == ["Sign", "Conv"], "0.5 * 2 is 1"
    model = graph(
        "a = GreaterOrEqual(x, zero)\ns = Where(a, half, q)" + CONV, q=np.float32(-0.5), w=weights(8, 4, 3, 3)
    )
    after, _ = canonical(model)
    assert op_types(after) == ["Sign", "Mul", "Conv"]
    assert_same(model, to_binary(model)[0], with_zeros(model))


@pytest.mark.parametrize(
    "text",
    [
        "a = Greater(x, zero)\ns = Where(a, one, zero)",  # 0 and 1
        "a = Greater(x, zero)\ns = Where(a, two, minus)",  # other magnitudes
        "a = Greater(x, half)\nb = Less(x, minus)\nc = Where(b, minus, zero)\ns = Where(a, one, c)",  # three values
        "a = Greater(x, half)\nb = Less(x, minus)\nc = Or(a, b)\ns = Where(c, one, minus)",  # up, down, up
        "a = Equal(x, zero)\ns = Where(a, minus, one)",  # only one number is different
        "a = Greater(x, zero)\nb = Mul(x, half)\ns = Where(a, x, b)",  # a leaky clip
        "a = Sign(x)\nb = Clip(x, minus)\nc = Sub(a, b)\nd = Clip(x, minus, two)\ns = Add(c, d)",
        "r = Neg(x)\na = Greater(x, r)\ns = Where(a, one, minus)",  # compared with data
        "a = Greater(x, mixed)\ns = Where(a, one, minus)\nu = Mul(s, updown)",  # up in some channels, down in others
    ],
)
def test_does_not_fire_on_what_is_no_sign(text: str) -> None:
    name = "u" if "updown" in text else "s"
    model = graph(
        f"{text}\ny = Relu({name})",
        mixed=np.zeros((4, 1, 1), np.float32),
        updown=np.float32([1, -1, 1, -1]).reshape(4, 1, 1),
    )
    after, modified = canonical(model)
    assert modified == (1 if name == "u" else 0), "the part before the mixture is a sign"
    if name == "s":
        assert op_types(after) == op_types(model)
    ExpandSign()(after)
    assert equal(run_float(after, with_zeros(model, 0.5, -1)), run_float(model, with_zeros(model, 0.5, -1)))


def test_does_not_fire_where_a_constant_gives_x_more_dimensions() -> None:
    model = parse(
        "a = Greater(x, t)\ns = Where(a, one, minus)\ny = Relu(s)",
        ("N", 1, 3, 3),
        t=np.zeros((4, 1, 1, 1, 1), np.float32),
        one=np.float32(1),
        minus=np.float32(-1),
    )
    assert canonical(model)[1] == 0


def test_fan_out_to_layers_and_to_something_float() -> None:
    """The sign is made once; what stays float still reads ±1 at 0, as in the source."""
    text = "a = Greater(x, zero)\ns = Where(a, one, minus)\ny = Conv(s, w)"
    text += "\nz = Conv <strides=[2,2]> (s, w)\nu = Mul(s, half)"
    model = graph(text, ("y", "z", "u"), w=weights(8, 4, 3, 3))
    binary = to_binary(model)[0]
    assert op_types(binary).count("Binarize") == 1
    assert "Sign" not in op_types(binary)
    assert_same(model, binary, with_zeros(model))


def test_a_sign_that_is_an_output() -> None:
    model = graph("a = Greater(x, zero)\ns = Where(a, one, minus)\ny = Conv(s, w)", ("y", "s"), w=weights(8, 4, 3, 3))
    assert_same(model, to_binary(model)[0], with_zeros(model))


def test_constants_shared_with_another_node() -> None:
    text = "a = Greater(x, t)\ns = Where(a, one, minus)\ny = Conv(s, w)\nz = Add(x, t)"
    model = graph(text, ("y", "z"), t=eighths(4).reshape(4, 1, 1), w=weights(8, 4, 3, 3))
    assert_same(model, to_binary(model)[0], with_zeros(model, *eighths(4)))


def test_expand_sign_leaves_the_sign_of_onnx() -> None:
    model = graph("s = Sign(x)\ny = Relu(s)")
    after = copy(model)
    assert ExpandSign()(after).count == 0
    assert op_types(after) == ["Sign", "Relu"]


@pytest.mark.parametrize(("zero", "op_type"), [("1", "GreaterOrEqual"), ("-1", "Greater")])
def test_expand_sign(zero: str, op_type: str) -> None:
    model = graph("s = Sign(x)\ny = Neg(s)\nz = Relu(s)", ("y", "z"))
    only(model, "Sign").metadata_props[ZERO] = zero
    after = copy(model)
    assert ExpandSign()(after).count == 1
    assert op_types(after) == [op_type, "Where", "Neg", "Relu"]
    (y, z), x = run_float(after, with_zeros(model)), with_zeros(model)
    assert np.array_equal(y, -np.where(x == 0, np.float32(zero), np.sign(x)))
    assert np.array_equal(z, np.maximum(-y, 0))
