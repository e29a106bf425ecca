"""SimplifyPRelu: a PReLU that is written with two ReLUs becomes one operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.elementwise import same_shape
from bnn_deploy.passes.graph import add_initializer, between, constant, insert_node, is_op, maker, remove_if_dead
from bnn_deploy.passes.outcome import Outcome, Pass


class SimplifyPRelu(Pass):
    """Relu(x) + c * Relu(-x)  ==>  PRelu(x, -c), which FoldThreshold knows to be monotone.

    1. tf2onnx writes Keras's PReLU like this. The negative part may be Relu(Neg(x)), Neg of it, Min(x, 0) or
       Clip(x, max=0), times one constant; it is added to Relu(x) or subtracted from it.
    2. One of the two parts is 0 for every x, and a sign is exact: so is the rewriting, to the last bit.

    Conditions: the result has x's shape; the constant is broadcast to x.

    Declines: nothing; two constants, whose product would be rounded, stay.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every such sum."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_op(node, "Add", "Sub"):
                continue
            for index in (0, 1) if is_op(node, "Add") else (0,):
                positive, negative = node.inputs[index], node.inputs[1 - index]
                relu = None if positive is None else positive.producer()
                x = relu.inputs[0] if relu is not None and is_op(relu, "Relu") else None
                slope = None if x is None else _negative_part(negative, x)
                if x is None or slope is None or not same_shape(node.outputs[0], x):
                    continue
                if x.shape is None or slope.ndim > len(x.shape):
                    continue
                parts = between(x, node)
                new = self._rewrite(model.graph, node, x, -slope if is_op(node, "Sub") else slope)
                result.rewrote(new, *parts)
                break
        return result

    def _rewrite(self, graph: ir.Graph, node: ir.Node, x: ir.Value, slope: NDArray[Any]) -> ir.Node:
        old = node.outputs[0]
        name = old.name or ""
        new = insert_node(
            node,
            "PRelu",
            [x, add_initializer(graph, f"{name}_slope", slope)],
            {},
            f"{name}_prelu",
            dtype=ir.DataType.FLOAT,
            shape=old.shape,
        )
        new.metadata_props.update(old.metadata_props)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        remove_if_dead(node)
        new.name = name
        return maker(new)


def _negative_part(value: ir.Value | None, x: ir.Value) -> NDArray[np.float32] | None:
    """The constant c of a value c * min(x, 0); None if it is something else, or c would be rounded."""
    node = None if value is None else value.producer()
    if node is None or value is None or value.dtype != ir.DataType.FLOAT:
        return None
    data = node.inputs[0]
    if is_op(node, "Relu"):
        negated = None if data is None else data.producer()
        is_part = negated is not None and is_op(negated, "Neg") and negated.inputs[0] is x
        return np.full(1, -1, np.float32) if is_part else None
    if is_op(node, "Min") and len(node.inputs) == 2 and x in node.inputs:
        other = constant(node.inputs[1 - node.inputs.index(x)])
        return np.ones(1, np.float32) if other is not None and not other.any() and other.size == 1 else None
    if is_op(node, "Clip") and data is x and len(node.inputs) == 3 and node.inputs[1] is None:
        limit = constant(node.inputs[2])
        return np.ones(1, np.float32) if limit is not None and not limit.any() else None
    if is_op(node, "Neg"):
        part = _negative_part(data, x)
        return None if part is None else -part
    if is_op(node, "Mul"):
        for index in (0, 1):
            factor, part = constant(node.inputs[index]), _negative_part(node.inputs[1 - index], x)
            if factor is not None and part is not None and part.size == 1 and abs(float(part[0])) == 1:
                return np.asarray(factor * part.reshape(()), np.float32)
    return None
