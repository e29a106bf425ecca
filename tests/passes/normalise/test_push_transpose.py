"""PushTranspose: a channels-last network becomes a channels-first one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy import convert, verify
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.normalise.push_transpose import PushTranspose
from bnn_deploy.passes.pipeline import fold, to_binary
from bnn_deploy.report.summary import binary_layers
from bnn_deploy.source.latent_weights import float_model
from support.author_networks import larq
from support.graphs import (
    assert_same,
    batch_norm,
    copy,
    eighths,
    equal,
    only,
    op_types,
    parse,
    run_float,
    samples,
    weights,
)

FIRST, LAST = "Transpose <perm=[0,3,1,2]>", "Transpose <perm=[0,2,3,1]>"
"""To channels first, and to channels last."""


def push(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, PushTranspose()(after).count


def check(model: ir.Model, transposes: int) -> ir.Model:
    """It gives the same floats, with so many Transposes; with a constant in its old order it does not."""
    after, modified = push(model)
    assert modified
    assert op_types(after).count("Transpose") == transposes
    assert agree(after, model)
    return after


def agree(after: ir.Model, model: ir.Model) -> bool:
    """Whether two float models give the same, on multiples of 1/8, whose sums are exact in any order."""
    x = np.round(samples(model) * 8) / 8
    return equal(run_float(after, x), run_float(model, x))


# What stands between two Transposes, on [N, 6, 6, 4] channels last.
BETWEEN = {
    "a chain of unary operators": "a = Relu(n)\nb = Clip(a, low, high)\nc = Tanh(b)\nm = Neg(c)",
    "BatchNorm as Mul and Add": "a = Mul(n, g)\nm = Add(a, last)",
    "a constant per channel and one per position": "a = Sub(g, n)\nm = Div(a, full)",
    "PRelu": "m = PRelu(n, g)",
    "the straight-through trick": "a = Sign(n)\nb = Clip(n, low, high)\nc = Sub(a, b)\nm = Add(c, b)",
    "a learned threshold with Expand": "h = Shape(n)\ne = Expand(g, h)\nm = Sub(n, e)",
    "a sign by Where": "a = Greater(n, g)\nm = Where(a, one, low)",
    "two operands with the same Transpose": "a = Abs(n)\nm = Add(a, n)",
    "Pad of the second and third dimension": "m = Pad(n, pads)",
    "Pad by axes": "m = Pad(n, some, one, axes)",
    "Pad by reflection": 'm = Pad <mode="reflect"> (n, pads)',
    "Concat along the channels": "a = Neg(n)\nm = Concat <axis=3> (n, a)",
    "Concat along the width, from behind": "a = Neg(n)\nm = Concat <axis=-2> (n, a)",
    "a mean over the channels that stays a dimension": "a = Abs(n)\nm = ReduceMean <keepdims=1> (a, channels)",
    "a gate of its own": "a = ReduceMean <keepdims=1> (n, spatial)\nb = Sigmoid(a)\nm = Mul(n, b)",
}


@pytest.mark.parametrize("name", BETWEEN)
def test_fires(name: str) -> None:
    pool = "MaxPool <kernel_shape=[1,1]>"  # stands for a layer: it is channels first
    text = f"a0 = {FIRST} (x)\nc0 = {pool} (a0)\nn = {LAST} (c0)\n{BETWEEN[name]}\nt = {FIRST} (m)\ny = {pool} (t)"
    values = {
        "low": np.float32(-1),
        "high": np.float32(1),
        "one": np.float32(1),
        "g": np.float32([0.5, -1, 2, 1]),
        "last": eighths(1, 1, 1, 4),
        "full": np.where(eighths(6, 6, 4) > 0, 2, 0.5).astype(np.float32),
        "pads": np.array([0, 1, 2, 0, 0, 1, 0, 0]),
        "some": np.array([1, 2, 3, 0]),
        "axes": np.array([-3, 2]),
        "channels": np.array([-1]),
        "spatial": np.array([1, 2]),
    }
    model = parse(text, ("N", 6, 6, 4), **{key: value for key, value in values.items() if key in text})
    after = check(model, transposes=1)
    assert only(after, "Transpose").inputs[0] is after.graph.inputs[0]


def test_a_constant_in_the_old_order_is_seen() -> None:
    model = parse(f"n = {LAST} (x)\nm = Mul(n, g)\ny = {FIRST} (m)\nz = Neg(y)", outputs=("z",), g=eighths(4))
    after = check(model, transposes=0)
    operand = only(after, "Mul").inputs[1]
    assert operand is not None and np.shape(constant(operand)) == (1, 4, 1, 1)
    operand.const_value = ir.tensor(np.roll(constant(operand), 1, axis=1), name=operand.name)  # type: ignore[arg-type]
    assert not agree(after, model)


def test_the_mean_over_the_map_needs_no_transpose() -> None:
    text = f"n = {LAST} (x)\na = ReduceMean <keepdims=0> (n, axes)\ny = Neg(a)"
    after = check(parse(text, axes=np.array([1, 2])), transposes=0)
    assert op_types(after) == ["ReduceMean", "Neg"]


@pytest.mark.parametrize("flatten", ["f = Flatten(n)", "f = Reshape(n, shape)"])
@pytest.mark.parametrize("linear", ["y = MatMul(s, w)", "y = Gemm <transB=1> (s, v, bias)"])
@pytest.mark.parametrize(
    "between",
    [
        "s = Identity(f)",
        "s = Sign(f)",
        "a = BatchNormalization(f, g, b, m, v2)\ns = Sign(a)",
        "a = Mul(f, g)\nc = Add(a, row)\nd = Greater(c, zero)\ne = Cast <to=1> (d)\nk = Sub(e, one)\ns = Add(e, k)",
    ],
)
def test_flatten_before_a_linear_layer(flatten: str, linear: str, between: str) -> None:
    norm = batch_norm(60)
    values = norm | {
        "v2": norm["v"],
        "shape": np.array([-1, 60]),
        "w": weights(60, 7),
        "v": weights(7, 60),
        "bias": eighths(7),
        "row": eighths(1, 60) + np.float32(1 / 16),
        "one": np.float32(1),
        "zero": np.float32(0),
    }
    text = f"n = {LAST} (x)\n{flatten}\n{between}\n{linear}"
    read = {word.strip("(), ") for word in text.replace("(", " ").split()}
    model = parse(text, ("N", 5, 3, 4), **{key: value for key, value in values.items() if key in read})
    fold(model)
    after = check(model, transposes=0)
    linear_node = next(node for node in after.graph if node.op_type in ("MatMul", "Gemm"))
    value = linear_node.inputs[1]
    assert value is not None
    value.const_value = ir.tensor(np.array(constant(value))[::-1].copy(), name=value.name)
    assert not agree(after, model)


def test_one_channel_needs_only_a_reshape() -> None:
    text = f"t = {FIRST} (x)\nc = Conv(t, w)\nn = {LAST} (c)\nr = Relu(n)\nt2 = {FIRST} (r)\ny = Conv(t2, w2)"
    model = parse(text, ("N", 6, 6, 1), w=weights(4, 1, 3, 3), w2=weights(2, 4, 3, 3))
    after = check(model, transposes=0)
    assert op_types(after)[0] == "Reshape"


def test_the_output_keeps_its_layout_and_name() -> None:
    text = f"t = {FIRST} (x)\nc = Conv(t, w)\nn = {LAST} (c)\nr = Relu(n)\nt2 = {FIRST} (r)\nc2 = Conv(t2, w2)"
    model = parse(f"{text}\ny = {LAST} (c2)", ("N", 6, 6, 3), w=weights(4, 3, 3, 3), w2=weights(2, 4, 3, 3))
    after = check(model, transposes=2)
    assert after.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    "text",
    [
        f"n = {LAST} (x)\ny = Relu(n)",  # the model's output would be in another layout
        f"n = {LAST} (x)\ny = MatMul(n, w)",  # a linear layer of every position
        f"n = {LAST} (x)\nm = Neg(x)\nr = Reshape(m, shape)\na = Add(n, r)\ny = {FIRST} (a)",  # another layout
        f"n = {LAST} (x)\nf = Flatten(n)\ny = Relu(f)",  # features in that order are the output
        f"n = {LAST} (x)\nf = Flatten <axis=2> (n)\ny = MatMul(f, w3)",  # not the features of a sample
        "n = Transpose <perm=[0,1,3,2]> (x)\ny = Add(x, n)",  # a symmetric map: either operand is the other's transpose
        "n = Transpose <perm=[0,1,3,2]> (x)\nm = Add(n, x)\ny = Transpose <perm=[0,1,3,2]> (m)",
        # A factor per feature that is data:
        f"h = Flatten(x)\nd = MatMul(h, w4)\nn = {LAST} (x)\nf = Flatten(n)\ng = Mul(f, d)\ny = MatMul(g, w2)",
    ],
)
def test_does_not_fire(text: str) -> None:
    values = {
        "w": weights(4, 5),
        "w2": weights(144, 5),
        "w3": weights(24, 5),
        "w4": weights(144, 144),
        "shape": np.array([0, 6, 6, 4]),
    }
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    model = parse(text, **{key: value for key, value in values.items() if key in read})
    before = op_types(model)
    after, modified = push(model)
    assert (modified, op_types(after)) == (0, before)


def test_fan_out() -> None:
    """One Transpose feeds two layers, a residual and an output in its own layout."""
    text = f"""
        n = {LAST} (x)
        s = Sign(n)
        t = {FIRST} (s)
        a = Conv <pads=[1,1,1,1]> (t, w)
        m = {LAST} (a)
        r = Add(m, n)
        v = Sign(r)
        u = {FIRST} (v)
        y = Conv(u, w2)
        b = {FIRST} (s)
        z = Conv(b, w2)
        q = Mul(n, g)"""
    model = parse(text, outputs=("y", "z", "q"), w=weights(4, 4, 3, 3), w2=weights(2, 4, 3, 3), g=eighths(4))
    after = check(model, transposes=1)
    assert [value.name for value in after.graph.outputs] == ["y", "z", "q"]
    assert_same(model, to_binary(model)[0])


def test_shared_constants() -> None:
    """One constant serves a channels-last operator, which needs it moved, and one that does not."""
    text = f"n = {LAST} (x)\na = Mul(n, g)\nt = {FIRST} (a)\nb = Mul(x, g)\ny = Add(t, b)"
    model = parse(text, ("N", 4, 6, 4), g=eighths(4))
    check(model, transposes=0)


def test_shared_weights() -> None:
    """Two linear layers share a weight; only one of them gets its inputs in another order."""
    text = f"n = {LAST} (x)\nf = Flatten(n)\ny = MatMul(f, w)\nh = Flatten(x)\nz = MatMul(h, w)"
    model = parse(text, outputs=("y", "z"), w=weights(144, 5))
    check(model, transposes=0)


def test_a_larq_network_converts_like_a_channels_first_one(tmp_path: Path) -> None:
    model = larq()
    result = convert(model, tmp_path / "binary.onnx")
    assert len(result.binary_layers) == 4
    assert [decline.node for decline in result.left_float] == ["c0"]
    binary = ir.load(tmp_path / "binary.onnx")
    transposes = [node for node in binary.graph if node.op_type == "Transpose"]
    assert [node.inputs[0].name for node in transposes if node.inputs[0]] == ["x"]
    # Between the first layer and the residual no float is made, but the one that the residual needs.
    assert [node.op_type for node in binary.graph if node.domain == DOMAIN] == [
        "DirectConvThreshold",
        "BinaryConv",
        "Binarize",
        "BinaryConvResidual",
        "BinaryConvThreshold",
        "BinaryConv",
    ]
    x = samples(model, 16)
    proof = verify(tmp_path / "binary.onnx", model, data=x)
    assert proof.passed, proof.failures
    assert proof.complete and [layer.kind for layer in proof.layers].count("bits") == 4


def test_verify_catches_a_wrong_bit_of_a_layer_that_was_moved(tmp_path: Path) -> None:
    model = larq()
    convert(model, tmp_path / "binary.onnx")
    binary = ir.load(tmp_path / "binary.onnx")
    for op_type in ("BinaryConvResidual", "BinaryConvThreshold"):
        wrong = copy(binary)
        value = only(wrong, op_type).inputs[1]
        assert value is not None
        array = np.array(constant(value))
        array[:4] ^= np.uint32(2**32 - 1)
        value.const_value = ir.tensor(array, name=value.name)
        ir.save(wrong, tmp_path / "wrong.onnx")
        proof = verify(tmp_path / "wrong.onnx", model, data=samples(model, 16), reference_samples=0)
        assert not proof.passed


@pytest.mark.parametrize("scheme", ["xnor", "xnor-centred", "sign"])
def test_latent_weights_are_binarised_in_their_own_order(scheme: str, tmp_path: Path) -> None:
    """The linear layer's inputs have another order in the converted model than in the float one."""
    model = larq(latent=True)
    result = convert(model, tmp_path / "binary.onnx", weights=scheme)  # type: ignore[arg-type]
    assert len(result.binarized) == len(result.binary_layers) == 4
    reference = float_model(model, None, scheme)[0]  # type: ignore[arg-type]
    proof = verify(tmp_path / "binary.onnx", reference, data=samples(model, 16), reference_samples=0)
    assert proof.passed, proof.failures
    binary = next(node for node in reference.graph if node.outputs[0].name == "d0")
    latent = next(node for node in model.graph if node.outputs[0].name == "d0")
    if scheme == "sign":
        assert np.array_equal(constant(binary.inputs[1]), np.sign(constant(latent.inputs[1])))


def test_layers_are_those_of_the_channels_first_network() -> None:
    binary = to_binary(larq())[0]
    assert len(binary_layers(binary)) == 4


def test_a_falling_sign_with_a_threshold_per_channel(tmp_path: Path) -> None:
    """-1 above a learned threshold, with ones_like, channels last: verify finds its pre-activation."""
    text = f"""
        n = {LAST} (x)
        h = Shape(n)
        e = Expand(one, h)
        k = Neg(e)
        d = Less(n, g)
        s = Where(d, e, k)
        f = Flatten(s)
        y = MatMul(f, w)"""
    model = parse(text, one=np.float32(1), g=eighths(4), w=weights(144, 5))
    convert(model, tmp_path / "binary.onnx")
    assert "Transpose" not in op_types(ir.load(tmp_path / "binary.onnx"))
    x = samples(model)
    x[:, :, 0, 0] = eighths(4)
    proof = verify(tmp_path / "binary.onnx", model, data=x)
    assert proof.passed, proof.failures
    wrong = copy(model)
    value = wrong.graph.initializers["g"]
    value.const_value = ir.tensor(np.roll(constant(value), 1), name="g")  # type: ignore[arg-type]
    convert(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", model, data=x, reference_samples=0).passed
