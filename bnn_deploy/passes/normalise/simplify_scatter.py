"""SimplifyScatter: x[mask] = number, which PyTorch exports as ScatterND, is a Where."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.elementwise import uniform
from bnn_deploy.passes.graph import add_initializer, insert_node, ints, is_op, maker, remove_if_dead
from bnn_deploy.passes.outcome import Outcome, Pass


class SimplifyScatter(Pass):
    """ScatterND(x, Transpose(NonZero(mask)), number)  ==>  Where(mask, number, x).

    1. PyTorch's exporter writes `o[o == 0] = 1` like this if it was not told otherwise; CanonicalizeSign knows Where.
    2. The number is repeated as often as the mask is true, by Expand, Reshape or ConstantOfShape.

    Conditions: the mask is of bools and has the known sizes of x, or the same names for them: of one that is smaller,
        ScatterND reaches only the first elements of x, where Where would repeat it.

    Declines: nothing; an assignment of other values, or by other indices, stays.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every such assignment."""
        result = Outcome(model)
        for node in list(model.graph):
            found = _assignment(node)
            if found is None:
                continue
            mask, number, parts = found
            old, data = node.outputs[0], node.inputs[0]
            assert data is not None and data.dtype is not None
            name = old.name or ""
            assigned = add_initializer(model.graph, f"{name}_assigned", number)
            new = insert_node(
                node, "Where", [mask, assigned, data], {}, f"{name}_where", dtype=data.dtype, shape=data.shape
            )
            result.rewrote(maker(new), node, *parts)
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            remove_if_dead(node)
            old.name, new.name = f"{name}_before_where", name
        return result


def _assignment(node: ir.Node) -> tuple[ir.Value, NDArray[Any], list[ir.Node]] | None:
    """The mask and the number of an assignment, and the nodes that made indices of the mask; None if it is none."""
    reduction = node.attributes.get("reduction")
    if not is_op(node, "ScatterND") or (reduction is not None and reduction.as_string() != "none"):
        return None
    data, indices, updates = node.inputs
    number = _number(updates)
    transpose = None if indices is None else indices.producer()
    if data is None or number is None or transpose is None or not is_op(transpose, "Transpose"):
        return None
    places = transpose.inputs[0]
    nonzero = None if places is None else places.producer()
    if nonzero is None or not is_op(nonzero, "NonZero") or ints(transpose, "perm", (1, 0)) != [1, 0]:
        return None
    mask = nonzero.inputs[0]
    if mask is None or mask.dtype != ir.DataType.BOOL or not _same_sizes(mask, data):
        return None
    return mask, number, [nonzero, transpose]


def _number(value: ir.Value | None) -> NDArray[Any] | None:
    """The number of which all elements of a tensor are copies, []; None if they are not."""
    while value is not None and is_op(node := value.producer(), "Expand", "Reshape", "Squeeze", "Unsqueeze"):
        value = None if node is None else node.inputs[0]
    array = uniform(value)
    return array.reshape(()) if array is not None and array.size == 1 else None


def _same_sizes(first: ir.Value, second: ir.Value) -> bool:
    """Whether two tensors certainly have the same shape."""
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    return all(
        a == b and (isinstance(a, int) or a.value is not None) for a, b in zip(first.shape, second.shape, strict=True)
    )
