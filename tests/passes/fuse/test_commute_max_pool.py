"""CommuteMaxPool: binarise, then pool bits; with FoldThreshold, BatchNorm on either side of the pool."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fuse.commute_max_pool import CommuteMaxPool
from bnn_deploy.passes.fuse.fold_threshold import FoldThreshold
from bnn_deploy.provenance import COMPLEMENTED, SOURCE, complemented
from support.graphs import (
    assert_same,
    batch_norm,
    copy,
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

W = weights(8, 4, 2, 2)
X = ("N", 4, 9, 9)
NEGATIVE = batch_norm(4, gamma=[1, -1, -0.5, 2])
NORM = "BatchNormalization({}, g, b, m, v)"

POOLS = {
    "2/2": "kernel_shape=[2,2], strides=[2,2]",
    "3/2": "kernel_shape=[3,3], strides=[2,2]",
    "padded": "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]",
    "asymmetric pads": "kernel_shape=[2,3], strides=[2,1], pads=[0,2,1,0]",
    "ceil_mode": "kernel_shape=[2,2], strides=[2,2], ceil_mode=1",
    "padded, ceil_mode": "kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1], ceil_mode=1",
    "dilated": "kernel_shape=[2,2], dilations=[3,2]",
    "explicit auto_pad": 'kernel_shape=[2,2], auto_pad="NOTSET"',
}


def passes(model: ir.Model, rounds: int = 3) -> tuple[ir.Model, list[str]]:
    """Lower, then fold and commute in turn; return what the last round declined, too."""
    after = lower(model)
    declined: list[str] = []
    for _ in range(rounds):
        results = [FoldThreshold()(after), CommuteMaxPool()(after)]
        declined = [d.reason for result in results for d in result.declined]
    return after, declined


@pytest.mark.parametrize("pool", POOLS)
def test_pools_bits(pool: str) -> None:
    model = parse(f"p = MaxPool <{POOLS[pool]}> (x)\ns = Sign(p)\ny = Conv(s, w)", X, w=W)
    after = lower(model)
    result = CommuteMaxPool()(after)
    assert (result.count, result.declined) == (1, [])
    assert op_types(after) == ["Binarize", "BinaryMaxPool", "BinaryConv"]
    assert_same(model, after)
    # The bits that stand for the float graph's sign are now the pool's.
    assert only(after, "BinaryMaxPool").metadata_props[SOURCE] == "s"
    assert SOURCE not in only(after, "Binarize").metadata_props


def test_a_pool_with_another_window_is_seen() -> None:
    model = parse(
        "p = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)\ns = Sign(p)\ny = Conv(s, w)", X, w=W
    )
    after, _ = passes(model)
    assert_same(model, after)
    only(after, "BinaryMaxPool").attributes["pads"] = ir.AttrInt64s("pads", [2, 1, 0, 1])
    assert not equal(run_binary(after, samples(model), True), run_float(model, samples(model)))


@pytest.mark.parametrize("norm", [batch_norm(4), NEGATIVE, batch_norm(4, gamma=[1, 0, -1, 0])])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_behind_the_pool(norm: dict[str, np.ndarray], relu: bool) -> None:
    """A falling channel is complemented at the pool: the stored bits are those of the pooled values."""
    before = "r = Relu(x)\n" if relu else ""
    text = f"{before}p = MaxPool <kernel_shape=[3,3], strides=[2,2]> ({'r' if relu else 'x'})\nf = {NORM.format('p')}\n"
    model = parse(text + "s = Sign(f)\ny = Conv(s, w)", X, w=W, **norm)
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryMaxPool", "BinaryConv"]
    assert_same(model, after)
    assert complemented(only(after, "BinaryMaxPool")) == set(np.flatnonzero(norm["g"] < 0).tolist())
    assert COMPLEMENTED not in only(after, "Binarize").metadata_props


def test_batch_norm_before_the_pool_folds_where_it_rises() -> None:
    text = f"f = {NORM.format('x')}\np = MaxPool <kernel_shape=[2,2], strides=[2,2]> (f)\ns = Sign(p)\ny = Conv(s, w)"
    model = parse(text, X, w=W, **batch_norm(4))
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryMaxPool", "BinaryConv"]
    assert_same(model, after)


def test_does_not_fold_a_negative_gamma_before_the_pool() -> None:
    """Across the pool a negative gamma turns the maximum into a minimum."""
    text = f"f = {NORM.format('x')}\np = MaxPool <kernel_shape=[2,2], strides=[2,2]> (f)\ns = Sign(p)\ny = Conv(s, w)"
    model = parse(text, X, w=W, **NEGATIVE)
    after, declined = passes(model)
    assert ["channel 1 of BatchNormalization 'f' falls: its bits feed BinaryMaxPool" in r for r in declined] == [True]
    assert op_types(after) == ["BatchNormalization", "Binarize", "BinaryMaxPool", "BinaryConv"]
    assert_same(model, after)


def test_negative_gammas_on_both_sides_of_the_pool() -> None:
    text = f"e = {NORM.format('x')}\np = MaxPool <kernel_shape=[2,2], strides=[2,2]> (e)\nf = {NORM.format('p')}\n"
    model = parse(text + "s = Sign(f)\ny = Conv(s, w)", X, w=W, **NEGATIVE)
    after, declined = passes(model)
    assert len(declined) == 1
    assert op_types(after) == ["BatchNormalization", "Binarize", "BinaryMaxPool", "BinaryConv"]
    assert_same(model, after)


def test_two_pools_in_a_row() -> None:
    text = "p = MaxPool <kernel_shape=[2,2]> (x)\nq = MaxPool <kernel_shape=[3,3], strides=[2,2]> (p)\n"
    model = parse(text + "s = Sign(q)\ny = Conv(s, w)", X, w=W)
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryMaxPool", "BinaryMaxPool", "BinaryConv"]
    assert_same(model, after)
    assert [node.metadata_props.get(SOURCE) for node in after.graph][:3] == [None, None, "s"]


def test_a_sign_that_feeds_two_convolutions() -> None:
    text = f"p = MaxPool <kernel_shape=[2,2]> (x)\nf = {NORM.format('p')}\ns = Sign(f)\n"
    model = parse(text + "y = Conv(s, w)\nz = Conv <pads=[1,1,1,1]> (s, w)", X, ("y", "z"), w=W, **NEGATIVE)
    after, declined = passes(model)
    assert declined == []
    assert sorted(op_types(after)) == ["Binarize", "BinaryConv", "BinaryConv", "BinaryMaxPool"]
    assert_same(model, after)


def test_does_not_commute_a_pool_that_is_used_elsewhere() -> None:
    text = "p = MaxPool <kernel_shape=[2,2]> (x)\ns = Sign(p)\ny = Conv(s, w)"
    for model in (parse(text + "\nz = Relu(p)", X, ("y", "z"), w=W), parse(text, X, ("y", "p"), w=W)):
        after, declined = passes(model)
        assert declined == ["MaxPool 'p' is used elsewhere too"]
        assert "BinaryMaxPool" not in op_types(after)
        assert_same(model, after)


def test_does_not_commute_a_pool_that_two_signs_read() -> None:
    """Shared: both Binarize read the same pool, each with its own thresholds."""
    text = f"p = MaxPool <kernel_shape=[2,2]> (x)\nf = {NORM.format('p')}\ns = Sign(f)\nt = Sign(p)\n"
    model = parse(text + "y = Conv(s, w)\nz = Conv(t, w)", X, ("y", "z"), w=W, **NEGATIVE)
    after, declined = passes(model)
    assert declined == ["MaxPool 'p' is used elsewhere too"] * 2
    assert_same(model, after)


@pytest.mark.parametrize(
    "text", ["p, i = MaxPool <kernel_shape=[2,2]> (x)", 'p = MaxPool <kernel_shape=[2,2], auto_pad="SAME_LOWER"> (x)']
)
def test_does_not_commute_an_index_output_or_auto_pad(text: str) -> None:
    used = "\nz = Cast <to=1> (i)" if "i =" in text else ""
    model = parse(f"{text}\ns = Sign(p)\ny = Conv(s, w){used}", X, ("y", "z") if used else ("y",), w=W)
    after, declined = passes(model)
    assert declined == ["MaxPool 'p' has an index output, auto_pad, or pads or strides beyond what the operators take"]
    assert "MaxPool" in op_types(after)
    assert_same(model, after)


@pytest.mark.parametrize("op_type", ["AveragePool", "LpPool"])
def test_does_not_commute_other_pools(op_type: str) -> None:
    model = parse(
        f"p = {op_type} <kernel_shape=[2,2]> (x)\nf = {NORM.format('p')}\ns = Sign(f)\ny = Conv(s, w)",
        X,
        w=W,
        **NEGATIVE,
    )
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == [op_type, "Binarize", "BinaryConv"]
    assert_same(model, after)


@pytest.mark.parametrize("x", [("N", 4, 9), ("N", 4, 4, 5, 4)])
def test_other_ranks(x: tuple[int | str, ...]) -> None:
    rank = len(x) - 2
    pool = f"p = MaxPool <kernel_shape={[2] * rank}, strides={[2] * rank}> (x)\ns = Sign(p)\n"
    features = 4 * 4 if rank == 1 else 4 * 2 * 2 * 2
    model = parse(pool + "f = Flatten(s)\ny = MatMul(f, w)", x, w=weights(features, 5))
    if rank == 3:  # no BinaryConv of three dimensions, so no bits that could be pooled
        after = copy(model)
        assert CommuteMaxPool()(after).count == 0
        assert op_types(after) == op_types(model)
        return
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryMaxPool", "BinaryConv", "Flatten"]
    assert_same(model, after)
