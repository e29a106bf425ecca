"""CommuteMove: binarise first, then move the bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.bits import WORD, words
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.fusion_reasons import UsedElsewhere
from bnn_deploy.passes.graph import (
    add_initializer,
    constant,
    insert_node,
    is_binary_op,
    is_op,
    maker,
    remove_if_dead,
    replace_value,
    sole_consumer,
    static_shape,
)
from bnn_deploy.passes.moves import moves_of
from bnn_deploy.passes.outcome import Outcome, Pass, take_in
from bnn_deploy.provenance import COMPLEMENTED, Concat, Place, Take, read_before, sign_metadata, source_place


class CommuteMove(Pass):
    """Binarize(Concat(a, b), t)  ==>  Concat(Binarize(a, t[a]), Binarize(b, t[b])), and the same with a nearest Resize.

    1. A Concat of channels becomes one of words. In a dense network each layer's output is then binarised once, and not
       once for each layer that reads it, and what makes it becomes one node with the Binarize.
    2. What repeats rows and columns, such as a nearest Resize or a Tile, becomes a Gather of words, which are a 32nd.
    3. A Binarize of the same tensor with the same thresholds is used again.

    Conditions: all parts of the Concat but the last have a multiple of 32 channels; the result feeds only Binarizes.

    Declines: a tensor that something else uses, too. A Split or a Slice, which leaves less to binarise, stays.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Binarize of such a move, the last first: what then reads a Concat are Binarizes alone."""
        result = Outcome(model)
        for node in reversed(list(model.graph)):
            value = node.inputs[0] if is_binary_op(node, "Binarize") and node.graph is not None else None
            move = None if value is None else value.producer()
            if value is None or move is None or COMPLEMENTED in node.metadata_props:
                continue
            parts = _parts(move)
            if parts is None and not _enlarges(value):
                continue
            if sole_consumer(value) is not node:
                result.decline(node, UsedElsewhere(f"'{value.name}' is"))
                continue
            new = self._concat(node, parts) if parts is not None else self._gather(node, move)
            if new is not None:
                result.rewrote(new, node)
        return result

    def _concat(self, node: ir.Node, parts: list[tuple[ir.Value, int]]) -> ir.Node | None:
        threshold, places = constant(node.inputs[1]), _split_places(node, len(parts))
        if places is None or threshold is None:
            return None
        bits, first = [], 0
        for (value, channels), (source, before) in zip(parts, places, strict=True):
            bits.append(_bits(node, value, threshold[first : first + channels], source, before))
            first += channels
        old = node.outputs[0]
        new = insert_node(
            node, "Concat", bits, {"axis": -1}, f"{old.name}_concat", dtype=ir.DataType.UINT32, shape=old.shape
        )
        return _replace(node, new)

    def _gather(self, node: ir.Node, move: ir.Node) -> ir.Node | None:
        path, data, threshold = moves_of(move.outputs[0]), move.inputs[0], constant(node.inputs[1])
        source, before = source_place(node.metadata_props), read_before(node.metadata_props)
        if path is None or data is None or threshold is None or source is None or before is None:
            return None
        count = len(path)
        if source.moves[-count:] != tuple(path) or before.moves[-count:] != tuple(path):
            return None
        bits = _bits(
            node,
            data,
            threshold,
            replace(source, moves=source.moves[:-count]),
            replace(before, moves=before.moves[:-count]),
        )
        for step in path:
            assert isinstance(step, Take) and isinstance(node.graph, ir.Graph) and bits.shape is not None
            axis, indices = step.picks
            name = f"{node.outputs[0].name}_picks_{axis}"
            shape = list(bits.shape)
            shape[axis - 1] = len(indices)
            operands = [bits, add_initializer(node.graph, name, np.array(indices, np.int64))]
            bits = insert_node(
                node,
                "Gather",
                operands,
                {"axis": axis - 1},
                f"{name}_bits",
                dtype=ir.DataType.UINT32,
                shape=shape,
            )
        return _replace(node, bits)


def _parts(move: ir.Node) -> list[tuple[ir.Value, int]] | None:
    """The parts of a Concat of whole words, with their channels; None if it is none."""
    if not is_op(move, "Concat") or move.attributes["axis"].as_int() != 1:
        return None
    shapes = [None if value is None else static_shape(value) for value in move.inputs]
    channels = [None if shape is None or len(shape) < 3 else shape[1] for shape in shapes]
    if None in channels or any((count or 0) % WORD for count in channels[:-1]):
        return None
    found = [(v, count) for v, count in zip(move.inputs, channels, strict=True) if v is not None and count is not None]
    return None if any(constant(value) is not None for value, _ in found) else found


def _enlarges(value: ir.Value) -> bool:
    """Whether a map is made of another one by repeating rows and columns."""
    moves, node = moves_of(value), value.producer()
    data = None if node is None else node.inputs[0]
    before, after = (None if v is None else static_shape(v) for v in (data, value))
    if not moves or before is None or after is None or len(before) < 3:
        return False
    if not all(isinstance(move, Take) and move.picks[0] >= 2 for move in moves):
        return False
    grid = None if node is None else node.attributes.get("coordinate_transformation_mode")
    if grid is not None and grid.as_string() == "align_corners":
        return False  # whose positions hang on its rounding, as those of no whole factor do
    sizes = [(old or 1, new or 1) for old, new in zip(before[2:], after[2:], strict=True)]
    return all(new % old == 0 for old, new in sizes) and any(old < new for old, new in sizes)


def _split_places(node: ir.Node, count: int) -> list[tuple[Place, Place]] | None:
    """The sources and the pre-activations of the parts of a Concat, from those of the Sign of the whole."""
    both = []
    for place in (source_place(node.metadata_props), read_before(node.metadata_props)):
        move = place.moves[-1] if place is not None and place.moves else None
        if place is None or not isinstance(move, Concat) or move.parts[1] or len(move.others) != count - 1:
            return None
        both.append((replace(place, moves=place.moves[:-1]), *move.others))
    return list(zip(*both, strict=True))


def _bits(node: ir.Node, value: ir.Value, threshold: NDArray[np.float32], source: Place, before: Place) -> ir.Value:
    """The bits of a value: those of a Binarize that there is, or of a new one in front of `node`."""
    for user in value.consumers():
        if is_binary_op(user, "Binarize") and user is not node and COMPLEMENTED not in user.metadata_props:
            known = constant(user.inputs[1])
            if known is not None and np.array_equal(known, threshold):
                take_in(user, node)
                return user.outputs[0]
    assert isinstance(node.graph, ir.Graph) and value.shape is not None
    name = f"{node.outputs[0].name}_of_{value.name}"
    bits = insert_node(
        node,
        "Binarize",
        [value, add_initializer(node.graph, f"{name}_threshold", threshold)],
        {},
        name,
        dtype=ir.DataType.UINT32,
        shape=[value.shape[0], *list(value.shape)[2:], words(len(threshold))],
        domain=DOMAIN,
        metadata=sign_metadata(source, before, 0),
    )
    take_in(maker(bits), node)
    return bits


def _replace(node: ir.Node, bits: ir.Value) -> ir.Node:
    name = node.outputs[0].name
    replace_value(node.outputs[0], bits)
    remove_if_dead(node)
    bits.name = name
    return maker(bits)
