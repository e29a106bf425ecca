"""LowerBinaryConv: which layers become BinaryConv, exactly, and which stay float, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from bnn_deploy.errors import InputError
from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.lower import layer
from bnn_deploy.passes.lower.layer import NotTwoValuedError, two_valued
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.outcome import Decline
from bnn_deploy.provenance import SOURCE
from support.graphs import (
    assert_same,
    copy,
    eighths,
    equal,
    only,
    op_types,
    parse,
    run_binary,
    run_float,
    samples,
    weights,
)

ATTRIBUTES = ("channels", "kernel_shape", "strides", "pads", "dilations", "group")


def lower(model: ir.Model) -> tuple[ir.Model, list[Decline], int]:
    """Run the pass on a copy and remove what it left dead."""
    after = copy(model)
    result = LowerBinaryConv()(after)
    common.RemoveUnusedNodesPass()(after)
    return after, result.declined, result.count


def fires(model: ir.Model, *expected: str, count: int = 1) -> ir.Model:
    """Check that the pass lowers `count` layers, leaves these operators, and changes nothing of the result."""
    after, declined, modified = lower(model)
    assert (modified, declined) == (count, [])
    assert op_types(after) == list(expected)
    assert_same(model, after)
    return after


def declines(model: ir.Model, reason: str) -> None:
    """Check that the pass leaves the model as it was, with this reason for its one layer."""
    after, declined, modified = lower(model)
    assert modified == 0
    assert [reason in decline.reason for decline in declined] == [True], declined
    assert op_types(after) == op_types(model)


GEOMETRIES: dict[str, tuple[str, tuple[int | str, ...], tuple[int, ...]]] = {
    "3x3": ("", ("N", 4, 6, 6), (8, 4, 3, 3)),
    "1x1": ("", ("N", 20, 3, 3), (5, 20, 1, 1)),
    "33 channels": ("", ("N", 33, 4, 4), (33, 33, 3, 3)),
    "zero padding": ("<pads=[2,2,2,2]>", ("N", 4, 6, 6), (8, 4, 5, 5)),
    "asymmetric pads": ("<pads=[0,1,2,0], strides=[2,1]>", ("N", 4, 6, 7), (8, 4, 3, 3)),
    "strides": ("<strides=[2,3]>", ("N", 4, 9, 9), (8, 4, 3, 3)),
    "dilations": ("<dilations=[2,1], pads=[1,0,1,0]>", ("N", 4, 8, 6), (8, 4, 3, 2)),
    "groups": ("<group=2, pads=[1,1,1,1]>", ("N", 6, 5, 5), (8, 3, 3, 3)),
    "depthwise": ("<group=5, pads=[1,1,1,1]>", ("N", 5, 5, 5), (5, 1, 3, 3)),
    "depthwise, multiplier 2": ("<group=5>", ("N", 5, 5, 5), (10, 1, 3, 3)),
    "1-D": ("<pads=[1,0], strides=[2]>", ("N", 7, 9), (3, 7, 3)),
    "explicit auto_pad": ('<auto_pad="NOTSET", pads=[1,1,1,1]>', ("N", 4, 6, 6), (8, 4, 3, 3)),
    "named batch of 3": ("", (3, 4, 6, 6), (8, 4, 3, 3)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", GEOMETRIES)
def test_lowers_a_convolution(case: str, bias: bool) -> None:
    attributes, x, shape = GEOMETRIES[case]
    constants = {"w": weights(*shape)} | ({"c": eighths(shape[0])} if bias else {})
    model = parse(f"s = Sign(x)\ny = Conv {attributes} (s, w{', c' if bias else ''})", x, **constants)
    after = fires(model, "Binarize", "BinaryConv")
    node = only(after, "BinaryConv")
    assert set(node.attributes) == set(ATTRIBUTES)
    assert node.attributes["channels"].as_int() == x[1]
    assert node.metadata_props[SOURCE] == "y"
    assert only(after, "Binarize").metadata_props[SOURCE] == "s"


LINEAR: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "Gemm": ("y = Gemm (s, w, c)", {"w": weights(8, 5)}, []),
    "Gemm, transB": ("y = Gemm <transB=1> (s, w, c)", {"w": weights(5, 8)}, []),
    "Gemm without bias": ("y = Gemm <transB=1> (s, w)", {"w": weights(5, 8)}, []),
    "Gemm, alpha and beta 1": ("y = Gemm <alpha=1.0, beta=1.0, transB=1> (s, w, c)", {"w": weights(5, 8)}, []),
    "MatMul": ("y = MatMul (s, w)", {"w": weights(8, 5)}, []),
    "MatMul, bias added": ("a = MatMul (s, w)\ny = Add(a, c)", {"w": weights(8, 5)}, ["Add"]),
}


@pytest.mark.parametrize("case", LINEAR)
def test_lowers_a_linear_layer(case: str) -> None:
    text, constants, rest = LINEAR[case]
    if "c" in text.split("(")[-1]:
        constants = constants | {"c": eighths(5)}
    model = parse(f"s = Sign(x)\n{text}", ("N", 8), **constants)
    fires(model, "Binarize", "Unsqueeze", "BinaryConv", "Flatten", *rest)


@pytest.mark.parametrize("flatten", ["f = Flatten(s)", "f = Reshape(s, shape)"])
@pytest.mark.parametrize("x", [("N", 3, 4, 5), ("N", 12, 5), ("N", 60, 1, 1)])
def test_a_linear_layer_after_a_map_is_a_convolution_over_all_of_it(flatten: str, x: tuple[int | str, ...]) -> None:
    shape = {"shape": np.array([-1, 60])} if "shape" in flatten else {}
    model = parse(f"s = Sign(x)\n{flatten}\ny = Gemm <transB=1> (f, w)", x, w=weights(7, 60), **shape)
    after = fires(model, "Binarize", "BinaryConv", "Flatten")
    assert list(only(after, "BinaryConv").attributes["kernel_shape"].as_ints()) == list(x[2:])


POOLS = {
    "plain": "kernel_shape=[2,2], strides=[2,2]",
    "overlapping": "kernel_shape=[3,3], strides=[2,2]",
    "padded": "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]",
    "asymmetric": "kernel_shape=[3,2], strides=[1,2], pads=[0,1,2,0]",
    "ceil_mode": "kernel_shape=[3,3], strides=[2,2], ceil_mode=1",
    "padded, ceil_mode": "kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1], ceil_mode=1",
    "dilated": "kernel_shape=[2,2], dilations=[2,3]",
}


@pytest.mark.parametrize("pool", POOLS)
def test_pools_of_signs_become_pools_of_bits(pool: str) -> None:
    model = parse(
        f"s = Sign(x)\np = MaxPool <{POOLS[pool]}> (s)\ny = Conv(p, w)", ("N", 4, 8, 8), w=weights(8, 4, 2, 2)
    )
    fires(model, "Binarize", "BinaryMaxPool", "BinaryConv")


def test_pool_then_flatten() -> None:
    model = parse(
        "s = Sign(x)\np = MaxPool <kernel_shape=[2,2], strides=[2,2]> (s)\nf = Flatten(p)\ny = MatMul(f, w)",
        w=weights(36, 5),
    )
    fires(model, "Binarize", "BinaryMaxPool", "BinaryConv", "Flatten")


def test_a_sign_that_feeds_two_convolutions_is_binarised_once() -> None:
    model = parse(
        """s = Sign(x)
        p = MaxPool <kernel_shape=[2,2]> (s)
        a = Conv(p, w1)
        b = Conv <dilations=[2,2]> (p, w2)
        y = Concat <axis=1> (a, b)
        z = Conv(s, w1)""",
        outputs=("z",),
        w1=weights(8, 4, 3, 3),
        w2=weights(8, 4, 2, 2, seed=1),
    )
    del model.graph.outputs[:]
    for name in ("a", "b", "z"):
        model.graph.outputs.append(next(o for n in model.graph for o in n.outputs if o.name == name))
    after, declined, modified = lower(model)
    assert (modified, declined) == (3, [])
    assert sorted(op_types(after)) == ["Binarize", *["BinaryConv"] * 3, "BinaryMaxPool"]
    assert_same(model, after)


def test_a_sign_that_also_feeds_something_float_stays_for_that() -> None:
    model = parse(
        "s = Sign(x)\ny = Conv(s, w)\nz = Mul(s, k)", outputs=("y", "z"), w=weights(8, 4, 3, 3), k=np.float32(3)
    )
    after = fires(model, "Binarize", "Sign", "BinaryConv", "Mul")
    assert only(after, "Sign").outputs[0].name == "s"


def test_a_sign_that_is_an_output_stays() -> None:
    fires(
        parse("s = Sign(x)\ny = Conv(s, w)", outputs=("y", "s"), w=weights(8, 4, 3, 3)),
        "Binarize",
        "Sign",
        "BinaryConv",
    )


def test_weights_shared_by_two_nodes() -> None:
    model = parse(
        "s = Sign(x)\nt = Neg(x)\nu = Sign(t)\ny = Conv(s, w, c)\nz = Conv <pads=[1,1,1,1]> (u, w, c)",
        outputs=("y", "z"),
        w=weights(8, 4, 3, 3),
        c=eighths(8),
    )
    after, declined, modified = lower(model)
    assert (modified, declined) == (2, [])
    assert_same(model, after)
    first, second = (node.inputs[1] for node in after.graph if node.op_type == "BinaryConv")
    assert first is not second, "each node has weights of its own: a later pass may flip the bits of one of them"


def test_weights_shared_with_a_layer_that_stays_float() -> None:
    model = parse("s = Sign(x)\ny = Conv(s, w)\nz = Conv(x, w)", outputs=("y", "z"), w=weights(8, 4, 3, 3))
    after, declined, modified = lower(model)
    assert (modified, declined) == (1, [])
    assert sorted(op_types(after)) == ["Binarize", "BinaryConv", "Conv"]
    assert run_float(model, samples(model))[1].shape[1] == 8
    assert equal([run_binary(after, samples(model), True)[0]], [run_float(model, samples(model))[0]])


def test_names_that_are_taken() -> None:
    """New tensors are named after the output; a graph that has these names already still converts."""
    model = parse(
        "s = Sign(x)\na = Conv(s, y_weight_bits, y_bias)\ny = Add(a, y_scale)\n"
        "y_new = Conv(s, y_weight_bits, s_threshold)\n"
        "a_map = Relu(y_new)",
        outputs=("y", "a_map"),
        y_weight_bits=weights(8, 4, 3, 3),
        y_bias=eighths(8),
        y_scale=np.float32(1),
        s_threshold=eighths(8, seed=1),
    )
    after, declined, modified = lower(model)
    assert (modified, declined) == (2, [])
    assert_same(model, after)


def test_two_layers_of_the_same_name() -> None:
    model = parse(
        "s = Sign(x)\ny = Conv(s, w)\nz = Conv(s, v)", outputs=("y", "z"), w=weights(8, 4, 3, 3), v=eighths(8, 4, 3, 3)
    )
    for node in model.graph:
        if node.op_type == "Conv":
            node.name = "conv"
    after, declined, modified = lower(model)
    assert modified == 1
    assert [d.node for d in declined] == ["conv"]
    assert {node.op_type for node in after.graph} == {"Binarize", "Sign", "BinaryConv", "Conv"}


def test_bits_and_scale_by_hand() -> None:
    w = np.float32([[[[0.25]], [[-0.25]], [[0.25]]], [[[-2]], [[-2]], [[2]]]])
    after = lower(parse("s = Sign(x)\ny = Conv(s, w, c)", ("N", 3, 1, 1), w=w, c=np.float32([1, -1])))[0]
    _, bits, scale, bias, pad_value = (constant(value) for value in only(after, "BinaryConv").inputs)
    np.testing.assert_array_equal(bits, np.array([0b101, 0b100], np.uint32).reshape(2, 1, 1, 1))
    np.testing.assert_array_equal(scale, np.float32([0.25, 2]))
    np.testing.assert_array_equal(bias, np.float32([1, -1]))
    np.testing.assert_array_equal(pad_value, np.float32([0]))


def test_weights_that_differ_by_rounding_are_two_valued() -> None:
    w = weights(8, 4, 3, 3) * np.random.default_rng(0).uniform(0.9998, 1.0002, (8, 4, 3, 3)).astype(np.float32)
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=w)
    after, declined, modified = lower(model)
    assert (modified, declined) == (1, [])
    scale = constant(only(after, "BinaryConv").inputs[2])
    np.testing.assert_allclose(scale, np.abs(w).mean(axis=(1, 2, 3)), rtol=1e-6)
    (expected,), (got,) = run_float(model, samples(model)), run_binary(after, samples(model), True)
    np.testing.assert_allclose(got, expected, atol=36 * 0.5 * 2e-4)
    real = w * np.random.default_rng(1).uniform(0.99, 1.01, w.shape).astype(np.float32)
    declines(parse("s = Sign(x)\ny = Conv(s, w)", w=real), "real-valued")


@pytest.mark.usefixtures("small_sums_pay")
@pytest.mark.parametrize(("value", "channels"), [(-1, 4), (1, 40), (1, 64)])  # words with unused bits, and without
def test_few_weights_with_padding_of_ones(value: int, channels: int) -> None:
    """A weight of exactly 0 in a network that pads its signs with -1, as BiDet does, or with +1."""
    w = weights(8, channels, 3, 2)
    w[5, 1:3, 0, 0] = 0
    pads, border = np.array([0, 0, 1, 0, 0, 0, 2, 1]), np.float32(value)
    model = parse(
        "s = Sign(x)\np = Pad(s, pads, border)\ny = Conv(p, w)", ("N", channels, 4, 5), w=w, pads=pads, border=border
    )
    complement = ["BitwiseXor"] * (value > 0)
    after = fires(model, "Binarize", *complement, "Pad", *complement, "BinaryConvBases")
    wrong = copy(after)
    amounts = only(wrong, "Pad").inputs[1]
    assert amounts is not None
    amounts.const_value = ir.tensor(np.array([0, 2, 0, 0, 0, 1, 1, 0]), name=amounts.name)
    assert not equal(run_binary(wrong, samples(model), kernels=True), run_float(model, samples(model)))


@pytest.mark.parametrize(("kernel", "few", "enough"), [((1, 1), 95, 96), ((3, 3), 22, 23), ((1, 3), 66, 67)])
def test_takes_several_passes_only_where_they_pay(kernel: tuple[int, int], few: int, enough: int) -> None:
    """Ternary weights take two binary convolutions: of 48 products each, or 100 where the kernel is larger than 1x1."""
    for channels in (few, enough):
        w = weights(8, channels, *kernel)
        w[0, 0] = 0
        ternary = parse("s = Sign(x)\ny = Conv(s, w)", ("N", channels, 3, 4), w=w)
        if channels == enough:
            fires(ternary, "Binarize", "BinaryConvBases")
            continue
        products = few * kernel[0] * kernel[1]
        declines(ternary, f"it takes 2 binary convolutions of {products} products per output; with fewer than")
        signs = parse("s = Sign(x)\ny = Conv(s, w)", ("N", few, 3, 4), w=weights(8, few, *kernel))
        fires(signs, "Binarize", "BinaryConv")  # one pass is always taken


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "real-valued weights": (
        "y = Conv(s, w)",
        {"w": np.random.default_rng(0).standard_normal((8, 4, 3, 3), np.float32)},
        "its weights are real-valued: filter 0 has |w| from",
    ),
    "one real-valued filter": (
        "y = Conv(s, w)",
        {
            "w": np.concatenate(
                [weights(7, 4, 3, 3), weights(1, 4, 3, 3) * np.linspace(1, 2, 36, dtype=np.float32).reshape(1, 4, 3, 3)]
            )
        },
        "filter 7 has |w| from 0.5 to 1",
    ),
    "NaN": ("y = Conv(s, w)", {"w": np.full((8, 4, 3, 3), np.nan, np.float32)}, "filter 0 holds NaN or infinity"),
    "auto_pad": (
        'y = Conv <auto_pad="SAME_UPPER"> (s, w)',
        {"w": weights(8, 4, 3, 3)},
        "auto_pad = SAME_UPPER: export with explicit pads",
    ),
    "auto_pad VALID": ('y = Conv <auto_pad="VALID"> (s, w)', {"w": weights(8, 4, 3, 3)}, "auto_pad = VALID"),
    "weights computed from data": (
        "v = Mul(w, k)\ny = Conv(s, v)",
        {"w": weights(8, 4, 3, 3)},
        "its weights are not constant",
    ),
    "weights that are an input": ("y = Conv(s, k4)", {}, "its weights are not constant"),
    "a bias that is an input": ("y = Conv(s, w, k1)", {"w": weights(8, 4, 3, 3)}, "its bias is not constant"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_does_not_lower(case: str) -> None:
    text, constants, reason = REFUSED[case]
    inputs = ", ".join(
        text_type
        for text_type in ("float[1] k", "float[8,4,3,3] k4", "float[8] k1")
        if text_type.split()[1] + ")" in text
    )
    declines(parse(f"s = Sign(x)\n{text}", inputs=inputs, **constants), reason)


def test_does_not_lower_weights_that_are_an_input_with_a_default() -> None:
    """An initializer that is also a graph input may be overridden by the caller."""
    declines(
        parse("s = Sign(x)\ny = Conv(s, w)", inputs="float[8,4,3,3] w", w=weights(8, 4, 3, 3)),
        "its weights are not constant",
    )


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("y = Gemm <alpha=0.5> (s, w)", weights(8, 5), "alpha, beta or transA"),
        ("y = Gemm <beta=2.0> (s, w, c)", weights(8, 5), "alpha, beta or transA"),
        ("y = Gemm <transA=1> (s, w)", weights(6, 5), "alpha, beta or transA"),
        ("y = Gemm (s, w, c2)", weights(8, 5), "its bias has shape [1, 5], not [5]"),
        ("y = MatMul (s, w)", weights(3, 8, 5), "its weights have 3 dimensions, not 2"),
    ],
)
def test_does_not_lower_what_is_no_linear_layer(text: str, weight: Any, reason: str) -> None:
    constants = {name: value for name, value in {"c": eighths(5), "c2": eighths(1, 5)}.items() if f" {name})" in text}
    declines(parse(f"s = Sign(x)\n{text}", (6, 8), w=weight, **constants), reason)


def test_does_not_lower_a_product_over_the_last_of_three_dimensions() -> None:
    """With as many channels as positions the numbers fit, but MatMul sums over positions; LowerLinear takes it."""
    after, declined, count = lower(parse("s = Sign(x)\ny = MatMul(s, w)", ("N", 8, 8), w=weights(8, 5)))
    assert (op_types(after), declined, count) == (["Sign", "MatMul"], [], 0)
    text = "s = Sign(x)\np = MaxPool <kernel_shape=[1]> (s)\ny = MatMul(p, w)"
    declines(parse(text, ("N", 8, 8), w=weights(8, 5)), "3 dimensions")


def test_does_not_lower_four_spatial_dimensions() -> None:
    model = parse("s = Sign(x)\ny = Conv(s, w)", ("N", 2, 4, 4, 2, 2), w=weights(3, 2, 2, 2, 2, 2))
    declines(model, "it has 4 spatial dimensions; BinaryConv has 1 to 3")
    flat = parse("s = Sign(x)\nf = Flatten(s)\ny = MatMul(f, w)", ("N", 2, 2, 2, 2, 2), w=weights(32, 3))
    declines(flat, "it flattens 4 spatial dimensions")


def test_does_not_lower_unknown_channels() -> None:
    declines(
        parse("s = Sign(x)\ny = Conv(s, w)", ("N", "C", 6, 6), w=weights(8, 4, 3, 3)),
        "the shape of its input is unknown",
    )


def test_does_not_lower_sums_that_float32_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=weights(8, 4, 3, 3))
    monkeypatch.setattr(layer, "MAX_TERMS", 36)
    declines(model, "each output sums 36 products")
    monkeypatch.setattr(layer, "MAX_TERMS", 37)
    fires(model, "Binarize", "BinaryConv")


def test_does_not_look_through_a_pool_that_it_cannot_express() -> None:
    declines(
        parse(
            's = Sign(x)\np = MaxPool <kernel_shape=[2,2], auto_pad="SAME_UPPER"> (s)\ny = Conv(p, w)',
            w=weights(8, 4, 3, 3),
        ),
        "MaxPool 'p' has an index output, auto_pad, or pads or strides beyond what the operators take",
    )
    model = parse("s = Sign(x)\np, i = MaxPool <kernel_shape=[2,2]> (s)\ny = Conv(p, w)", w=weights(8, 4, 3, 3))
    declines(model, "MaxPool 'p' has an index output, auto_pad, or pads or strides beyond what the operators take")


@pytest.mark.parametrize(
    "text",
    [
        "y = Conv(x, w)",
        "a = AveragePool <kernel_shape=[1,1]> (s)\ny = Conv(a, w)",
        "a = Add(s, s)\ny = Conv(a, w)",
        "a = Mul(s, x)\ny = Conv(a, w)",
    ],
)
def test_does_not_look_at_layers_without_a_sign(text: str) -> None:
    after, declined, modified = lower(
        parse(f"s = Sign(x)\n{text}\nz = Relu(s)", outputs=("y", "z"), w=weights(8, 4, 3, 3))
    )
    assert (modified, declined) == (0, [])
    assert "Binarize" not in op_types(after)


def test_an_all_zero_filter_is_an_error_that_names_layer_and_filter() -> None:
    w = weights(8, 4, 3, 3)
    w[[3, 6]] = 0
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=w)
    only(model, "Conv").name = "features.4.conv"
    with pytest.raises(InputError, match=r"Conv 'features\.4\.conv': filter 3 \(and 1 more\) is all zeros"):
        lower(model)


def test_two_valued() -> None:
    signs, alpha = two_valued(np.float32([[0.5, -0.5], [-3, -3]]))
    assert signs.tolist() == [[True, False], [False, False]]
    assert alpha.tolist() == [0.5, 3]
    for bad in ([[0.5, -0.6]], [[0.5, 0]], [[np.inf, 1]], [[np.nan, 1]]):
        with pytest.raises(NotTwoValuedError):
            two_valued(np.float32(bad))
    with pytest.raises(InputError, match="filter 1 is all zeros"):
        two_valued(np.float32([[1, 1], [0, 0]]))


def test_the_comparison_sees_one_flipped_bit() -> None:
    """What `assert_same` relies on, once by hand: one weight bit of 288, seen at every position of its filter."""
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=weights(8, 4, 3, 3))
    after = lower(model)[0]
    value = only(after, "BinaryConv").inputs[1]
    assert value is not None
    signs = np.moveaxis(weights(8, 4, 3, 3) > 0, 1, -1).copy()
    signs[2, 1, 1, 3] ^= True
    value.const_value = ir.tensor(pack_bits(signs), name=value.name)
    (expected,), (got,) = run_float(model, samples(model)), run_binary(after, samples(model), True)
    wrong = (expected != got).any(axis=(0, 2, 3))
    assert np.flatnonzero(wrong).tolist() == [2]
    assert (np.abs(expected - got)[:, 2] == 1).all()  # 2 * alpha
