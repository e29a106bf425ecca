"""FoldBatchNorm: alpha behind a binary convolution."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from bnn_deploy.passes.fuse.fold_batch_norm import FoldBatchNorm
from bnn_deploy.passes.fuse.fuse_factor import FuseFactor
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.lower.lower_linear import LowerLinear
from bnn_deploy.provenance import SOURCE
from support.graphs import Array, assert_same, batch_norm, copy, eighths, lower, only, op_types, parse, weights

X = ("N", 4, 6, 6)
CONV = "s = Sign(x)\nc = Conv(s, w)\n"
ALPHA = (np.random.default_rng(3).uniform(-1, 1, (1, 8, 1, 1))).astype(np.float32)


def model(text: str, outputs: tuple[str, ...] = ("y",), **constants: Array) -> ir.Model:
    return lower(parse(text, X, outputs, w=weights(8, 4, 3, 3, alpha=1), **constants))


def folded(before: ir.Model) -> ir.Model:
    after = copy(before)
    FoldBatchNorm()(after)
    return after


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (8, 1, 1), (1,), (), (1, 1, 1, 1)])
@pytest.mark.parametrize("product", ["Mul(c, alpha)", "Mul(alpha, c)"])
def test_folds_any_alpha_exactly(shape: tuple[int, ...], product: str) -> None:
    alpha = ALPHA.reshape(shape) if 8 in shape else ALPHA.flat[:1].reshape(shape)
    before = model(f"{CONV}y = {product}", alpha=alpha)
    after = folded(before)
    assert op_types(after) == ["Binarize", "BinaryConv"]
    node = only(after, "BinaryConv")
    assert node.metadata_props[SOURCE] == node.outputs[0].name == "y"
    assert_same(before, after)
    wrong = copy(after)
    scale = only(wrong, "BinaryConv").inputs[2]
    assert scale is not None
    scale.const_value = ir.tensor(np.nextafter(np.array(constant(scale)), np.float32(2)), name=scale.name)
    with pytest.raises(AssertionError, match="kernels"):
        assert_same(before, wrong)


def test_does_not_fold_a_shift_behind_a_factor() -> None:
    text = "s = Sign(x)\nc = Conv <pads=[1,1,1,1]> (s, w)\nk = ReduceMax(x, axes)\nd = Mul(c, k)\ny = Add(d, beta)"
    after = copy(model(text, beta=eighths(1, 8, 1, 1), axes=np.array([1])))
    assert FuseFactor()(after).count == 1
    assert FoldBatchNorm()(after).count == 0


def test_folds_behind_a_bias_and_behind_a_factor() -> None:
    text = "s = Sign(x)\nc = Conv <pads=[1,1,1,1]> (s, w, b)\nk = ReduceMax(x, axes)\nd = Mul(c, k)\ny = Mul(d, alpha)"
    powers = np.float32([1, 2, 0.5, -1, 4, -0.25, 1, 8]).reshape(1, 8, 1, 1)  # no rounding
    before = model(text, b=eighths(8), axes=np.array([1]), alpha=powers)
    after = copy(before)
    assert FuseFactor()(after).count == 1
    assert FoldBatchNorm()(after).count == 1
    assert sorted(op_types(after)) == ["Binarize", "BinaryConvScaled", "ReduceMax"]
    assert_same(before, after)


@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (1, 1, 1, 4), (1, 1, 4, 1)])
def test_does_not_fold_a_constant_that_is_not_per_filter(shape: tuple[int, ...]) -> None:
    after = folded(model(f"{CONV}y = Mul(c, alpha)", alpha=eighths(*shape)))
    assert "Mul" in op_types(after)


def test_does_not_fold_into_a_convolution_that_is_used_elsewhere() -> None:
    after = folded(model(f"{CONV}y = Mul(c, alpha)\nz = Relu(c)", ("y", "z"), alpha=ALPHA))
    assert "Mul" in op_types(after)


def test_shared_weights_keep_their_scales() -> None:
    before = model(f"{CONV}y = Mul(c, alpha)\nd = Conv(s, w)\nz = Relu(d)", ("y", "z"), alpha=ALPHA)
    # As another exporter writes it: both layers read one scale.
    first, second = (node for node in before.graph if node.op_type == "BinaryConv")
    second.replace_input_with(2, first.inputs[2])
    after = folded(before)
    assert "Mul" not in op_types(after)
    assert_same(before, after)


def test_fan_out_two_products_of_two_convolutions() -> None:
    before = model(f"{CONV}y = Mul(c, alpha)\nd = Conv(s, w)\nz = Mul(alpha, d)", ("y", "z"), alpha=ALPHA)
    after = folded(before)
    assert "Mul" not in op_types(after)
    assert_same(before, after)


TOKENS = "s = Sign(x)\nc = MatMul(s, w)\n"


@pytest.mark.parametrize("text", ["y = Add(c, b)", "y = Add(b, c)", "d = Mul(c, alpha)\ny = Sub(d, b)"])
def test_folds_behind_a_linear_layer_on_tokens(text: str) -> None:
    before = parse(TOKENS + text, ("N", 5, 40), w=weights(40, 6), b=eighths(6), alpha=np.float32(4))
    assert LowerLinear()(before).count == 1
    common.RemoveUnusedNodesPass()(before)
    after = folded(before)
    assert op_types(after) == ["BinarizeChannelsLast", "BinaryLinear"]
    assert only(after, "BinaryLinear").metadata_props[SOURCE] == "y"
    assert_same(before, after)


@pytest.mark.parametrize("shape", [(6, 1), (2, 1, 1), (2, 6, 6)])
def test_does_not_fold_what_is_per_token(shape: tuple[int, ...]) -> None:
    before = parse(f"{TOKENS}y = Add(c, b)", (2, 6, 40), w=weights(40, 6), b=eighths(*shape))
    assert LowerLinear()(before).count == 1
    assert FoldBatchNorm()(before).count == 0


def test_does_not_fold_a_batch_norm_over_tokens() -> None:
    before = parse(f"{TOKENS}y = BatchNormalization(c, g, b, m, v)", ("N", 5, 40), w=weights(40, 6), **batch_norm(5))
    assert LowerLinear()(before).count == 1
    assert FoldBatchNorm()(before).count == 0
