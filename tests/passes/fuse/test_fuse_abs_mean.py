"""FuseAbsMean: the sign and the mean magnitude of a tensor from one reading. All sums are of sixteenths, and exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fuse.fold_threshold import FoldThreshold
from bnn_deploy.passes.fuse.fuse_abs_mean import FuseAbsMean
from bnn_deploy.passes.graph import constant
from bnn_deploy.provenance import SOURCE, output_key
from support.graphs import (
    Array,
    assert_same,
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

X = ("N", 4, 6, 6)
W, W2 = weights(8, 4, 3, 3), weights(8, 4, 3, 3, seed=1)
AXES = np.array([1], np.int64)
MEAN = "m = Abs({x})\na = ReduceMean(m, axes)"
CONV = "s = Sign({x})\ny = Conv <pads=[1,1,1,1]> (s, w)"
FUSED = ["BinarizeAbsMean", "BinaryConv"]
# gamma / sqrt(var + 0) is exact, and so is beta - mean * that.
NORM = "n = BatchNormalization <epsilon=0.0> (x, g, b, m0, v)"
NORM_CONSTANTS = {
    "g": np.array([1, -2, 0.5, 3], np.float32),
    "b": np.array([0.25, 0.5, -1, 0.125], np.float32),
    "m0": np.array([0.5, -1, 0, 0.25], np.float32),
    "v": np.array([1, 4, 0.25, 1], np.float32),
}


def model(text: str, outputs: tuple[str, ...] = ("y", "a"), **extra: Array) -> ir.Model:
    constants = {"w": W, "w2": W2, "axes": AXES} | extra
    return parse(text, X, outputs, **{name: value for name, value in constants.items() if name in text})


def fused(float_model: ir.Model) -> tuple[ir.Model, list[str]]:
    """The lowered model after the pass, and why something was declined."""
    after = lower(float_model)
    result = FuseAbsMean()(after)
    assert bool(result.count) == ("BinarizeAbsMean" in op_types(after))
    return after, [decline.reason for decline in result.declined]


def dyadic(float_model: ir.Model) -> Array:
    """Odd sixteenths: every sum of magnitudes is exact, and no pre-activation is 0, where a Sign is 0."""
    return np.round(samples(float_model) * 8) / np.float32(8) + np.float32(1 / 16)


def assert_fused(float_model: ir.Model) -> ir.Model:
    """It fires, nothing changes to the last bit, and each wrong constant is seen."""
    after, declined = fused(float_model)
    assert declined == []
    assert op_types(after) == FUSED
    x = dyadic(float_model)
    assert_same(float_model, after, x)
    expected = run_float(float_model, x)
    for place in (2, 3):
        wrong = copy(after)
        value = only(wrong, "BinarizeAbsMean").inputs[place]
        array = np.array(constant(value))
        array[0] += 1
        assert value is not None
        value.const_value = ir.tensor(array, name=value.name)
        assert not equal(run_binary(wrong, x, kernels=True), expected), place
    return after


FORMS = {
    "ReduceMean of Abs": "m = Abs(x)\na = ReduceMean(m, axes)",
    "a negative axis": "m = Abs(x)\na = ReduceMean(m, negative)",
    "without the dimension": "m = Abs(x)\nd = ReduceMean <keepdims=0> (m, axes)\na = Unsqueeze(d, axes)",
    "ReduceSum by Div": "m = Abs(x)\nd = ReduceSum(m, axes)\na = Div(d, four)",
    "ReduceL1 by Mul": "d = ReduceL1(x, axes)\na = Mul(quarter, d)",
    "ReduceL1 without the dimension": "d = ReduceL1 <keepdims=0> (x, axes)\ne = Div(d, four)\na = Unsqueeze(e, axes)",
}
NUMBERS = {"negative": np.array([-3]), "four": np.float32(4), "quarter": np.array([0.25], np.float32)}


@pytest.mark.parametrize("form", FORMS)
def test_fuses_every_form_of_the_mean(form: str) -> None:
    after = assert_fused(model(FORMS[form] + "\n" + CONV.format(x="x"), **NUMBERS))
    node = only(after, "BinarizeAbsMean")
    assert (node.metadata_props[SOURCE], node.metadata_props[output_key(SOURCE, 1)]) == ("s", "a")
    assert [value.name for value in node.outputs] == ["s_bits", "a"]
    assert [list(map(str, value.shape or [])) for value in node.outputs] == [["N", "6", "6", "1"], ["N", "1", "6", "6"]]


def test_fuses_before_opset_18() -> None:
    float_model = model(FORMS["ReduceMean of Abs"] + "\n" + CONV.format(x="x"))
    after = lower(float_model)
    mean = only(after, "ReduceMean")
    mean.resize_inputs(1)
    mean.attributes["axes"] = ir.AttrInt64s("axes", [1])
    assert FuseAbsMean()(after).count == 1
    assert_same(float_model, after, dyadic(float_model))


def test_folds_the_batch_norm_before_both() -> None:
    after = assert_fused(model(f"{NORM}\n{MEAN.format(x='n')}\n{CONV.format(x='n')}", **NORM_CONSTANTS))
    node = only(after, "BinarizeAbsMean")
    assert node.inputs[0] is after.graph.inputs[0]
    assert complemented_channels(after, "BinarizeAbsMean") == {1}
    assert np.array_equal(np.array(constant(node.inputs[2])), [1, -1, 1, 3])


def test_folds_where_the_mean_is_taken_before_the_batch_norm() -> None:
    """|x|, but sign(BatchNorm(x)): FoldThreshold has done its work before."""
    float_model = model(f"{NORM}\n{MEAN.format(x='x')}\n{CONV.format(x='n')}", **NORM_CONSTANTS)
    after = lower(float_model)
    assert FoldThreshold()(after).count == 1
    assert FuseAbsMean()(after).count == 1
    assert op_types(after) == FUSED
    assert_same(float_model, after, dyadic(float_model))


def test_does_not_fold_a_batch_norm_that_is_used_elsewhere() -> None:
    text = f"{NORM}\n{MEAN.format(x='n')}\n{CONV.format(x='n')}\nz = Relu(n)"
    float_model = model(text, ("y", "a", "z"), **NORM_CONSTANTS)
    after, declined = fused(float_model)
    assert declined == ["'n' (BatchNormalization) is used elsewhere too"]
    assert "BatchNormalization" in op_types(after)
    assert_same(float_model, after, dyadic(float_model))


def test_does_not_fold_a_falling_channel_before_a_pool_of_bits() -> None:
    text = f"{NORM}\n{MEAN.format(x='n')}\ns = Sign(n)\np = MaxPool <kernel_shape=[2,2]> (s)\ny = Conv(p, w)"
    float_model = model(text, **NORM_CONSTANTS)
    after, declined = fused(float_model)
    assert len(declined) == 1 and declined[0].startswith("channel 1 of BatchNormalization 'n' falls: its bits feed")
    assert_same(float_model, after, dyadic(float_model))


def test_does_not_fold_a_second_batch_norm() -> None:
    second = NORM.replace("n = ", "n2 = ").replace("(x,", "(n,")
    text = f"{NORM}\n{second}\n{MEAN.format(x='n2')}\n{CONV.format(x='n2')}"
    float_model = model(text, **NORM_CONSTANTS)
    after, _ = fused(float_model)
    assert FuseAbsMean()(after).declined[0].reason == "it stands before a BatchNorm that was folded already"
    assert op_types(after) == ["BatchNormalization", *FUSED]
    assert_same(float_model, after, dyadic(float_model))


@pytest.mark.parametrize(
    ("mean", "reason"),
    [
        ("m = Abs(x)\nd = ReduceMean <keepdims=0> (m, axes)\na = Relu(d)", "it drops the dimension of the channels"),
        ("m = Abs(x)\na = ReduceSum(m, axes)", "the sum is not divided by the number of channels, 4"),
        (
            "m = Abs(x)\nd = ReduceSum(m, axes)\na = Div(d, three)",
            "the sum is not divided by the number of channels, 4",
        ),
        ("m = Abs(x)\nd = ReduceSum(m, axes)\na = Div(four, d)", "the sum is not divided by the number of channels, 4"),
        (
            "d = ReduceL1(x, axes)\ne = Div(d, four)\na = Mul(d, e)",
            "the sum is not divided by the number of channels, 4",
        ),
    ],
)
def test_does_not_fuse_what_is_no_mean(mean: str, reason: str) -> None:
    after, declined = fused(model(mean + "\n" + CONV.format(x="x"), three=np.float32(3), **NUMBERS))
    assert "BinarizeAbsMean" not in op_types(after)
    assert len(declined) == 1 and declined[0].startswith(reason)


@pytest.mark.parametrize(
    "mean",
    [
        "m = Abs(x)\na = ReduceMean(m, wrong)",
        "m = Abs(x)\na = ReduceMean(m)",
        "m = Neg(x)\na = ReduceMean(m, axes)",
        "q = Relu(x)\nm = Abs(q)\na = ReduceMean(m, axes)",
    ],
)
def test_does_not_look_at_another_reduction(mean: str) -> None:
    float_model = model(mean + "\n" + CONV.format(x="x"), wrong=np.array([2]))
    after, declined = fused(float_model)
    assert "BinarizeAbsMean" not in op_types(after)
    assert declined == []


def test_shared_weights() -> None:
    """A negative gamma flips the weights of one of two layers, which have the same."""
    text = f"{NORM}\n{MEAN.format(x='n')}\n{CONV.format(x='n')}\nt = Sign(x)\nz = Conv(t, w)"
    float_model = model(text, ("y", "a", "z"), **NORM_CONSTANTS)
    after, declined = fused(float_model)
    assert declined == []
    assert sorted(op_types(after)) == sorted([*FUSED, "Binarize", "BinaryConv"])
    assert complemented_channels(after, "BinarizeAbsMean") == {1}
    assert_same(float_model, after, dyadic(float_model))


def test_fan_out_two_layers_and_two_users_of_the_mean() -> None:
    text = f"{MEAN.format(x='x')}\n{CONV.format(x='x')}\nz = Conv(s, w2)\nc = Relu(a)"
    float_model = model(text, ("y", "a", "z", "c"))
    after, declined = fused(float_model)
    assert declined == []
    assert sorted(op_types(after)) == sorted([*FUSED, "BinaryConv", "Relu"])
    assert_same(float_model, after, dyadic(float_model))


def test_the_sign_stays_for_what_is_float() -> None:
    text = f"{MEAN.format(x='x')}\n{CONV.format(x='x')}\nz = Relu(s)"
    float_model = model(text, ("y", "a", "z"))
    after, _ = fused(float_model)
    assert sorted(op_types(after)) == sorted([*FUSED, "Sign", "Relu"])
    assert_same(float_model, after, dyadic(float_model))


def test_a_bias_of_the_sign_is_folded_into_the_threshold_only() -> None:
    """ReActNet's sign(x - t) next to the mean of |x|."""
    float_model = model(f"{MEAN.format(x='x')}\nd = Sub(x, t)\n{CONV.format(x='d')}", t=eighths(1, 4, 1, 1))
    after = lower(float_model)
    assert FoldThreshold()(after).count == 1
    assert FuseAbsMean()(after).count == 1
    assert op_types(after) == FUSED
    assert_same(float_model, after, dyadic(float_model))
