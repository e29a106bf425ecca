"""What every pass uses: a few questions and edits on onnx_ir graphs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from string import ascii_letters
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import DOMAIN, FLOAT_LAYERS

LAYER_OPERATORS = (*FLOAT_LAYERS, "ConvInteger", "QLinearConv")
"""The convolutions and linear layers of standard ONNX."""

MOVING_OPERATORS = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Whether `node` is one of these operators."""
    return node is not None and node.domain == domain and node.op_type in op_types


def is_binary_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the domain bnn_deploy."""
    return is_op(node, *op_types, domain=DOMAIN)


def is_standard_layer(node: ir.Node) -> bool:
    """Whether `node` is a layer of standard ONNX; an Einsum of several operands is one, too."""
    return is_op(node, *LAYER_OPERATORS) or (is_op(node, "Einsum") and len(node.inputs) > 1)


def einsum_terms(node: ir.Node) -> tuple[list[str], str] | None:
    """The labels of each operand of an Einsum and of its output, "..." as labels of their own; None if not known."""
    terms, arrow, out = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or len(operands) != len(node.inputs):
        return None
    more = {}  # how many dimensions the "..." of each operand stands for
    for i, (term, value) in enumerate(zip(operands, node.inputs, strict=True)):
        if "..." in term:
            shape = None if value is None else value.shape
            if shape is None:
                return None
            more[i] = len(shape) - len(term) + 3
    if len(set(more.values())) > 1:
        return None  # one is broadcast
    free = [label for label in ascii_letters if label not in terms]
    dots = "".join(free[: next(iter(more.values()), 0)])
    return [term.replace("...", dots) for term in operands], out.replace("...", dots)


def reads_abs_mean(node: ir.Node) -> bool:
    """Whether the first input of `node` is the mean magnitude that a BinarizeAbsMean gives: a filter of one channel."""
    value = node.inputs[0]
    return value is not None and value.index() == 1 and is_binary_op(value.producer(), "BinarizeAbsMean")


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The value of an initializer or a Constant node; None for anything else, graph inputs with a default included."""
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value) -> list[int | None] | None:
    """The shape with None for symbolic dimensions; None if the rank is unknown."""
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in value.shape]


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that uses `value`, or None if there are more uses or it is a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """The INTS attribute `name` of `node`."""
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else list(attribute.as_ints())


def group_of(node: ir.Node) -> int:
    """The number of groups of a convolution."""
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def swap_filters(weight: NDArray[Any], group: int) -> NDArray[Any]:
    """The weight of a ConvTranspose [C, O/group, kernel...] as that of a Conv, [O, C/group, kernel...], or back."""
    first, second = weight.shape[:2]
    groups = weight.reshape(group, first // group, second, *weight.shape[2:]).swapaxes(1, 2)
    return np.asarray(groups.reshape(group * second, first // group, *weight.shape[2:]))


def auto_pad(node: ir.Node) -> str | None:
    """The rule from which a Conv or MaxPool takes its pads; None if its `pads` say them."""
    attribute = node.attributes.get("auto_pad")
    rule = "" if attribute is None else attribute.as_string()
    return None if rule in ("", "NOTSET") else rule


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add a constant to the graph under `name`, or a longer one if that is taken, and return its value."""
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def insert_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    output: str,
    *,
    dtype: ir.DataType,
    shape: Iterable[Any] | None,
    domain: str = "",
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ir.Value:
    """Insert a node with one output before another and return the output."""
    node = ir.Node(
        domain,
        op_type,
        inputs,
        ir.convenience.convert_attributes(attributes),
        name=name or output,
        metadata_props=dict(metadata or {}),
    )
    value = node.outputs[0]
    value.name = output
    value.dtype = dtype
    value.shape = None if shape is None else ir.Shape(list(shape))
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return value


def maker(value: ir.Value) -> ir.Node:
    """The node that makes `value`, which is neither an input nor a constant."""
    node = value.producer()
    assert node is not None
    return node


def between(start: ir.Value, end: ir.Node) -> list[ir.Node]:
    """The nodes on the ways from `start` to `end`, the latter included, in the order of the graph."""
    above, pending = {end}, [end]
    while pending:
        for value in pending.pop().inputs:
            producer = None if value is None or value is start else value.producer()
            if producer is not None and producer not in above:
                above.add(producer)
                pending.append(producer)
    reached: set[ir.Value | None] = {start}
    found = []
    assert end.graph is not None
    for node in end.graph:
        if node in above and reached.intersection(node.inputs):
            reached.update(node.outputs)
            found.append(node)
    return found


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let every user of `old`, and the graph's outputs, use `new`; remove old's node if that leaves it dead."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    remove_if_dead(old.producer())


def remove_if_dead(node: ir.Node | None) -> None:
    """Remove `node`, and what fed only it, if nothing uses its outputs."""
    if node is None or node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
        return
    producers = [i.producer() for i in node.inputs if i is not None]
    node.graph.remove(node, safe=True)
    for producer in producers:
        remove_if_dead(producer)


def read_pad(node: ir.Node) -> tuple[list[int], float] | None:
    """The pads of all dimensions (begins, then ends) and the value of a constant Pad that adds; None for any other."""
    data = node.inputs[0] if is_op(node, "Pad") else None
    shape = None if data is None else static_shape(data)
    mode = node.attributes.get("mode")
    pads = constant(node.inputs[1]) if is_op(node, "Pad") and len(node.inputs) > 1 else None
    if shape is None or pads is None or (mode is not None and mode.as_string() != "constant"):
        return None
    value_input, axes_input = ([*node.inputs[2:], None, None])[:2]
    value, axes = constant(value_input), constant(axes_input)
    if (value_input is not None and value is None) or (axes_input is not None and axes is None):
        return None
    rank = len(shape)
    every = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    found = [0] * (2 * rank)
    for i, axis in enumerate(every):
        found[axis], found[axis + rank] = int(pads[i]), int(pads[i + len(every)])
    return None if min(found) < 0 else (found, 0.0 if value is None else float(value.reshape(())))


def is_flatten(node: ir.Node, result: ir.Value) -> bool:
    """Whether `node` makes [N, features] of [N, ...], and only linear layers read `result`, it or a sign of it."""
    shape, data = static_shape(node.outputs[0]), node.inputs[0]
    before = None if data is None else static_shape(data)
    if not is_op(node, "Flatten", "Reshape") or shape is None or before is None or len(shape) != 2:
        return False
    sizes = [size for size in before[1:] if size is not None]
    # Two first sizes that are not known may differ: those of [N, T, C] and [N * T, C].
    other_batch = shape[0] != before[0] or (len(sizes) == len(before) - 1 and shape[1] not in (None, math.prod(sizes)))
    users = list(result.consumers())
    if other_batch or not users or result.is_graph_output():
        return False
    return all(is_op(user, "Gemm", "MatMul") for user in users)


@contextmanager
def without_logs() -> Iterator[None]:
    """Keep the log of onnx-ir and onnxscript off the terminal: tracebacks of what they tried, and went on without."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def some_filters(weight: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """The filters of weights [O, ...], flat and in float64, some at a time: all may take much memory."""
    rows = max(1, 2**20 // max(weight[:1].size, 1))
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows]
        yield part.reshape(len(part), -1).astype(np.float64)
