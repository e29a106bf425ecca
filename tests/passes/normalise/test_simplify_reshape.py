"""SimplifyReshape: a shape that only keeps the batch dimension becomes a constant."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.normalise.simplify_reshape import SimplifyReshape
from support.graphs import copy, op_types, parse, run_float, samples

DYNAMIC = """
shape = Shape <start=0, end=1> (x)
rest = Constant <value_ints=[{rest}]> ()
target = Concat <axis=0> (shape, rest)
y = Reshape (x, target)
"""


def simplified(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, SimplifyReshape()(after).count


@pytest.mark.parametrize("rest", ["24", "4, 6", "2, 3, 4"])
def test_drops_the_shape_arithmetic(rest: str) -> None:
    model = parse(DYNAMIC.format(rest=rest), ("N", 4, 2, 3))
    model.graph.outputs[0].shape = ir.Shape(["N", *map(int, rest.split(","))])
    after, modified = simplified(model)
    assert modified == 1
    assert [op for op in op_types(after) if op != "Constant"] == ["Reshape"]
    for count in (1, 5):
        x = samples(model, count)
        assert np.array_equal(run_float(after, x)[0], run_float(model, x)[0])


def test_a_wrong_shape_would_show() -> None:
    model = parse(DYNAMIC.format(rest="4, 6"), ("N", 4, 2, 3))
    model.graph.outputs[0].shape = ir.Shape(["N", 4, 6])
    after, _ = simplified(model)
    reshape = next(node for node in after.graph if node.op_type == "Reshape")
    assert reshape.inputs[1] is not None
    reshape.inputs[1].const_value = ir.tensor(np.array([0, 6, 4]), name=reshape.inputs[1].name)
    x = samples(model)
    assert not np.array_equal(run_float(after, x)[0], run_float(model, x)[0])


def test_the_batch_is_what_is_left_of_equally_many_elements() -> None:
    """A pixel unshuffle, as torch.onnx writes it, has its batch from a tensor further up."""
    text = DYNAMIC.replace("Reshape (x, target)", "Reshape (z, target)").format(rest="6, 4")
    model = parse(f"apart = Constant <value_ints=[-1, 4, 6]> ()\nz = Reshape (x, apart)\n{text}", ("N", 4, 2, 3))
    model.graph.outputs[0].shape = ir.Shape(["N", 6, 4])
    (z,) = (value for node in model.graph for value in node.outputs if value.name == "z")
    z.shape = ir.Shape([None, 4, 6])
    after, modified = simplified(model)
    assert modified == 1
    assert np.array_equal(run_float(after, samples(model))[0], run_float(model, samples(model))[0])
    z.shape = ir.Shape([None, 4, None])
    assert simplified(model)[1] == 0


def test_does_not_touch_a_constant_shape() -> None:
    model = parse("target = Constant <value_ints=[0, -1]> ()\ny = Reshape (x, target)", ("N", 4, 2, 3))
    assert simplified(model)[1] == 0


def test_does_not_touch_a_batch_that_changes() -> None:
    text = "target = Shape (r)\ny = Reshape (x, target)"
    model = parse(text, ("N", 4), inputs="float[M, 2] r")
    model.graph.outputs[0].shape = ir.Shape(["M", 2])
    assert simplified(model)[1] == 0


def test_does_not_touch_unknown_sizes() -> None:
    model = parse("target = Shape (r)\ny = Reshape (x, target)", ("N", 4), inputs="float[N, K] r")
    model.graph.outputs[0].shape = ir.Shape(["N", "K"])
    assert simplified(model)[1] == 0


def test_shared_shape_arithmetic_stays_for_its_other_user() -> None:
    model = parse(DYNAMIC.format(rest="24") + "z = Identity(target)", ("N", 4, 2, 3), outputs=("y",))
    model.graph.outputs[0].shape = ir.Shape(["N", 24])
    z = next(node.outputs[0] for node in model.graph if node.op_type == "Identity")
    z.type = ir.TensorType(ir.DataType.INT64)
    z.shape = ir.Shape([2])
    model.graph.outputs.append(z)
    after, modified = simplified(model)
    assert modified == 1
    assert "Concat" in op_types(after)
    assert constant(next(n for n in after.graph if n.op_type == "Reshape").inputs[1]) is not None


VIEWS = {
    "TorchScript": "h = Shape(x)\nb = Gather(h, zero)\nu = Unsqueeze(b, axes)\nt = Concat <axis=0> (u, rest)",
    "torch.export": (
        "h = Shape <start=0, end=1> (x)\nb = Squeeze(h)\nu = Reshape(b, one)\nt = Concat <axis=0> (u, rest)"
    ),
    "a slice": "h = Shape(x)\nu = Slice(h, axes, one)\nt = Concat <axis=0> (u, rest)",
    "a slice with its axis": "h = Shape(x)\nu = Slice(h, axes, one, axes)\nt = Concat <axis=0> (u, rest)",
    "a slice with its axis and step": "h = Shape(x)\nu = Slice(h, axes, one, axes, one)\nt = Concat <axis=0> (u, rest)",
}


@pytest.mark.parametrize("rest", [[-1], [24], [4, -1], [2, 3, -1]])
@pytest.mark.parametrize("view", VIEWS)
def test_reads_the_shape_arithmetic_where_inference_does_not(view: str, rest: list[int]) -> None:
    constants = {"zero": np.array(0), "axes": np.array([0]), "one": np.array([1]), "rest": np.array(rest)}
    text = VIEWS[view]
    known = {name: value for name, value in constants.items() if f"{name})" in text or f"{name}," in text}
    model = parse(f"{text}\nf = Reshape(x, t)\ny = Relu(f)", ("N", 4, 2, 3), **known)
    for node in model.graph:
        if node.op_type == "Reshape" and node.outputs[0].name == "f":
            node.outputs[0].shape = None
    after, modified = simplified(model)
    assert modified == 1
    assert op_types(after) == ["Reshape", "Relu"]
    assert np.array_equal(run_float(after, samples(model))[0], run_float(model, samples(model))[0])


def test_does_not_read_another_dimension_as_the_batch() -> None:
    text = "h = Shape(x)\nu = Slice(h, one, two)\nt = Concat <axis=0> (u, rest)\nf = Reshape(x, t)\ny = Relu(f)"
    constants = {"one": np.array([1]), "two": np.array([2]), "rest": np.array([-1])}
    model = parse(text, ("N", 4, 2, 3), **constants)
    assert simplified(model)[1] == 0
