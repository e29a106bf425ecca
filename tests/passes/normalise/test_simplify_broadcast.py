"""SimplifyBroadcast: expanded constants become one value per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.normalise.simplify_broadcast import SimplifyBroadcast
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import assert_same, copy, eighths, equal, op_types, parse, run_float, samples, weights

C = eighths(4).reshape(1, 4, 1, 1)
FULL = np.broadcast_to(C, (3, 4, 6, 6)).copy()


def simplify(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, SimplifyBroadcast()(after).count


def operand(model: ir.Model, op_type: str) -> Any:
    node = next(node for node in model.graph if node.op_type == op_type)
    return next(array for value in node.inputs if (array := constant(value)) is not None)


@pytest.mark.parametrize("text", ["Add(x, e)", "Sub(x, e)", "Sub(e, x)"])
def test_fires_on_expand(text: str) -> None:
    model = parse(
        f"h = Shape(x)\ne = Expand(c, h)\na = {text}\ns = Sign(a)\ny = Conv(s, w)", c=C, w=weights(8, 4, 3, 3)
    )
    after, modified = simplify(model)
    assert modified == 1
    assert "Expand" not in op_types(after)
    binary = to_binary(model)[0]
    assert op_types(binary) == ["Binarize", "BinaryConv"], "the threshold is in the Binarize"
    assert_same(model, binary)


def test_fires_on_a_constant_of_the_batch_of_the_export() -> None:
    model = parse("a = Add(x, c)\ns = Sign(a)\ny = Conv(s, w)", (3, 4, 6, 6), c=FULL, w=weights(8, 4, 3, 3))
    after, modified = simplify(model)
    assert modified == 1
    np.testing.assert_array_equal(operand(after, "Add"), C)
    assert_same(model, to_binary(model)[0])


def test_does_not_fire_on_slices_that_differ() -> None:
    different = FULL.copy()
    different[1, 2, 3, 4] += 1
    model = parse("a = Add(x, c)\ny = Relu(a)", (3, 4, 6, 6), c=different)
    after, _ = simplify(model)
    assert operand(after, "Add").shape == (3, 4, 6, 6)


def test_does_not_fire_on_a_constant_that_enlarges_the_data() -> None:
    model = parse("a = Add(x, c)\ny = Relu(a)", (1, 4, 6, 6), c=FULL)
    assert simplify(model)[1] == 0
    model = parse("a = Add(x, c)\ny = Relu(a)", ("N", 4, 6, 6), c=FULL)
    assert simplify(model)[1] == 0, "N may be 1"


def test_does_not_touch_one_value_per_channel() -> None:
    assert simplify(parse("a = Add(x, c)\ny = Relu(a)", c=C))[1] == 0


def test_constants_shared_by_two_nodes_and_fan_out() -> None:
    text = "a = Add(x, c)\nb = Sub(x, c)\ns = Sign(a)\nt = Sign(b)\ny = Conv(s, w)\nz = Conv(t, w)\nu = Relu(a)"
    text += "\nk = ReduceMax <keepdims=1> (x, axes)\nv = Mul(k, c)"  # this one needs the whole constant
    model = parse(
        text, (3, 4, 6, 6), outputs=("y", "z", "u", "v"), c=FULL, w=weights(8, 4, 3, 3), axes=np.array([0, 1, 2, 3])
    )
    after, modified = simplify(model)
    assert modified == 2
    assert operand(after, "Mul").shape == FULL.shape
    assert equal(run_float(after, samples(model)), run_float(model, samples(model)))
    assert_same(model, to_binary(model)[0])
