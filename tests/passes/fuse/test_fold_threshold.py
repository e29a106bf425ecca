"""FoldThreshold: what stands before a sign goes into its threshold, exactly; bisection against brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnn_deploy.passes.fuse.fold_threshold import FoldThreshold
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.monotone import bisect_threshold, float_to_ordered, monotone, ordered_to_float
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.provenance import set_complemented
from support.graphs import (
    HALVES,
    assert_same,
    batch_norm,
    complemented_channels,
    copy,
    eighths,
    equal,
    lower,
    only,
    op_types,
    parse,
    run_binary,
    run_float,
    samples,
    weights,
)

Floats = NDArray[np.float32]


def folds(model: ir.Model, *expected: str, modified: int = 1) -> ir.Model:
    """Check that the pass leaves these operators and changes nothing of the result."""
    after = lower(model)
    result = FoldThreshold()(after)
    assert (result.count, result.declined) == (modified, [])
    assert op_types(after) == list(expected)
    assert_same(model, after)
    return after


def declines(model: ir.Model, reason: str, modified: int = 0) -> ir.Model:
    """Check that the pass stops with this reason, and that what it left is still right."""
    after = lower(model)
    result = FoldThreshold()(after)
    assert result.count == modified
    assert [reason in decline.reason for decline in result.declined] == [True], result.declined
    assert_same(model, after)
    return after


CONV = "s = Sign(f)\ny = Conv <pads=[1,1,1,1]> (s, w)"
W = weights(8, 4, 3, 3)
C = np.float32([0.3, -0.7, 1.25, 0.01]).reshape(4, 1, 1)

# What stands before the Sign; its constants; the channels that fall.
FOLDED: dict[str, tuple[str, dict[str, Any], set[int]]] = {
    "BatchNorm": ("f = BatchNormalization(x, g, b, m, v)", batch_norm(4), set()),
    "BatchNorm, epsilon 0.1": ("f = BatchNormalization <epsilon=0.1> (x, g, b, m, v)", batch_norm(4), set()),
    "BatchNorm, negative gamma": (
        "f = BatchNormalization(x, g, b, m, v)",
        batch_norm(4, gamma=[1, -1, -0.5, 2]),
        {1, 2},
    ),
    "BatchNorm, gamma 0": ("f = BatchNormalization(x, g, b, m, v)", batch_norm(4, gamma=[1, 0, -1, 0]), {2}),
    "two BatchNorms": (
        "a = BatchNormalization(x, g, b, m, v)\nf = BatchNormalization(a, g, b, m, v)",
        batch_norm(4, gamma=[1, -1, -0.5, 2]),
        set(),
    ),
    "Relu, BatchNorm": ("a = Relu(x)\nf = BatchNormalization(a, g, b, m, v)", batch_norm(4), set()),
    "Relu, BatchNorm, negative gamma": (
        "a = Relu(x)\nf = BatchNormalization(a, g, b, m, v)",
        batch_norm(4, gamma=[1, -1, -0.5, 2]) | {"b": np.float32([0.2, 0.1, 0.4, -0.3])},
        {1, 2},
    ),
    "BatchNorm, LeakyRelu": ("a = BatchNormalization(x, g, b, m, v)\nf = LeakyRelu(a)", batch_norm(4), set()),
    "LeakyRelu, Add": ("a = LeakyRelu <alpha=0.2> (x)\nf = Add(a, c)", {"c": C}, set()),
    "PRelu per channel, Add": (
        "a = PRelu(x, p)\nf = Add(a, c)",
        {"c": C, "p": np.float32([0.25, 0, 2, 1]).reshape(4, 1, 1)},
        set(),
    ),
    "PRelu of one slope, Add": ("a = PRelu(x, p)\nf = Add(a, c)", {"c": C, "p": np.float32([0.25])}, set()),
    "Clip": (
        "a = Clip(x, low, high)\nf = Sub(a, c)",
        {"c": C / 4, "low": np.float32(-1), "high": np.float32(1)},
        set(),
    ),
    "Clip above": ("a = Clip(x, , high)\nf = Sub(a, c)", {"c": C / 4, "high": np.float32(0.5)}, set()),
    "Clip below": ("a = Clip(x, low)\nf = Sub(a, c)", {"c": C, "low": np.float32(-1)}, set()),
    "Clip that leaves one sign": ("a = Clip(x, low)\nf = Sub(a, c)", {"c": C, "low": np.float32(0.25)}, set()),
    "Mul [C,1,1]": ("f = Mul(x, c)", {"c": C}, {1}),
    "Mul [1,C,1,1]": ("f = Mul(x, c)", {"c": C[None]}, {1}),
    "Mul scalar": ("f = Mul(x, c)", {"c": np.float32(-2)}, {0, 1, 2, 3}),
    "Mul [1], on the left": ("f = Mul(c, x)", {"c": np.float32([-2])}, {0, 1, 2, 3}),
    "Add [C,1,1]": ("f = Add(x, c)", {"c": C}, set()),
    "Add [1,C,1,1], on the left": ("f = Add(c, x)", {"c": C[None]}, set()),
    "Add scalar": ("f = Add(x, c)", {"c": np.float32(0.3)}, set()),
    "Sub": ("f = Sub(x, c)", {"c": C}, set()),
    "Sub, constant on the left": ("f = Sub(c, x)", {"c": C[None]}, {0, 1, 2, 3}),
    "Div [C,1,1]": ("f = Div(x, c)", {"c": C}, {1}),
    "Div scalar, Add": ("a = Div(x, d)\nf = Add(a, c)", {"c": C, "d": np.float32(3)}, set()),
    "Neg, Add": ("a = Neg(x)\nf = Add(a, c)", {"c": C}, {0, 1, 2, 3}),
    "Identity": ("f = Identity(x)", {}, set()),
    "learned shift, scale, shift": (
        "a = Add(x, c)\nd = Mul(a, k)\nf = Add(d, e)",
        {"c": C, "k": eighths(4, 1, 1) + np.float32(0.1), "e": C[::-1].copy()},
        set(np.flatnonzero(eighths(4) + 0.1 < 0).tolist()),
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folds(case: str) -> None:
    text, constants, falling = FOLDED[case]
    after = folds(parse(f"{text}\n{CONV}", w=W, **constants), "Binarize", "BinaryConv", modified=text.count("\n") + 1)
    assert complemented_channels(after) == falling


@pytest.mark.parametrize(
    "case", ["BatchNorm, negative gamma", "Relu, BatchNorm", "Sub, constant on the left", "PRelu of one slope, Add"]
)
@pytest.mark.parametrize("x", [("N", 4), ("N", 4, 9)])
def test_folds_in_other_ranks(case: str, x: tuple[int | str, ...]) -> None:
    text, constants, falling = FOLDED[case]
    constants = {
        name: value.reshape((4,) + (1,) * (len(x) - 2)) if name == "c" else value for name, value in constants.items()
    }
    layer = "y = MatMul(s, w)" if len(x) == 2 else "y = Conv(s, w)"
    w = weights(4, 5) if len(x) == 2 else weights(5, 4, 3)
    after = lower(parse(f"{text}\ns = Sign(f)\n{layer}", x, w=w, **constants))
    assert FoldThreshold()(after).declined == []
    assert_same(parse(f"{text}\ns = Sign(f)\n{layer}", x, w=w, **constants), after, samples(after, 100))
    assert complemented_channels(after) == falling


NEGATIVE = batch_norm(6, gamma=[1, -1, -0.5, 2, -1, 1])
NORM = "f = BatchNormalization(x, g, b, m, v)\ns = Sign(f)\n"

CONSUMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero padding": ("y = Conv <pads=[2,0,1,1]> (s, w)", {"w": weights(8, 6, 3, 3)}),
    "groups": ("y = Conv <group=3, pads=[1,1,1,1]> (s, w)", {"w": weights(6, 2, 3, 3)}),
    "depthwise": ("y = Conv <group=6, pads=[1,1,1,1]> (s, w)", {"w": weights(12, 1, 3, 3)}),
    "linear after flatten": ("a = Flatten(s)\ny = MatMul(a, w)", {"w": weights(6 * 36, 5)}),
    "two consumers": (
        "a = Conv(s, w)\nd = Conv(s, u)\ny = Concat <axis=1> (a, d)",
        {"w": weights(8, 6, 3, 3), "u": weights(4, 6, 3, 3, seed=1)},
    ),
    "two consumers of the same weights": (
        "a = Conv(s, w)\nd = Conv <pads=[1,1,1,1]> (s, w)\ny = Flatten(a)\nz = Flatten(d)",
        {"w": weights(8, 6, 3, 3)},
    ),
}


@pytest.mark.parametrize("case", CONSUMERS)
def test_falling_channels_are_complemented_in_every_consumer(case: str) -> None:
    text, constants = CONSUMERS[case]
    model = parse(NORM + text, ("N", 6, 6, 6), ("y", "z") if "z =" in text else ("y",), **constants, **NEGATIVE)
    after = lower(model)
    result = FoldThreshold()(after)
    assert (result.count, result.declined) == (1, [])
    assert complemented_channels(after) == {1, 2, 4}
    assert_same(model, after)


def test_falling_channels_through_the_unsqueeze_of_two_linear_layers() -> None:
    model = parse(
        NORM + "y = MatMul(s, w)\nz = MatMul(s, u)", ("N", 6), ("y", "z"), w=weights(6, 5), u=weights(6, 3), **NEGATIVE
    )
    after = lower(model)
    assert FoldThreshold()(after).declined == []
    assert complemented_channels(after) == {1, 2, 4}
    assert_same(model, after, samples(model, 50))


@pytest.mark.parametrize("pad", [[1], [-1], [1, 1, -1, 1, -1, -1]])
@pytest.mark.parametrize("group", [1, 2])
def test_falling_channels_flip_what_one_padding_holds(pad: list[int], group: int) -> None:
    """No pass makes one-padding yet, so it is put in by hand, and the operators before and after are compared."""
    before = lower(
        parse(
            NORM + f"y = Conv <pads=[1,2,2,1], group={group}> (s, w)",
            ("N", 6, 6, 6),
            w=weights(8, 6 // group, 3, 3),
            **NEGATIVE,
        )
    )
    value = only(before, "BinaryConv").inputs[4]
    assert value is not None
    value.const_value, value.shape = ir.tensor(np.float32(pad), name=value.name), ir.Shape([len(pad)])
    after = copy(before)
    assert FoldThreshold()(after).declined == []
    assert constant(only(after, "BinaryConv").inputs[4]).tolist() == (np.ones(6) * pad * [1, -1, -1, 1, -1, 1]).tolist()
    assert_same(before, after)
    wrong = copy(after)
    target = only(wrong, "BinaryConv").inputs[4]
    assert target is not None
    target.const_value = value.const_value
    target.shape = value.shape
    assert not equal(run_binary(wrong, samples(before), True), run_binary(before, samples(before), True))


def test_complementing_twice_is_recorded_as_not_at_all() -> None:
    text = "a = Neg(x)\nb = Neg(a)\nf = Mul(b, c)"
    after = folds(parse(f"{text}\n{CONV}", w=W, c=C), "Binarize", "BinaryConv", modified=3)
    assert complemented_channels(after) == {1}
    set_complemented(only(after, "Binarize"), set())
    assert only(after, "Binarize").metadata_props.keys() == {"bnn_deploy.source"}


DECLINED: dict[str, tuple[str, dict[str, Any], str]] = {
    "PRelu, negative slope": (
        "f = PRelu(x, p)",
        {"p": np.float32([0.1, -0.1, 2, 1]).reshape(4, 1, 1)},
        "channel 1 of PRelu 'f' has a negative slope, so it is not monotone",
    ),
    "LeakyRelu, negative slope": (
        "f = LeakyRelu <alpha=-0.1> (x)",
        {},
        "channel 0 of LeakyRelu 'f' has a negative slope",
    ),
    "PRelu per position": (
        "f = PRelu(x, p)",
        {"p": np.ones((6,), np.float32)},
        "shape [6], which is not one value per channel",
    ),
    "Mul per column": (
        "f = Mul(x, c)",
        {"c": np.float32([1, 1, 2, 1, -1, 1])},
        "shape [6], which is not one value per channel",
    ),
    "Mul per column by extreme numbers": (
        "f = Mul(x, c)",
        {"c": np.float32([1, 1, 1e-40, 1, 1, 1])},
        "shape [6], which is not one value per channel",
    ),
    "Add per pixel": ("f = Add(x, c)", {"c": eighths(1, 4, 6, 6) + np.float32(0.01)}, "not one value per channel"),
    "constant over data": ("f = Div(c, x)", {"c": C}, "it divides by data, which is not monotone"),
    "BatchNorm in training mode": (
        "f, p, q = BatchNormalization <training_mode=1> (x, g, b, m, v)",
        batch_norm(4),
        "training mode: export the model in eval mode",
    ),
    "BatchNorm of an input": (
        "f = BatchNormalization(x, k, b, m, v)",
        {n: a for n, a in batch_norm(4).items() if n != "g"},
        "the parameters of BatchNormalization are not constant",
    ),
    "Clip to an input": ("f = Clip(x, l)", {}, "the bounds of Clip are not constant"),
}


def test_leaves_out_positive_factors_per_position() -> None:
    """Two of XNOR-Net++'s vectors, in front of a sign that nothing shifts."""
    text = "e = Mul(x, c)\nf = Mul(r, e)"
    factors = {"c": np.float32([1, 2, 0.1, 3, 1, 1]), "r": np.float32([1, 2, 0.3, 1, 1, 9]).reshape(6, 1)}
    folds(parse(f"{text}\n{CONV}", w=W, **factors), "Binarize", "BinaryConv", modified=2)
    shifted = f"{text}\ng = Add(f, k)\n{CONV.replace('(f)', '(g)')}"
    declines(parse(shifted, w=W, k=C, **factors), "which is not one value per channel", modified=1)


@pytest.mark.parametrize("case", [name for name in DECLINED if "input" not in name and "training" not in name])
def test_does_not_fold(case: str) -> None:
    text, constants, reason = DECLINED[case]
    after = declines(parse(f"{text}\n{CONV}", w=W, **constants), reason)
    assert text.split("=")[1].split("(")[0].split("<")[0].strip() in op_types(after)


@pytest.mark.parametrize("case", [name for name in DECLINED if "input" in name or "training" in name])
def test_does_not_fold_what_is_not_known(case: str) -> None:
    text, constants, reason = DECLINED[case]
    inputs = "float[4] k" if " k," in text else "float l" if " l)" in text else ""
    after = lower(parse(f"{text}\n{CONV}", inputs=inputs, w=W, **constants))
    result = FoldThreshold()(after)
    assert result.count == 0
    assert [reason in decline.reason for decline in result.declined] == [True], result.declined


def test_does_not_fold_division_by_zero() -> None:
    after = lower(parse(f"f = Div(x, c)\n{CONV}", w=W, c=np.float32([1, 0, 2, 3]).reshape(4, 1, 1)))
    assert ["channel 1 is divided by 0" in d.reason for d in FoldThreshold()(after).declined] == [True]


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Sub"])
def test_does_not_fold_a_residual(op_type: str) -> None:
    """Both sides are data: not even looked at, and not wrong."""
    model = parse(f"a = Relu(x)\nd = Abs(x)\nf = {op_type}(d, x)\ng = Add(f, c)\ns = Sign(g)\ny = Conv(s, w)", w=W, c=C)
    after = lower(model)
    result = FoldThreshold()(after)
    assert (result.count, result.declined) == (1, [])  # the Add of a constant, and no further
    assert op_type in op_types(after)
    assert_same(model, after)


def test_does_not_fold_an_average_pool() -> None:
    model = parse(
        f"a = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)\nf = Add(a, c)\n{CONV}", w=W, c=C
    )
    after = folds(model, "AveragePool", "Binarize", "BinaryConv")
    assert complemented_channels(after) == set()


def test_does_not_fold_what_is_used_elsewhere() -> None:
    constants = {"w": W, **batch_norm(4)}
    text = "f = BatchNormalization(x, g, b, m, v)\n" + CONV
    after = declines(
        parse(text + "\nz = Relu(f)", outputs=("y", "z"), **constants), "'f' (BatchNormalization) is used elsewhere"
    )
    assert op_types(after) == ["BatchNormalization", "Binarize", "BinaryConv", "Relu"]
    declines(parse(text, outputs=("y", "f"), **constants), "'f' (BatchNormalization) is used elsewhere")
    # A sign that also feeds something float stays, and so does what is before it.
    declines(
        parse(text + "\nz = Flatten(s)", outputs=("y", "z"), **constants), "'f' (BatchNormalization) is used elsewhere"
    )


def test_constants_shared_with_other_nodes_stay_as_they_are() -> None:
    """Two BatchNorms of the same parameters, one of which folds with complemented channels and one that stays."""
    constants = batch_norm(4, gamma=[1, -1, -0.5, 2])
    model = parse(
        f"f = BatchNormalization(x, g, b, m, v)\n{CONV}\nz = BatchNormalization(x, g, b, m, v)",
        outputs=("y", "z"),
        w=W,
        **constants,
    )
    after = lower(model)
    assert FoldThreshold()(after).count == 1
    assert sorted(op_types(after)) == ["BatchNormalization", "Binarize", "BinaryConv"]
    (y, z), (got_y, got_z) = run_float(model, samples(model)), run_binary(after, samples(model), True)
    assert equal([got_y], [y])
    np.testing.assert_allclose(got_z, z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tail", ["p = MaxPool <kernel_shape=[2,2]> (s)\ny = Conv(p, w)"])
def test_does_not_complement_what_a_pool_reads(tail: str) -> None:
    """The complement of an OR is an AND. Rising channels fold."""
    text = "f = BatchNormalization(x, g, b, m, v)\ns = Sign(f)\n" + tail
    reason = "channel 1 of BatchNormalization 'f' falls: its bits feed BinaryMaxPool"
    after = declines(parse(text, w=W, **batch_norm(4, gamma=[1, -1, -0.5, 2])), reason)
    assert op_types(after) == ["BatchNormalization", "Binarize", "BinaryMaxPool", "BinaryConv"]
    folds(parse(text, w=W, **batch_norm(4)), "Binarize", "BinaryMaxPool", "BinaryConv")


def test_does_not_complement_for_one_of_two_consumers() -> None:
    model = parse(
        NORM + "p = MaxPool <kernel_shape=[2,2]> (s)\ny = Conv(p, w)\nz = Conv(s, w)",
        outputs=("y", "z"),
        w=W,
        **batch_norm(4, gamma=[1, -1, -0.5, 2]),
    )
    after = lower(model)
    assert [d.reason for d in FoldThreshold()(after).declined] != []
    assert_same(model, after)


@pytest.mark.parametrize("op_type", ["Add", "Mul"])
def test_does_not_fold_a_constant_that_makes_more_channels(op_type: str) -> None:
    """[N, 1, H, W] and [C, 1, 1] give C channels: the threshold would have more channels than the data."""
    after = declines(
        parse(f"f = {op_type}(x, c)\n{CONV}", ("N", 1, 6, 6), w=W, c=C),
        f"{op_type} 'f' broadcasts its data to more channels",
    )
    assert op_types(after) == [op_type, "Binarize", "BinaryConv"]


def test_does_not_fold_a_clip_of_an_old_opset() -> None:
    """Before opset 11 the bounds are attributes; a Clip without inputs must not pass for one without bounds."""
    after = lower(parse(f"a = Relu(x)\nf = Add(a, c)\n{CONV}", w=W, c=C))
    node = only(after, "Relu")
    node.op_type = "Clip"
    node.attributes.add(ir.AttrFloat32("min", 0.0))
    assert ["attributes" in d.reason for d in FoldThreshold()(after).declined] == [True]


def chain(case: str, threshold: Floats) -> Callable[[Floats], NDArray[np.bool_]]:
    """The predicate of a case of FOLDED: x [4] float32 -> bool [4]."""
    text, constants, _ = FOLDED[case]
    model = parse(f"{text}\n{CONV}", w=W, **constants)
    functions: list[Any] = [monotone(node, 4) for node in model.graph if node.op_type not in ("Sign", "Conv")]

    def predicate(x: Floats) -> NDArray[np.bool_]:
        for function in functions:
            x = function(x)
        assert x.dtype == np.float32
        return x >= threshold

    return predicate


@pytest.mark.parametrize("case", FOLDED)
def test_thresholds_agree_with_the_chain_on_every_half(case: str) -> None:
    predicate = chain(case, np.float32([0, 0.5, -0.25, 0]))
    with np.errstate(over="ignore"):
        threshold, falling = bisect_threshold(predicate, 4)
        bits = np.array([predicate(np.full(4, x)) for x in HALVES[::7]])
    np.testing.assert_array_equal(bits, (HALVES[::7, None] >= threshold) ^ falling)
    # At the threshold itself, on both sides: one float off would be seen here.
    for channel in np.flatnonzero(np.isfinite(threshold)):
        at = threshold[channel]
        before = np.nextafter(at, np.float32(-np.inf))
        assert predicate(np.full(4, at))[channel] != falling[channel]
        assert predicate(np.full(4, before))[channel] == falling[channel]


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(
    gamma=moderate,
    beta=moderate,
    mean=moderate,
    var=st.floats(0, 1e6, width=32),
    x=st.lists(floats, min_size=1, max_size=20),
)
def test_batch_norm_threshold_property(gamma: float, beta: float, mean: float, var: float, x: list[float]) -> None:
    a = np.float32(gamma) / np.sqrt(np.float32(var) + np.float32(1e-5))
    b = np.float32(beta) - np.float32(mean) * a

    def predicate(values: Floats) -> NDArray[np.bool_]:
        return values * a + b >= 0

    with np.errstate(over="ignore"):
        threshold, falling = bisect_threshold(predicate, 1)
        values = np.float32([*x, 0, -0.0])
        near = ordered_to_float(
            np.clip(float_to_ordered(threshold[0]) + np.arange(-3, 4), -(2**31) + 2**23, 2**31 - 2**23 - 1)
        )
        values = np.concatenate([values, near[np.isfinite(near)]])
        np.testing.assert_array_equal(predicate(values), (values >= threshold) ^ falling)


@pytest.mark.parametrize("pool", ["p = MaxPool <kernel_shape=[2,2]> (a)", "p = Identity(a)"])
def test_folds_a_sign_of_a_sign(pool: str) -> None:
    model = parse(f"a = Sign(x)\n{pool}\ns = Sign(p)\ny = Conv(s, w)", w=weights(8, 4, 3, 3))
    binary = to_binary(model)[0]
    assert "Sign" not in op_types(binary)
    assert_same(model, binary)
