"""SinkSign: a sign goes below what only moves its values, next to the layer that reads it."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.conditions import constants_folded, shapes_known
from bnn_deploy.passes.graph import (
    MOVING_OPERATORS,
    constant,
    insert_node,
    is_flatten,
    is_op,
    maker,
    remove_if_dead,
    static_shape,
)
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import (
    Reshape,
    Transpose,
    note_place,
    place,
    place_before,
    sign_metadata,
    zero_value,
)


class SinkSign(Pass):
    """move(Sign(x) [* s])  ==>  Sign(move(x)) [* s], the move being Transpose, Reshape, Flatten, Squeeze or Unsqueeze.

    1. A sign is elementwise, so it may be taken before or after its values are moved; behind the moves the simple forms
       of LowerBinaryConv match, whatever the graph's layout is.
    2. A Transpose back of one above the sign leaves neither.
    3. The new node notes where its source and its pre-activation are in the float graph, moves included.

    Declines: a Flatten or Reshape to [N, features] in front of linear layers only, which LowerBinaryConv makes a
    convolution over the map; a move whose result has more than one unknown dimension.
    """

    needs = (constants_folded, shapes_known)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite until no move of a sign is left."""
        result = Outcome(model)
        for node in list(model.graph):  # in order, so that a sign sinks through a chain of moves in one go
            if not is_op(node, *MOVING_OPERATORS) or node.inputs[0] is None or is_flatten(node, node.outputs[0]):
                continue
            sign, factor = _scaled_sign(node.inputs[0].producer())
            move = _move(node)
            if sign is None or move is None:
                continue
            result.rewrote(self._sink(node, sign, factor, move), sign, node)
        return result

    def _sink(self, node: ir.Node, sign: ir.Node, factor: ir.Value | None, move: Transpose | Reshape) -> ir.Node:
        data, old = sign.inputs[0], node.outputs[0]
        assert data is not None
        name, shape = old.name or "", None if old.shape is None else list(old.shape)
        before = place_before(sign).then(move)
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        moved = _undone(data, move)
        if moved is None:
            moved = insert_node(
                node,
                node.op_type,
                [data, *node.inputs[1:]],
                attributes,
                f"{name}_moved",
                dtype=ir.DataType.FLOAT,
                shape=shape,
            )
            note_place(moved, before)
        metadata = sign_metadata(place(old), before, zero_value(sign))
        new = sunk = insert_node(
            node, "Sign", [moved], {}, f"{name}_sign", dtype=ir.DataType.FLOAT, shape=shape, metadata=metadata
        )
        if factor is not None:
            new = insert_node(node, "Mul", [new, factor], {}, f"{name}_scaled", dtype=ir.DataType.FLOAT, shape=shape)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = f"{name}_before_sinking"
        new.name = name
        remove_if_dead(node)
        return maker(sunk)


def _undone(data: ir.Value, move: Transpose | Reshape) -> ir.Value | None:
    """The tensor of which `data` is the transpose, if `move` transposes it back."""
    producer = data.producer()
    if producer is None or not is_op(producer, "Transpose") or not isinstance(move, Transpose):
        return None
    first = _move(producer)
    if not isinstance(first, Transpose):
        return None
    perm = first.perm
    return producer.inputs[0] if [perm[axis] for axis in move.perm] == list(range(len(perm))) else None


def _scaled_sign(node: ir.Node | None) -> tuple[ir.Node | None, ir.Value | None]:
    """The Sign and the factor of Sign(x), or of Sign(x) * one number; (None, None) if `node` is neither."""
    if is_op(node, "Sign"):
        return node, None
    if node is not None and is_op(node, "Mul"):
        for index in (0, 1):
            sign, factor = node.inputs[index], node.inputs[1 - index]
            number = constant(factor)
            if sign is not None and is_op(sign.producer(), "Sign") and number is not None and number.ndim == 0:
                return sign.producer(), factor
    return None, None


def _move(node: ir.Node) -> Transpose | Reshape | None:
    """The move that `node` makes; None if its result's shape is unknown."""
    shape = static_shape(node.outputs[0])
    if shape is None:
        return None
    if is_op(node, "Transpose"):
        perm = node.attributes.get("perm")
        return Transpose(list(range(len(shape)))[::-1] if perm is None else list(perm.as_ints()))
    return None if shape.count(None) > 1 else Reshape([-1 if dim is None else dim for dim in shape])
