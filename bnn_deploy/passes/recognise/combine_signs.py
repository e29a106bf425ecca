"""CombineSigns: what boolean logic makes of several signs, such as XNOR, is a sign, too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.conditions import constants_folded
from bnn_deploy.passes.elementwise import Array, evaluate, is_elementwise, straight_through, uniform
from bnn_deploy.passes.graph import add_initializer, insert_node, is_op, maker
from bnn_deploy.passes.moves import layer_inputs, moves_only
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import place, sign_metadata, zero_value

_MOST = 4
"""Signs that one function combines."""


class CombineSigns(Pass):
    """f(Sign(a), Sign(b), ...) in front of a layer, elementwise and always ±s  ==>  Sign(f) [* s].

    1. The logic of BoolNet and of binary gates: a product is XNOR, a clamped sum OR or AND, a Where a selection. f is
       evaluated for all values of up to four signs, 0 included where a sign has it, and not matched by its form.
    2. f is then its own sign, times s: the new Sign says so to the layer, and to the functions of signs behind it.
    3. Signs may be moved on their way, each in another way.

    Conditions: f is ±s, or 0 for a sign that is 0, whatever the signs are.

    Declines: nothing; another f is no sign, such as a sum of two, which has three levels.
    """

    needs = (constants_folded,)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite what layers read; the pass runs again for what the new signs are part of."""
        result = Outcome(model)
        for value in layer_inputs(model.graph):
            found = None if all(is_op(user, "Sign") for user in value.consumers()) else _magnitude(value)
            if found is not None:
                result.rewrote(self._rewrite(model.graph, value, *found), maker(value))
        return result

    def _rewrite(self, graph: ir.Graph, value: ir.Value, scale: float, may_be_zero: bool) -> ir.Node:
        name, shape = value.name or "", None if value.shape is None else list(value.shape)
        first = next(node for node in graph if value in node.inputs)
        metadata = sign_metadata(place(value), place(value), 0 if may_be_zero else 1)
        new = insert_node(
            first, "Sign", [value], {}, f"{name}_sign", dtype=ir.DataType.FLOAT, shape=shape, metadata=metadata
        )
        sign = maker(new)
        if scale != 1:
            factor = add_initializer(graph, f"{name}_factor", np.array(scale, np.float32))
            new = insert_node(first, "Mul", [new, factor], {}, f"{name}_scaled", dtype=ir.DataType.FLOAT, shape=shape)
        for use in list(value.uses()):
            if use.node is not sign:
                use.node.replace_input_with(use.idx, new)
        return sign


def _magnitude(value: ir.Value) -> tuple[float, bool] | None:
    """The s of a tensor that is ±s whatever the signs are that it is a function of, and whether it may be 0.

    None if it is no such.
    """
    zeros: dict[ir.Value, bool] = {}
    if value.dtype != ir.DataType.FLOAT or not _collect(value, zeros, set()) or len(zeros) < 2:
        return None
    tables: dict[ir.Value, Array] = {}
    for axis, (sign, zero) in enumerate(zeros.items()):
        shape = [-1 if i == axis else 1 for i in range(len(zeros))]
        tables[sign] = np.array([-1, 1, 0] if zero else [-1, 1], np.float32).reshape(shape)
    try:
        with np.errstate(all="ignore"):  # a sign that is 0 may be a divisor
            table = _evaluate(value, tables)
    except (TypeError, ValueError):  # types that do not fit each other
        return None
    usual = np.abs(table[(slice(2),) * len(zeros)])  # of signs that are not 0
    scale = float(usual.flat[0])
    if not 0 < scale < math.inf or (usual != scale).any() or not np.isin(table, (-scale, 0, scale)).all():
        return None
    return scale, bool((table == 0).any())


def _operands(node: ir.Node) -> Sequence[ir.Value | None]:
    """What a node is a function of; of the straight-through trick, what it stands for."""
    same = next(straight_through(node), None)
    return node.inputs if same is None else [same]


def _collect(value: ir.Value | None, zeros: dict[ir.Value, bool], seen: set[ir.Value]) -> bool:
    """Collect the signs that a tensor is a function of, as they are after being moved, and whether each may be 0.

    Args:
        value: the tensor.
        zeros: the signs; those found are added.
        seen: what was looked at already.

    Returns:
        Whether it is a function of signs and numbers alone, and of few.
    """
    if value is None or value in seen or ((number := uniform(value)) is not None and number.size == 1):
        return True
    seen.add(value)
    node = value.producer()
    if node is not None and is_elementwise(node) and not is_op(node, "Sign"):
        return all(_collect(operand, zeros, seen) for operand in _operands(node))
    while node is not None and moves_only(node) and (data := node.inputs[0]) is not None:
        node = data.producer()
    if node is None or not is_op(node, "Sign") or len(zeros) == _MOST:
        return False
    zeros[value] = zero_value(node) == 0
    return True


def _evaluate(value: ir.Value | None, tables: dict[ir.Value, Array]) -> Array:
    """A tensor for all values of the signs, which `tables` holds, each along an axis of its own; added to it."""
    assert value is not None
    if value in tables:
        return tables[value]
    number, node = uniform(value), value.producer()
    if number is not None:
        return number.reshape(())
    assert node is not None
    operands = [None if operand is None else _evaluate(operand, tables) for operand in _operands(node)]
    same = operands[0] if len(operands) < len(node.inputs) else None
    tables[value] = evaluate(node, operands) if same is None else same
    return tables[value]
