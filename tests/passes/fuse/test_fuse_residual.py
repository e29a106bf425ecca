"""FuseResidual: binary convolution, shortcut and the next binarisation in one node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fuse.fuse_residual import FuseResidual
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.provenance import SOURCE, output_key
from support.graphs import (
    copy,
    eighths,
    lower,
    only,
    op_types,
    parse,
    run_binary,
    run_float,
    same_bits,
    samples,
    weights,
)

X = ("N", 8, 6, 6)
W, W2, B = weights(8, 8, 3, 3), weights(8, 8, 3, 3, seed=1), eighths(8)
CONV = "Conv <pads=[1,1,1,1]> "
BLOCK = f"s = Sign(x)\nc = {CONV} (s, w, b)\na = Add(c, x)\n"


def fused(text: str, outputs: tuple[str, ...] = ("y",)) -> tuple[ir.Model, ir.Model, list[str]]:
    """The lowered model, the fused one, and why some Adds were declined."""
    before = lower(parse(text, X, outputs=outputs, w=W, w2=W2, b=B))
    after = copy(before)
    result = FuseResidual()(after)
    return before, after, [decline.reason for decline in result.declined]


def wrong(model: ir.Model, place: int) -> ir.Model:
    broken = copy(model)
    value = next(n for n in broken.graph if n.op_type == "BinaryConvResidual").inputs[place]
    assert value is not None
    array = np.array(constant(value))
    array[0] = array[0] ^ 1 if array.dtype == np.uint32 else array[0] + 0.5
    value.const_value = ir.tensor(array, name=value.name)
    return broken


@pytest.mark.parametrize("kernels", [False, True])
def test_fuses_a_block_and_the_next_sign(kernels: bool) -> None:
    before, after, declined = fused(BLOCK + f"t = Sign(a)\ny = {CONV} (t, w2)")
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryConvResidual", "BinaryConv"]
    node = only(after, "BinaryConvResidual")
    assert (node.metadata_props[SOURCE], node.metadata_props[output_key(SOURCE, 1)]) == ("a", "t")
    assert same_bits(before, after, kernels)
    for place in (1, 2, 3, 6):  # weights, scale, bias, threshold
        assert not same_bits(before, wrong(after, place), kernels), place


def test_fuses_with_the_shortcut_on_the_left() -> None:
    before, after, _ = fused(BLOCK.replace("Add(c, x)", "Add(x, c)") + f"t = Sign(a)\ny = {CONV} (t, w2)")
    assert "BinaryConvResidual" in op_types(after)
    assert same_bits(before, after, True)


def test_fan_out_the_float_and_the_bits_are_both_used() -> None:
    before, after, declined = fused(BLOCK + f"t = Sign(a)\nd = {CONV} (t, w2, b)\ny = Add(d, a)")
    assert op_types(after) == ["Binarize", "BinaryConvResidual", "BinaryConv", "Add"]
    assert declined == ["no sign reads it"]
    assert same_bits(before, after, True)
    assert not same_bits(before, wrong(after, 2), True)


def test_two_signs_of_one_sum() -> None:
    text = f"t = Sign(a)\nu = Sign(a)\nd = {CONV} (t, w2)\ne = {CONV} (u, w)\ny = Add(d, e)"
    before, after, _ = fused(BLOCK + text)
    assert op_types(after)[:2] == ["Binarize", "BinaryConvResidual"]
    assert same_bits(before, after, True)


def test_does_not_fuse_a_convolution_that_is_used_elsewhere() -> None:
    _, after, declined = fused(f"s = Sign(x)\nc = {CONV} (s, w, b)\na = Add(c, x)\ny = Mul(a, c)")
    assert "BinaryConvResidual" not in op_types(after)
    assert declined == ["'c' is used elsewhere too"]


def test_does_not_fuse_a_broadcast_operand() -> None:
    _, after, declined = fused(f"s = Sign(x)\nc = {CONV} (s, w, b)\nr = ReduceMean(x)\ny = Add(c, r)")
    assert "BinaryConvResidual" not in op_types(after)
    assert declined == ["its operand 'r' is broadcast, or of unknown shape"]


def test_shared_weights() -> None:
    text = f"t = Sign(a)\nd = {CONV} (t, w, b)\ne = Add(d, a)\nu = Sign(e)\ny = {CONV} (u, w)"
    before, after, _ = fused(BLOCK + text)
    assert op_types(after).count("BinaryConvResidual") == 2
    assert same_bits(before, after, True)


HARD_TANH = f"h = Clip(a, minus, one)\nq = Sub(h, shift)\nt = Sign(q)\nd = {CONV} (t, w2)\ny = Add(d, h)"


@pytest.mark.parametrize("kernels", [False, True])
def test_a_hard_tanh_between_the_sum_and_the_sign_stays_for_the_next_shortcut(kernels: bool) -> None:
    constants = {"one": np.float32(1), "minus": np.float32(-1), "shift": eighths(8, 1, 1) + np.float32(1 / 16)}
    model = parse(BLOCK + HARD_TANH, X, w=W, w2=W2, b=B, **constants)
    after, _, not_fused = to_binary(model)
    assert op_types(after) == ["Binarize", "BinaryConvResidual", "Clip", "BinaryConv", "Add"]
    assert not [left for left in not_fused if left.node == "a"]
    x = samples(model)
    expected = run_float(model, x)[0]
    np.testing.assert_array_equal(run_binary(after, x, kernels)[0], expected)
    assert not np.array_equal(run_binary(wrong(after, 6), x, kernels)[0], expected)


def test_does_not_fuse_behind_a_function_that_falls() -> None:
    text = BLOCK + f"h = Mul(a, falls)\nt = Sign(h)\nd = {CONV} (t, w2)\ny = Add(d, h)"
    before = lower(parse(text, X, w=W, w2=W2, b=B, falls=np.float32(-1)))
    after = copy(before)
    assert "a" in [decline.node for decline in FuseResidual()(after).declined]
    assert op_types(after) == op_types(before)
