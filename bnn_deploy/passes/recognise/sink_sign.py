"""SinkSign: a sign goes below what only moves its values, next to the layer that reads it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.conditions import constants_folded, shapes_known
from bnn_deploy.passes.graph import (
    LAYER_OPERATORS,
    MOVING_OPERATORS,
    add_initializer,
    constant,
    insert_node,
    is_flatten,
    is_op,
    maker,
    remove_if_dead,
)
from bnn_deploy.passes.lower.layer import SMALLEST, is_plain_pool, pool_window
from bnn_deploy.passes.moves import copy_move, leads_to_layer, moves_of, moves_only
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import (
    MaxPool,
    Move,
    Transpose,
    node_place,
    note_place,
    place,
    place_before,
    sign_metadata,
    zero_value,
)


class SinkSign(Pass):
    """move(Sign(x) [* s])  ==>  Sign(move(x)) [* s], the move being any that `moves_of` knows, or Concat.

    1. A sign is elementwise, so it may be taken before or after its values are moved; behind the moves the simple forms
       of LowerBinaryConv match, whatever the graph's layout is.
    2. A Transpose back of one above the sign leaves neither.
    3. The signs of a Concat all have the same s. Where one of them is -1 at 0 and others are not, it becomes one that
       is +1: x > 0 is x - t >= 0, with t the smallest float32 above 0. One that is 0 at 0 and one that is +1 are the
       same to layers, and only layers may then read the Concat.
    4. A maximum of signs is the sign of the maximum: a MaxPool in front of such a move is one of them.
    5. The new node notes where its source and its pre-activation are in the float graph, moves included.

    Conditions: what is not only transposed or reshaped leads to a layer.

    Declines: a Flatten or Reshape to [N, features] in front of linear layers only, which LowerBinaryConv makes a
    convolution over the map; a move whose result has more than one unknown dimension; a Concat with something else.
    """

    needs = (constants_folded, shapes_known)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite until no move of a sign is left."""
        result = Outcome(model)
        for node in list(model.graph):  # in order, so that a sign sinks through a chain of moves in one go
            if is_op(node, "Concat"):
                self._sink_concat(node, result)
                continue
            data = node.inputs[0] if node.inputs else None
            sign, factor = _scaled_sign(None if data is None else data.producer())
            moves = None if sign is None else _moves(node, factor)
            if sign is not None and moves is not None:
                self._sink(node, sign, factor, moves, result)
        return result

    def _sink(
        self, node: ir.Node, sign: ir.Node, factor: ir.Value | None, moves: list[list[Move]], result: Outcome
    ) -> None:
        data = sign.inputs[0]
        assert data is not None and node.graph is not None
        undone = _undone(data, moves[0][0]) if moves[0] else None
        moved: list[ir.Value] = [undone] if undone is not None else copy_move(node, [data, *node.inputs[1:]])
        before, source = place_before(sign), node_place(sign, sign.outputs[0])
        for old, value, path in zip(list(node.outputs), moved, moves, strict=True):
            if value is not undone:
                note_place(value, before.then(*path))
            if old.uses() or old.is_graph_output():
                # What an exporter makes of one operator of PyTorch has names that only the ONNX graph knows.
                known = place(old) if is_op(node, *MOVING_OPERATORS) else source.then(*path)
                metadata = sign_metadata(known, before.then(*path), zero_value(sign))
                result.rewrote(_sign_of(value, old, factor, metadata), sign, node)
        remove_if_dead(node)

    def _sink_concat(self, node: ir.Node, result: Outcome) -> None:
        found = [_scaled_sign(None if value is None else value.producer()) for value in node.inputs]
        signs = [sign for sign, _ in found if sign is not None]
        factors = [1.0 if (number := constant(factor)) is None else float(number.reshape(())) for _, factor in found]
        old = node.outputs[0]
        if len(signs) < len(found) or len(set(factors)) > 1 or not leads_to_layer(old):
            return
        kinds = {zero_value(sign) for sign in signs}
        zeros = kinds if len(kinds) == 1 else {abs(zero) for zero in kinds}
        if len(zeros) > 1 and not _only_layers_read(old):
            return
        # Of one kind, they stay as they are, that of x > 0 included.
        parts = [sign.inputs[0] if len(kinds) == 1 else _at_zero(node, sign) for sign in signs]
        (moved,) = copy_move(node, parts)
        axis = node.attributes["axis"].as_int() % max(1 if old.shape is None else len(old.shape), 1)
        source, before = (
            first.beside([], others, axis)
            for first, *others in zip(*((node_place(s, s.outputs[0]), place_before(s)) for s in signs), strict=True)
        )
        note_place(moved, before)
        metadata = sign_metadata(source, before, min(zeros))
        result.rewrote(_sign_of(moved, old, found[0][1], metadata), *signs, node)
        remove_if_dead(node)


def _moves(node: ir.Node, factor: ir.Value | None) -> list[list[Move]] | None:
    """The moves that a node makes of a sign, for each of its outputs; None if the sign stays above it."""
    output = node.outputs[0]
    if is_op(node, "MaxPool"):
        positive = (number := constant(factor)) is None or float(number.reshape(())) > 0
        moved = any(is_op(user, "Concat", "Neg") or _is_moved(user) for user in output.consumers())
        if not (positive and moved and is_plain_pool(node) and leads_to_layer(output)):
            return None
        return [[MaxPool(pool_window(node))]]
    if is_op(node, *MOVING_OPERATORS) and is_flatten(node, output):
        return None
    moves = [moves_of(value) for value in node.outputs]
    if not is_op(node, *MOVING_OPERATORS) and not any(leads_to_layer(value) for value in node.outputs):
        return None
    known = [path for path in moves if path is not None]
    return known if len(known) == len(moves) else None


def _is_moved(node: ir.Node) -> bool:
    """Whether a node moves a sign that is in front of it."""
    return moves_only(node) and not is_flatten(node, node.outputs[0])


def _only_layers_read(value: ir.Value) -> bool:
    """Whether nothing but layers reads a value, or what pools and moves make of it."""
    if value.is_graph_output():
        return False
    return all(
        is_op(user, *LAYER_OPERATORS)
        or ((is_op(user, "MaxPool", "Pad") or moves_only(user)) and all(map(_only_layers_read, user.outputs)))
        for user in value.consumers()
    )


def _at_zero(before: ir.Node, sign: ir.Node) -> ir.Value:
    """What `sign` is taken of, shifted so that another sign, which is +1 at 0, gives the same."""
    data = sign.inputs[0]
    assert data is not None and isinstance(before.graph, ir.Graph)
    if zero_value(sign) >= 0:
        return data
    name = f"{sign.outputs[0].name}_above"
    threshold = add_initializer(before.graph, f"{name}_threshold", np.array(SMALLEST))
    shifted = insert_node(before, "Sub", [data, threshold], {}, name, dtype=ir.DataType.FLOAT, shape=data.shape)
    note_place(shifted, place_before(sign))
    return shifted


def _sign_of(value: ir.Value, old: ir.Value, factor: ir.Value | None, metadata: dict[str, str]) -> ir.Node:
    """Let the Sign of `value`, times `factor`, take the place and the name of `old`; return the Sign."""
    name, shape, node = old.name or "", None if old.shape is None else list(old.shape), maker(old)
    new = sign = insert_node(
        node, "Sign", [value], {}, f"{name}_sign", dtype=ir.DataType.FLOAT, shape=shape, metadata=metadata
    )
    if factor is not None:
        new = insert_node(node, "Mul", [new, factor], {}, f"{name}_scaled", dtype=ir.DataType.FLOAT, shape=shape)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = f"{name}_before_sinking"
    new.name = name
    return maker(sign)


def _undone(data: ir.Value, move: Move) -> ir.Value | None:
    """The tensor of which `data` is the transpose, if `move` transposes it back."""
    producer = data.producer()
    if producer is None or not is_op(producer, "Transpose") or not isinstance(move, Transpose):
        return None
    first = moves_of(data)
    if first is None or not isinstance(first[0], Transpose):
        return None
    perm = first[0].perm
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
