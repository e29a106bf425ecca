"""Operators of float graphs that only move the elements of one tensor, or repeat or drop some: what each of them moves.

What is elementwise, such as a sign, may be taken before or after such a move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.elementwise import is_elementwise
from bnn_deploy.passes.graph import LAYER_OPERATORS, MOVING_OPERATORS, constant, ints, is_op, static_shape
from bnn_deploy.provenance import Move, Reshape, Take, Transpose

Dims = list[int | None]
Positions = NDArray[Any]


def moves_of(value: ir.Value) -> list[Move] | None:
    """The moves by which `value` is made of the first input of its producer; None if that does something else.

    Known are Transpose, the operators that only reshape, DepthToSpace, SpaceToDepth, Expand, Slice, Split, Tile, Gather
    along an axis, Resize to the nearest element and Pad with elements of its input, with sizes that are known along
    the axes that they change, and constant indices.
    """
    node = value.producer()
    data = None if node is None or not node.inputs else node.inputs[0]
    if node is None or data is None or node.domain != "":
        return None
    before, after = static_shape(data), static_shape(value)
    if before is None or after is None:
        return None
    known = _MOVES.get(node.op_type)
    if known is not None:
        return known(node, value, before, after)
    return _reshape(after) if is_op(node, *MOVING_OPERATORS) else None


def moves_only(node: ir.Node) -> bool:
    """Whether `moves_of` knows the node."""
    return any(moves_of(value) is not None for value in node.outputs)


def leads_to_layer(value: ir.Value, wanted: Callable[[ir.Node], bool] = lambda layer: True) -> bool:
    """Whether a wanted layer reads a value, or what is made of it alone, or of it in a Concat."""
    return bool(readers(value, wanted))


def readers(value: ir.Value, wanted: Callable[[ir.Node], bool] = lambda layer: True) -> list[ir.Node]:
    """The consumers of a value that are wanted layers, or from which what is made of it alone leads to one."""
    known: dict[ir.Node, bool] = {}

    def leads(node: ir.Node) -> bool:
        if node not in known:
            known[node] = False
            if is_op(node, *LAYER_OPERATORS):
                known[node] = wanted(node)
            elif _hands_on(node):
                known[node] = any(leads(user) for output in node.outputs for user in output.consumers())
        return known[node]

    return [user for user in value.consumers() if leads(user)]


def ends_in_layers(node: ir.Node) -> bool:
    """Whether `node` is a layer, or nothing but layers reads what is made of its results alone, or in a Concat."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if is_op(current, *LAYER_OPERATORS):
            continue
        if not _hands_on(current) or any(output.is_graph_output() for output in current.outputs):
            return False
        users = {user for output in current.outputs for user in output.consumers()} - seen
        seen |= users
        pending += users
    return True


def _hands_on(node: ir.Node) -> bool:
    """Whether the values of one operand are all that a node's results are made of; or it is a Concat."""
    alone = sum(constant(operand) is None for operand in node.inputs if operand is not None) == 1
    return is_op(node, "Concat") or (
        alone and (is_op(node, "MaxPool", "Pad") or is_elementwise(node) or moves_only(node))
    )


def copy_move(node: ir.Node, inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
    """Insert a copy of a node with other inputs in front of it, and return its outputs."""
    copy = ir.Node("", node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
    for value, old in zip(copy.outputs, node.outputs, strict=True):
        value.name = f"{old.name}_moved"
        value.dtype = ir.DataType.FLOAT
        value.shape = None if old.shape is None else ir.Shape(list(old.shape))
    copy.name = copy.outputs[0].name
    assert node.graph is not None
    node.graph.insert_before(node, copy)
    return list(copy.outputs)


def layer_inputs(graph: ir.Graph) -> list[ir.Value]:
    """What elementwise operators make for layers, directly or through operators that keep the values as they are."""
    found: dict[ir.Value, None] = {}
    pending = [node.inputs[0] for node in graph if is_op(node, *LAYER_OPERATORS)]
    seen: set[ir.Value] = set()
    while pending:
        value = pending.pop(0)
        producer = None if value is None or value in seen else value.producer()
        if value is None or producer is None:
            continue
        seen.add(value)
        if is_op(producer, "Concat"):
            pending += producer.inputs
        elif is_op(producer, "MaxPool", "Pad") or moves_only(producer):
            pending.append(producer.inputs[0])
        elif is_elementwise(producer):
            found[value] = None
    return list(found)


def _reshape(after: Dims) -> list[Move] | None:
    return None if after.count(None) > 1 else [Reshape([-1 if size is None else size for size in after])]


def _transpose(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    return [Transpose(ints(node, "perm", list(range(len(before)))[::-1]))]


def _blocks(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    """DepthToSpace and SpaceToDepth of [N, C, H, W]: they take blocks apart, and put them together in another order."""
    size = node.attributes["blocksize"].as_int()
    channels, height, width = (after if is_op(node, "DepthToSpace") else before)[1:]
    if channels is None or height is None or width is None or None in after[1:]:
        return None
    if is_op(node, "SpaceToDepth"):
        apart = [-1, channels, height // size, size, width // size, size]
        order = [0, 3, 5, 1, 2, 4]
    else:
        mode = node.attributes.get("mode")
        first = mode is not None and mode.as_string() == "CRD"
        block = [channels, size, size] if first else [size, size, channels]
        apart = [-1, *block, height // size, width // size]
        order = [0, 1, 4, 2, 5, 3] if first else [0, 3, 4, 1, 5, 2]
    return [Reshape(apart), Transpose(order), Reshape([-1, *(dim or 0 for dim in after[1:])])]


def _expand(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    """Expand: what has one slice is repeated."""
    aligned: Dims = [*[1] * (len(after) - len(before)), *before]
    repeated = [axis for axis, size in enumerate(aligned) if size == 1 and after[axis] != 1]
    if any(after[axis] is None for axis in repeated):
        return None
    first = [] if len(aligned) == len(before) else _reshape(aligned)
    return None if first is None else [*first, *(Take([axis, [0] * (after[axis] or 0)]) for axis in repeated)]


def _slice(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    numbers = [constant(operand) for operand in node.inputs[1:]]
    if len(numbers) < 2 or any(array is None for array in numbers):
        return None
    starts, ends, *more = ([int(number) for number in array.reshape(-1)] for array in numbers if array is not None)
    axes = more[0] if more else list(range(len(starts)))
    steps = more[1] if len(more) > 1 else [1] * len(starts)
    moves: list[Move] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = before[axis]
        if size is None:
            if (start, step) == (0, 1) and end >= 2**31 - 1:  # all of it
                continue
            return None
        # An end below -size means that a backward slice goes to the first element, which is None in Python.
        stop = None if step < 0 and end < -size else end
        moves.append(Take([axis % len(before), list(range(size))[start:stop:step]]))
    return moves


def _split(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    attribute = node.attributes.get("axis")
    axis = (0 if attribute is None else attribute.as_int()) % len(before)
    first, index = 0, value.index()
    assert index is not None
    for other in node.outputs[: index + 1]:
        shape = static_shape(other)
        size = None if shape is None else shape[axis]
        if size is None:
            return None
        last, first = first, first + size
    return [Take([axis, list(range(last, first))])]


def _tile(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    repeats = constant(node.inputs[1])
    if repeats is None:
        return None
    moves: list[Move] = []
    for axis, times in enumerate(int(number) for number in repeats):
        size = before[axis]
        if times != 1:
            if size is None:
                return None
            moves.append(Take([axis, list(range(size)) * times]))
    return moves


def _gather(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    indices = constant(node.inputs[1])
    attribute = node.attributes.get("axis")
    axis = (0 if attribute is None else attribute.as_int()) % len(before)
    size = before[axis]
    if indices is None or size is None:
        return None
    take = Take([axis, [int(index) % size for index in indices.reshape(-1)]])
    more = [] if indices.ndim == 1 else _reshape(after)
    return None if more is None else [take, *more]


def _resize(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    """Resize in mode nearest: along each axis, which input element is the nearest to each output element."""
    options = {
        key: attribute.as_string() for key, attribute in node.attributes.items() if attribute.type.name == "STRING"
    }
    grid = options.get("coordinate_transformation_mode", "half_pixel")
    if options.get("mode", "nearest") != "nearest" or grid not in _GRIDS or "axes" in node.attributes:
        return None
    if options.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    moves: list[Move] = []
    known, wanted_dims = (list((v.shape if v is not None else None) or ()) for v in (node.inputs[0], value))
    for axis, (size, wanted) in enumerate(zip(before, after, strict=True)):
        if size is None or wanted is None:
            if known[axis] == wanted_dims[axis]:  # the same symbol
                continue
            if scales is None or scales.size == 0 or scales[axis] != 1:
                return None
            continue
        if size != wanted:
            scale = float(scales[axis]) if scales is not None and scales.size else wanted / size
            positions = _GRIDS[grid](np.arange(wanted, dtype=np.float64), scale, size, wanted)
            rounded = _NEAREST[options.get("nearest_mode", "round_prefer_floor")](positions)
            moves.append(Take([axis, np.clip(rounded, 0, size - 1).astype(int).tolist()]))
    return moves


_GRIDS: dict[str, Callable[[Positions, float, int, int], Positions]] = {
    "align_corners": lambda x, scale, size, wanted: x * (size - 1) / max(wanted - 1, 1),
    "asymmetric": lambda x, scale, size, wanted: x / scale,
    "half_pixel": lambda x, scale, size, wanted: (x + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda x, scale, size, wanted: (x + 0.5) / scale - 0.5 if wanted > 1 else x * 0,
}
"""How Resize finds the position, in the input, of the elements of its output."""

_NEAREST: dict[str, Callable[[Positions], Positions]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}
"""How Resize rounds such a position."""

_PADS = ("edge", "reflect", "wrap")
"""Modes of Pad that repeat elements of the input; numpy calls them the same."""


def _pad(node: ir.Node, value: ir.Value, before: Dims, after: Dims) -> list[Move] | None:
    attribute = node.attributes.get("mode")
    mode: Any = "constant" if attribute is None else attribute.as_string()
    pads, axes = constant(node.inputs[1]), constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if mode not in _PADS or pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None and axes is None):
        return None
    listed = range(len(before)) if axes is None else [int(axis) % len(before) for axis in axes]
    moves: list[Move] = []
    for i, axis in enumerate(listed):
        begin, end, size = int(pads[i]), int(pads[i + len(pads) // 2]), before[axis]
        if begin or end:
            if size is None or min(begin, end) < 0:
                return None
            moves.append(Take([axis, np.pad(np.arange(size), (begin, end), mode=mode).tolist()]))
    return moves


_MOVES: dict[str, Callable[[ir.Node, ir.Value, Dims, Dims], list[Move] | None]] = {
    "DepthToSpace": _blocks,
    "Expand": _expand,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _blocks,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}
