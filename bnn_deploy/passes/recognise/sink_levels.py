"""SinkLevels: few levels go below what only moves them, next to the layer that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bnn_deploy.errors import InputError
from bnn_deploy.operators.contract import FLOAT_LAYERS
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import (
    MOVING_OPERATORS,
    add_initializer,
    insert_node,
    is_flatten,
    is_op,
    maker,
    remove_if_dead,
)
from bnn_deploy.passes.lower.filter_values import WeightSums, weight_sums
from bnn_deploy.passes.lower.layer import (
    FloatLayer,
    NotTwoValuedError,
    is_plain_pool,
    is_product,
    pool_window,
    read_layer,
    two_valued,
)
from bnn_deploy.passes.monotone import Floats
from bnn_deploy.passes.moves import copy_move, ends_in_layers, leads_to_layer, moves_of, readers
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.passes.reasons import Reason
from bnn_deploy.passes.recognise.few_levels import Quantizer, quantizer, transposed
from bnn_deploy.provenance import MaxPool, Move, Place, Take, Transpose, node_place, note_place, place


class SinkLevels(Pass):
    """move(q(x))  ==>  q(move(x)), the move being any that `moves_of` knows, or a Concat.

    q has 2 to 16 values (see `few_levels.quantizer`), and becomes a chain of Where in front of the layer, which
    LowerLevels reads as it would have read q. SinkSign does the same for signs.

    1. What leads to a layer whose weights have few values, or to a product, is moved; what else reads the moved tensor
       goes on reading it.
    2. q is the same for all channels; or nothing is moved from one channel to another.
    3. All parts of a Concat have the same q.
    4. Where q has another value at a single number, as of a Sign at 0, what is moved is for what only layers read.
    5. A MaxPool of levels is the levels of the MaxPool: one in front of such a move is one of them. A Transpose is one
       where another move or a Concat follows: else `quantizer` looks through it.

    Declines: a Flatten or Reshape to [N, features] in front of linear layers only, which LowerLevels makes a
    convolution over the map; a Concat of other levels, or of levels and something else.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite until no move of levels is left."""
        result = Outcome(model)
        self._known: dict[ir.Value, Quantizer | None] = {}
        self._layers: dict[ir.Node, bool] = {}
        for node in list(model.graph):  # in order, so that levels sink through a chain of moves in one go
            if is_op(node, "Concat"):
                self._sink_concat(node, result)
            elif _is_moved(node):
                self._sink(node, result)
        return result

    def _quantizer(self, value: ir.Value | None) -> Quantizer | None:
        if value is None or value.producer() is None:
            return None
        if value not in self._known:
            found = quantizer(value)
            self._known[value] = None if isinstance(found, Reason) else found
        return self._known[value]

    def _sink(self, node: ir.Node, result: Outcome) -> None:
        data, leads = node.inputs[0], any(leads_to_layer(value, self._may_be_binary) for value in node.outputs)
        levels = self._quantizer(data) if leads else None
        leading = [] if levels is None else [value for value in node.outputs if self._readers(value, levels)]
        paths = [_path(node, value) for value in node.outputs]
        if (
            data is None
            or levels is None
            or not leading
            or any(path is None or not _fits(levels, path) for path in paths)
        ):
            return
        x, before = _pre_activation(node, levels)
        source = node_place(data.producer(), data)
        moved = copy_move(node, [x, *node.inputs[1:]])
        for old, value, path in zip(list(node.outputs), moved, paths, strict=True):
            assert path is not None
            note_place(value, before.then(*path))
            if old in leading:
                # What an exporter makes of one operator of PyTorch has names that only the ONNX graph knows.
                own = place(old) if is_op(node, *MOVING_OPERATORS) else source.then(*path)
                result.rewrote(self._replace(value, old, levels, own), node)
        remove_if_dead(node)

    def _sink_concat(self, node: ir.Node, result: Outcome) -> None:
        old = node.outputs[0]
        if old.shape is None or not leads_to_layer(old, self._may_be_binary):
            return
        axis = node.attributes["axis"].as_int() % len(old.shape)
        found = [self._quantizer(value) for value in node.inputs]
        parts = [levels for levels in found if levels is not None]
        if len(parts) < len(found) or not all(_is_same(parts[0], other) for other in parts[1:]):
            return
        if (axis == 1 and parts[0].before_thresholds.shape[1] > 1) or not self._readers(old, *parts):
            return
        data = [_pre_activation(node, levels) for levels in parts]
        (moved,) = copy_move(node, [x for x, _ in data])
        before, *others = (where for _, where in data)
        note_place(moved, before.beside([], others, axis))
        source, *behind = (node_place(value.producer(), value) for value in node.inputs if value is not None)
        levels = replace(parts[0], dropped=any(part.dropped for part in parts))
        result.rewrote(self._replace(moved, old, levels, source.beside([], behind, axis)), node)
        remove_if_dead(node)

    def _readers(self, old: ir.Value, *levels: Quantizer) -> list[ir.Node]:
        """What reads levels in place of `old`."""
        found = readers(old, self._may_be_binary)
        return [user for user in found if ends_in_layers(user)] if any(part.dropped for part in levels) else found

    def _may_be_binary(self, node: ir.Node) -> bool:
        if node not in self._layers:
            self._layers[node] = _has_few_weights(node)
        return self._layers[node]

    def _replace(self, value: ir.Value, old: ir.Value, levels: Quantizer, source: Place) -> ir.Node:
        """Let what leads to a layer read levels of `value` in place of `old`; return the node that makes them."""
        node = _levels_of(value, old, levels)
        result = node.outputs[0]
        note_place(result, source)
        self._known[result] = replace(levels, before=value, before_perm=())
        for user in self._readers(old, levels):
            for index, operand in enumerate(user.inputs):
                if operand is old:
                    user.replace_input_with(index, result)
        return node


def _is_moved(node: ir.Node) -> bool:
    """Whether a node is a move that levels sink below."""
    output = node.outputs[0]
    if is_op(node, "Transpose", "MaxPool"):
        if is_op(node, "MaxPool") and not is_plain_pool(node):
            return False
        return any(is_op(user, "Concat") or _is_moved(user) for user in output.consumers())
    return moves_of(output) is not None and not is_flatten(node, output)


def _path(node: ir.Node, value: ir.Value) -> list[Move] | None:
    return [MaxPool(pool_window(node))] if is_op(node, "MaxPool") else moves_of(value)


def _fits(levels: Quantizer, path: Sequence[Move]) -> bool:
    """Whether levels are the same function below these moves."""
    if levels.before_thresholds.shape[1] == 1:
        return True
    return all(isinstance(move, MaxPool) or (isinstance(move, Take) and move.picks[0] != 1) for move in path)


def _is_same(first: Quantizer, second: Quantizer) -> bool:
    return np.array_equal(first.levels, second.levels) and np.array_equal(
        first.before_thresholds, second.before_thresholds
    )


def _has_few_weights(node: ir.Node) -> bool:
    """Whether a layer is a product of activations, or has weights of few values."""
    layer = read_layer(node) if is_op(node, *FLOAT_LAYERS) and not is_product(node) else None
    if not isinstance(layer, FloatLayer):
        return is_product(node)
    try:
        two_valued(layer.weight)
    except NotTwoValuedError:
        return isinstance(weight_sums(layer.weight), WeightSums)
    except InputError:  # a filter is all zeros
        return False
    return True


def _pre_activation(node: ir.Node, levels: Quantizer) -> tuple[ir.Value, Place]:
    """What levels are taken of, in their own layout, in front of `node`; and its place."""
    x, perm = levels.before, levels.before_perm
    if not perm:
        return x, place(x)
    name = f"{node.outputs[0].name}_of_{x.name}"
    shape = None if x.shape is None else transposed(list(x.shape), perm)
    turned = insert_node(node, "Transpose", [x], {"perm": list(perm)}, name, dtype=ir.DataType.FLOAT, shape=shape)
    return turned, place(x).then(Transpose(perm))


def _levels_of(value: ir.Value, old: ir.Value, levels: Quantizer) -> ir.Node:
    """Insert the levels of `value` in front of what makes `old`, which is equal; return the node that makes them."""
    before = old.producer()
    assert before is not None and isinstance(before.graph, ir.Graph)
    graph, name = before.graph, old.name or ""
    shape = None if old.shape is None else list(old.shape)
    column = (-1, *[1] * (len(shape or ()) - 2)) if levels.before_thresholds.shape[1] > 1 else ()

    def number(key: str, array: Floats) -> ir.Value:
        return add_initializer(graph, f"{name}_{key}", array.astype(np.float32))

    result = number("level_0", np.array(levels.levels[0]))
    for i, (threshold, level) in enumerate(zip(levels.before_thresholds, levels.levels[1:], strict=True), 1):
        reached = insert_node(
            before,
            "GreaterOrEqual",
            [value, number(f"threshold_{i}", threshold.reshape(column))],
            {},
            f"{name}_reaches_{i}",
            dtype=ir.DataType.BOOL,
            shape=shape,
        )
        result = insert_node(
            before,
            "Where",
            [reached, number(f"level_{i}", np.array(level)), result],
            {},
            f"{name}_sunk_{i}",
            dtype=ir.DataType.FLOAT,
            shape=shape,
        )
    return maker(result)
