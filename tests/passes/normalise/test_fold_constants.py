"""FoldConstants: what can be computed from constants is, whatever its size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.normalise import fold_constants
from bnn_deploy.passes.normalise.fold_constants import FoldConstants
from support.graphs import assert_same, copy, eighths, lower, op_types, parse, run_float, samples, weights


def fold(model: ir.Model) -> ir.Model:
    after = copy(model)
    FoldConstants()(after)
    return after


def same(model: ir.Model, after: ir.Model) -> None:
    x = samples(model)
    for got, expected in zip(run_float(after, x), run_float(model, x), strict=True):  # ReduceMean sums in another order
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # The comparison sees another constant.
    name = next(n for n, v in after.graph.initializers.items() if v.dtype == ir.DataType.FLOAT)
    value = after.graph.initializers[name]
    wrong = copy(after)
    array = np.array(constant(value)) + np.float32(1)
    wrong.graph.initializers[name].const_value = ir.tensor(array, name=name)
    assert not np.allclose(run_float(wrong, x)[0], run_float(model, x)[0], rtol=1e-3, atol=1e-3)


BINARISE = """q = Sign(w)
    m = Abs(w)
    r = ReduceMean <keepdims=1> (m, axes)
    v = Mul(q, r)
"""
AXES = np.array([1, 2, 3])


def latent(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_folds_weights_that_the_graph_binarises() -> None:
    model = parse(BINARISE + "s = Sign(x)\ny = Conv(s, v)", w=latent(8, 4, 3, 3), axes=AXES)
    after = fold(model)
    assert op_types(after) == ["Sign", "Conv"]
    same(model, after)
    assert lower(after) is not None  # the folded weights are two-valued


def test_folds_operators_with_several_outputs() -> None:
    """Weights of two values, chosen by their largest magnitudes, of halves that are put together the other way."""
    text = (
        "f = Reshape(w, flat)\na = Abs(f)\nt, i = TopK(a, k)\nm = ReduceMin <keepdims=0> (t, last)\n"
        "l, r = Split <axis=0, num_outputs=2> (w)\nj = Concat <axis=0> (r, l)\nq = Sign(j)\nv = Mul(q, m)\n"
        "s = Sign(x)\ny = Conv(s, v)"
    )
    numbers = {"flat": np.array([-1]), "k": np.array([9]), "last": np.array([0])}
    model = parse(text, w=latent(8, 4, 3, 3), **numbers)
    after = fold(model)
    assert op_types(after) == ["Sign", "Conv"]
    same(model, after)
    assert lower(after) is not None


def test_folds_a_gather_of_fewer_indices_than_data() -> None:
    """A quantile of each filter, as torch.export writes it."""
    text = "f = Reshape(w, flat)\na = Abs(f)\nm = GatherElements <axis=1> (a, i)\nr = Reshape(m, column)\n"
    text += "q = Sign(w)\nv = Mul(q, r)\ns = Sign(x)\ny = Conv(s, v)"
    numbers = {"flat": np.array([8, -1]), "i": np.array([[3]] * 6), "column": np.array([6, 1, 1, 1])}
    model = parse(text.replace("Sign(w)", "Sign(u)"), w=latent(8, 4, 3, 3), u=latent(6, 4, 3, 3), **numbers)
    after = fold(model)
    assert op_types(after) == ["Sign", "Conv"]
    same(model, after)


def test_does_not_fold_a_split_of_data() -> None:
    model = parse(
        "a, b = Split <axis=1, num_outputs=2> (x)\nc = Concat <axis=1> (b, a)\ny = Conv(c, w)", w=weights(8, 4, 3, 3)
    )
    assert op_types(fold(model)) == ["Split", "Concat", "Conv"]


def test_folds_what_exporters_leave_for_its_size() -> None:
    """1.2 MB: exporters stop at a few kB."""
    model = parse(BINARISE + "s = Sign(x)\ny = Conv(s, v)", ("N", 256, 3, 3), w=latent(128, 256, 3, 3), axes=AXES)
    assert op_types(fold(model)) == ["Sign", "Conv"]


def test_removes_identity_dropout_and_constant_nodes() -> None:
    model = parse(
        """i = Identity(w)
        k = Constant <value_float=0.5> ()
        a = Mul(x, k)
        d = Dropout(a)
        s = Sign(d)
        e = Identity(s)
        y = Conv(e, i)""",
        w=weights(8, 4, 3, 3),
    )
    after = fold(model)
    assert op_types(after) == ["Mul", "Sign", "Conv"]
    same(model, after)
    assert_same(model, lower(after))


def test_folds_expanded_constants() -> None:
    """A learned shift behind Expand."""
    model = parse(
        "e = Expand(c, shape)\na = Add(x, e)\ns = Sign(a)\ny = Conv(s, w)",
        w=weights(8, 4, 3, 3),
        c=eighths(4, 1, 1) / 3,
        shape=np.array([1, 4, 1, 1]),
    )
    after = fold(model)
    assert op_types(after) == ["Add", "Sign", "Conv"]
    same(model, after)


def test_inlines_functions() -> None:
    """Exporters wrap operators in functions of their own."""
    text = """<ir_version: 10, opset_import: ["": 20, "local": 1]>
        main (float[N,4,6,6] x) => (float[N,8,4,4] y) { s = local.sign(x)  y = Conv(s, w) }
        <domain: "local", opset_import: ["": 20]> sign (a) => (b) { b = Sign(a) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights(8, 4, 3, 3), "w"))
    model = ir.from_proto(proto)
    after = fold(model)
    assert op_types(after) == ["Sign", "Conv"]
    assert not after.functions
    same(model, after)


def test_a_constant_that_two_nodes_share() -> None:
    model = parse(
        BINARISE + "s = Sign(x)\na = Conv(s, v)\nb = Conv <pads=[1,1,1,1]> (s, v)\ny = Flatten(a)\nz = Flatten(b)",
        outputs=("y", "z"),
        w=latent(8, 4, 3, 3),
        axes=AXES,
    )
    after = fold(model)
    assert sorted(op_types(after)) == ["Conv", "Conv", "Flatten", "Flatten", "Sign"]
    first, second = (node.inputs[1] for node in after.graph if node.op_type == "Conv")
    assert first is second
    same(model, after)
    assert LowerBinaryConv()(after).count == 2


def test_a_constant_that_is_also_an_output_or_used_by_something_float() -> None:
    model = parse(
        BINARISE + "s = Sign(x)\ny = Conv(s, v)\nz = Conv(x, v)", outputs=("y", "z"), w=latent(8, 4, 3, 3), axes=AXES
    )
    after = fold(model)
    assert sorted(op_types(after)) == ["Conv", "Conv", "Sign"]
    same(model, after)


@pytest.mark.parametrize("default", [True, False])
def test_does_not_fold_inputs_of_the_model(default: bool) -> None:
    """An initializer that is an input of the graph, too, is a default that the caller may override."""
    constants = {"w": latent(8, 4, 3, 3)} if default else {}
    model = parse(BINARISE + "s = Sign(x)\ny = Conv(s, v)", inputs="float[8,4,3,3] w", axes=AXES, **constants)
    assert op_types(fold(model)) == op_types(model)


def test_does_not_fold_what_depends_on_data() -> None:
    model = parse(
        "m = Abs(x)\nr = ReduceMean <keepdims=1> (m, axes)\na = Mul(x, r)\ns = Sign(a)\ny = Conv(s, w)",
        w=weights(8, 4, 3, 3),
        axes=AXES,
    )
    after = fold(model)
    assert op_types(after) == op_types(model)
    same(model, after)


def test_keeps_the_shapes_that_later_passes_need() -> None:
    model = parse(
        BINARISE + "s = Sign(x)\nf = Flatten(s)\ny = MatMul(f, u)", w=latent(8, 4, 3, 3), axes=AXES, u=weights(144, 5)
    )
    after = fold(model)
    for node in after.graph:
        assert node.outputs[0].shape is not None, node.op_type


def test_folds_the_pads_that_torchscript_computes() -> None:
    """From ConstantOfShape, which onnxscript leaves."""
    text = (
        "z = ConstantOfShape <value = int64[1] {0}> (four)\np = Concat <axis=0> (front, z)\nq = Pad(x, p)\ny = Relu(q)"
    )
    model = parse(text, four=np.array([4]), front=np.array([0, 0, 1, 1]))
    after = fold(model)
    assert op_types(after) == ["Pad", "Relu"]
    x = samples(model)
    assert np.array_equal(run_float(after, x)[0], run_float(model, x)[0])


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand"])
def test_does_not_fold_what_makes_gigabytes_of_a_few_numbers(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of some bytes asked for 256 GiB; what is small is folded as before."""
    assert fold_constants.MOST_FOLDED * 4 <= 2**30
    monkeypatch.setattr(fold_constants, "MOST_FOLDED", 12)
    for size, left in ((2**36, [op, "ReduceSum", "Add"]), (13, [op, "ReduceSum", "Add"]), (12, ["Add"])):
        made = "ConstantOfShape (size)" if op == "ConstantOfShape" else "Expand (one, size)"
        more = {} if op == "ConstantOfShape" else {"one": np.ones(1, np.float32)}
        model = parse(f"c = {made}\nr = ReduceSum <keepdims=0> (c)\ny = Add(x, r)", size=np.array([size]), **more)
        assert op_types(fold(model)) == left
