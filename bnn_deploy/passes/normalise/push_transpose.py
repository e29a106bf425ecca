"""PushTranspose: a channels-last network becomes a channels-first one, without a Transpose around each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from bnn_deploy.passes.conditions import constants_folded, shapes_known
from bnn_deploy.passes.elementwise import ELEMENTWISE, Array, same_shape, uniform
from bnn_deploy.passes.graph import add_initializer, constant, insert_node, is_op, remove_if_dead, static_shape
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import (
    Move,
    Reshape,
    Transpose,
    note_place,
    place,
    read_before,
    source_metadata,
    source_place,
)

UNARY = (
    *("Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Reciprocal"),
    *("Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
)

ELEMENTWISE_OPS = (*UNARY, *ELEMENTWISE, "PRelu", "Pow")

REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")


class PushTranspose(Pass):
    """f(Transpose(x))  ==>  Transpose(f(x)), down to a Transpose back or a linear layer, where it vanishes.

    1. f is elementwise; its constants are transposed back, its other operands have the same Transpose (or the one back,
       somewhere else in the graph, so that no Transpose has to be added). Or f is Pad, Concat or a reduction: its pads
       or axes are.
    2. Transpose(Transpose(x)) back and forth is x.
    3. Flatten(Transpose(x)), or a Reshape to [N, features], in front of linear layers is Flatten(x); the weights are
       put in that order, and so are the constants per feature of what is elementwise, or BatchNormalization, between.
    4. A Transpose that moves only dimensions of size 1, of [N, H, W, 1], is a Reshape, which costs nothing.
    5. What gets another layout notes where it is in the float graph, in its BEFORE (and, if it is a Sign, in its node).

    Conditions: there are fewer Transposes afterwards; else nothing changes. The model's input and output keep their
        layouts.

    Declines: nothing; a Transpose that stays is right as it is.
    """

    needs = (constants_folded, shapes_known)

    def call(self, model: ir.Model) -> Outcome:
        """Push every Transpose as far down as it goes, if that makes some vanish."""
        if not _transposes(model):
            return Outcome(model)
        trial = model.clone()
        self._push(trial)
        if _transposes(trial) >= _transposes(model):
            return Outcome(model)
        return self._push(model)

    def _push(self, model: ir.Model) -> Outcome:
        result = Outcome(model)
        while True:
            changed = [
                node
                for node in list(model.graph)
                if node.graph is not None  # not removed meanwhile
                and (_cancel(node) or _push_below(model.graph, node) or _flatten(model.graph, node))
            ]
            if not changed:
                break
            for node in changed:
                result.rewrote(node)
        for node in list(model.graph):
            if _as_reshape(model.graph, node):
                result.rewrote(node)
        common.TopologicalSortPass()(model)
        return result


def _transposes(model: ir.Model) -> int:
    return sum(is_op(node, "Transpose") for node in model.graph)


def _perm(node: ir.Node | None) -> list[int] | None:
    """The permutation of a Transpose whose rank is known; None for anything else."""
    if node is None or not is_op(node, "Transpose") or node.inputs[0] is None:
        return None
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return list(attribute.as_ints())
    shape = node.inputs[0].shape
    return None if shape is None else list(range(len(shape)))[::-1]


def _back(perm: Sequence[int]) -> list[int]:
    """The permutation that undoes another."""
    return [int(axis) for axis in np.argsort(perm)]


def _cancel(node: ir.Node) -> bool:
    """Transpose(Transpose(x)) that gives x."""
    second, value = _perm(node), node.inputs[0] if node.inputs else None
    first = None if value is None or second is None else _perm(value.producer())
    if value is None or first is None or second is None or node.outputs[0].is_graph_output():
        return False
    if [first[axis] for axis in second] != list(range(len(first))):
        return False
    producer = value.producer()
    assert producer is not None and producer.inputs[0] is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], producer.inputs[0])
    remove_if_dead(node)
    return True


def _push_below(graph: ir.Graph, node: ir.Node) -> bool:
    """f(Transpose(x), ...) -> Transpose(f(x, ...)), if f can be computed in x's layout."""
    if len(node.outputs) != 1 or node.domain != "":
        return False
    perm = next((found for v in node.inputs if v is not None and (found := _perm(v.producer()))), None)
    shape = static_shape(node.outputs[0])
    if perm is None or shape is None:
        return False
    if is_op(node, *ELEMENTWISE_OPS):
        changes, axes = _elementwise(graph, node, perm), perm
    elif is_op(node, "Concat"):
        changes, axes = _concat(graph, node, perm), perm
    elif is_op(node, "Pad"):
        changes, axes = _pad(graph, node, perm), perm
    elif is_op(node, *REDUCTIONS):
        changes, axes = _reduction(graph, node, perm)
    else:
        return False
    if changes is None:
        return False
    old_inputs = [value.producer() for value in node.inputs if value is not None]
    for index, value in changes.items():
        node.replace_input_with(index, value)
    for producer in old_inputs:
        remove_if_dead(producer)
    if axes == sorted(axes):  # of [N, C], say, which a reduction has left
        return True
    old = node.outputs[0]
    new = insert_node(
        node, "Transpose", [], {"perm": axes}, f"{old.name}_transposed", dtype=ir.DataType.FLOAT, shape=old.shape
    )
    transpose = new.producer()
    assert transpose is not None
    new.type = old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    transpose.resize_inputs(1)
    transpose.replace_input_with(0, old)
    graph.remove(transpose)
    node.append(transpose)
    dims = list(old.shape or [])
    name = old.name or ""
    _note(node, Transpose(_back(axes)))
    old.shape = ir.Shape([dims[axis] for axis in _back(axes)])
    old.name, new.name = f"{name}_channels_first", name
    return True


def _note(node: ir.Node, *moves: Move) -> None:
    """Note that `node`, whose inputs are moved already, makes its output moved; a Sign carries that itself."""
    output, data, own = node.outputs[0], node.inputs[0], node.metadata_props
    note_place(output, place(output).then(*moves))
    if not is_op(node, "Sign") or data is None:
        return
    source, before = source_place(own), read_before(own)
    if source is not None and before is not None:  # of CanonicalizeSign
        own.update(source.then(*moves).as_source() | before.then(*moves).as_before())
    else:
        own.update(source_metadata(output) | place(data).as_before())


def _operand(graph: ir.Graph, value: ir.Value, perm: list[int], name: str) -> ir.Value | None:
    """The replacement of `value`, an operand of rank len(perm) or less, once the others are not transposed any more."""
    producer = value.producer()
    if producer is not None and _perm(producer) == perm:
        return producer.inputs[0]
    array = uniform(value)
    if array is not None:
        if array.ndim > len(perm):
            return None
        if array.size == 1 and constant(value) is not None:
            return value
        aligned = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
        return add_initializer(graph, name, array if array.size == 1 else aligned.transpose(_back(perm)))
    shape = static_shape(value)
    if shape is not None and len(shape) <= len(perm) and all(size == 1 for size in shape):
        return value
    back = (user for user in value.consumers() if _perm(user) == _back(perm))
    transposed = next(back, None)
    return None if transposed is None else transposed.outputs[0]


def _elementwise(graph: ir.Graph, node: ir.Node, perm: list[int]) -> dict[int, ir.Value] | None:
    """The new inputs of an elementwise node; None if one of them has another layout."""
    output = node.outputs[0]
    # The result has the shape of a transposed operand: so no other may be repeated to more (Expand to its shape, say).
    full = [v for v in node.inputs if v is not None and _perm(v.producer()) == perm]
    if not any(same_shape(output, v) for v in full):
        return None
    changes = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        new = _operand(graph, value, perm, f"{output.name}_operand{index}")
        if new is None or (new is not value and new in node.inputs):
            return None  # x + Transpose(x) would become Transpose(x) + x, and that x + Transpose(x) again, without end
        if new is not value:
            changes[index] = new
    return changes


def _concat(graph: ir.Graph, node: ir.Node, perm: list[int]) -> dict[int, ir.Value] | None:
    changes = {}
    for index, value in enumerate(node.inputs):
        producer = None if value is None else value.producer()
        array = constant(value)
        if array is not None:
            new: ir.Value | None = add_initializer(
                graph, f"{node.outputs[0].name}_part{index}", array.transpose(_back(perm))
            )
        else:
            new = None if producer is None or _perm(producer) != perm else producer.inputs[0]
        if new is None:
            return None
        changes[index] = new
    axis = node.attributes["axis"].as_int()
    node.attributes["axis"] = ir.AttrInt64("axis", perm[axis % len(perm)])
    return changes


def _pad(graph: ir.Graph, node: ir.Node, perm: list[int]) -> dict[int, ir.Value] | None:
    data, pads = node.inputs[0], constant(node.inputs[1])
    axes_value = node.inputs[3] if len(node.inputs) > 3 else None
    axes = constant(axes_value)
    if data is None or pads is None or (axes_value is not None and axes is None) or _perm(data.producer()) != perm:
        return None
    rank = len(perm)
    listed = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    moved = np.zeros(2 * rank, np.int64)
    for i, axis in enumerate(listed):
        moved[perm[axis]], moved[perm[axis] + rank] = pads[i], pads[i + len(listed)]
    if axes_value is not None:
        node.resize_inputs(3)
    producer = data.producer()
    assert producer is not None and producer.inputs[0] is not None
    return {0: producer.inputs[0], 1: add_initializer(graph, f"{node.outputs[0].name}_pads", moved)}


def _reduction(graph: ir.Graph, node: ir.Node, perm: list[int]) -> tuple[dict[int, ir.Value] | None, list[int]]:
    """The new inputs of a reduction, and the permutation that its result still needs."""
    data = node.inputs[0]
    axes_value = node.inputs[1] if len(node.inputs) > 1 else None
    axes = constant(axes_value)
    if data is None or axes is None or axes.size == 0 or _perm(data.producer()) != perm:
        return None, perm
    producer, keep = data.producer(), node.attributes.get("keepdims")
    assert producer is not None and producer.inputs[0] is not None
    reduced = sorted(perm[int(axis) % len(perm)] for axis in axes)
    changes = {0: producer.inputs[0], 1: add_initializer(graph, f"{node.outputs[0].name}_axes", np.array(reduced))}
    if keep is None or keep.as_int():
        return changes, perm
    left = [axis for axis in perm if axis not in reduced]
    return changes, _back(_back(left))  # their ranks: those that are left, numbered anew


def _flatten(graph: ir.Graph, node: ir.Node) -> bool:
    """Linear(f(Flatten(Transpose(x)))) -> Linear'(f'(Flatten(x)))."""
    data = node.inputs[0] if is_op(node, "Flatten", "Reshape") else None
    transpose = None if data is None else data.producer()
    perm, shape = _perm(transpose), static_shape(node.outputs[0])
    source = None if transpose is None else transpose.inputs[0]
    dims = None if source is None else static_shape(source)
    if perm is None or perm[0] != 0 or shape is None or dims is None or source is None or source.shape is None:
        return False
    sizes = [size for size in dims[1:] if size is not None]
    if len(shape) != 2 or len(sizes) != len(dims) - 1 or shape[1] != math.prod(sizes):
        return False
    # A Reshape's first size is the batch's own: 0, or what is left by -1.
    target = constant(node.inputs[1]) if is_op(node, "Reshape") else None
    if is_op(node, "Reshape") and (target is None or (int(target[0]) not in (0, -1) and shape[0] != dims[0])):
        return False
    if is_op(node, "Flatten") and (axis := node.attributes.get("axis")) is not None and axis.as_int() != 1:
        return False
    # Feature i of the new order is feature order[i] of the old one.
    last = [dims[axis] for axis in perm[1:]]
    order = np.arange(math.prod(sizes)).reshape(1, *(size or 0 for size in last)).transpose(_back(perm)).reshape(-1)
    users = _until_linear(node.outputs[0])
    if users is None:
        return False
    node.replace_input_with(0, source)
    remove_if_dead(transpose)
    rows = Reshape([-1, *(size or -1 for size in last)])
    for user in (node, *users):
        if not is_op(user, "Gemm", "MatMul"):
            _note(user, rows, Transpose(_back(perm)), Reshape([-1, len(order)]))
            user.outputs[0].name = f"{user.outputs[0].name}_channels_first"
        if user is not node:
            _reorder(graph, user, order)
    return True


def _until_linear(value: ir.Value) -> list[ir.Node] | None:
    """All between `value` [N, features] and the linear layers that read it, these included, in order.

    None if something else reads it, or what comes of it.
    """
    found: dict[ir.Node, None] = {}
    pending = [value]
    while pending:
        current = pending.pop(0)
        if current.is_graph_output() or current.shape is None or len(current.shape) != 2:
            return None
        for user in current.consumers():
            if user in found:
                continue
            if is_op(user, "Gemm", "MatMul"):
                weight = constant(user.inputs[1])
                transposed = "transA" in user.attributes and user.attributes["transA"].as_int()
                if user.inputs[0] is not current or weight is None or weight.ndim != 2 or transposed:
                    return None
            elif is_op(user, "BatchNormalization", *ELEMENTWISE_OPS) and same_shape(user.outputs[0], current):
                pending.append(user.outputs[0])
            else:
                return None
            found[user] = None
    features = value.shape[1] if value.shape is not None else None
    for user in found:
        for other in () if is_op(user, "Gemm", "MatMul") else user.inputs:
            if other is None or other is value or other.producer() in found:
                continue
            array = constant(other)
            if array is None or (array.size > 1 and array.shape[-1] != features):
                return None
    return list(found)


def _reorder(graph: ir.Graph, node: ir.Node, order: Array) -> None:
    """Put the constants of a node that are per feature, or the inputs of a linear layer's weight, in another order."""
    if is_op(node, "Gemm", "MatMul"):
        weight = constant(node.inputs[1])
        assert weight is not None
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
        moved = weight[:, order] if transposed else weight[order]
        node.replace_input_with(1, add_initializer(graph, f"{node.outputs[0].name}_reordered_weight", moved))
        return
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is not None and array.size > 1:
            name = f"{node.outputs[0].name}_operand{index}"
            node.replace_input_with(index, add_initializer(graph, name, array[..., order]))


def _as_reshape(graph: ir.Graph, node: ir.Node) -> bool:
    """Transpose that moves only dimensions of size 1 -> Reshape."""
    perm, data, output = _perm(node), node.inputs[0] if node.inputs else None, node.outputs[0]
    shape = None if data is None else static_shape(data)
    if perm is None or data is None or shape is None or perm[0] != 0 or None in shape[1:]:
        return False
    moved = [axis for axis in perm if shape[axis] != 1]
    if moved != sorted(moved):
        return False
    target = add_initializer(graph, f"{output.name}_shape", np.array([0, *(shape[axis] or 0 for axis in perm[1:])]))
    name = output.name or ""
    new = insert_node(
        node, "Reshape", [data, target], {}, f"{name}_reshaped", dtype=ir.DataType.FLOAT, shape=output.shape
    )
    new.type = output.type
    new.metadata_props.update(output.metadata_props)
    ir.convenience.replace_all_uses_with(output, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name
    return True
