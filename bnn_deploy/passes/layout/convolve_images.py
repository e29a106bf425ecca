"""ConvolveImages: a first layer reads the bytes of an image, and the normalisation in front of it is its table."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.elementwise import evaluate, is_elementwise
from bnn_deploy.passes.graph import (
    add_initializer,
    constant,
    insert_node,
    ints,
    is_binary_op,
    is_op,
    maker,
    remove_if_dead,
    replace_value,
    static_shape,
)
from bnn_deploy.passes.outcome import Outcome, Pass

BYTES = 256
"""The values of a byte."""


class ConvolveImages(Pass):
    """DirectConv(f(x), W, b)  ==>  ImageConv(x, W, b, f(0 ... 255)), and the same of DirectConvThreshold.

    x is uint8, and f a chain of elementwise operators with constants that are the same for all pixels of a channel,
    such as ((float(x) / 255) - mean) / std; it may have the Transpose of an image with its channels last. f is computed
    here, in its own arithmetic, for each byte and channel.

    Declines: nothing; a DirectConv of floats is right as it is.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every direct convolution of an image."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_binary_op(node, "DirectConv", "DirectConvThreshold"):
                continue
            x, weight, bias, *threshold = node.inputs
            array = constant(weight)
            assert x is not None and array is not None
            found = _levels(x, array.shape[1], array.ndim)
            if found is None:
                continue
            image, last, levels = found
            old = node.outputs[0]
            new = insert_node(
                node,
                node.op_type.replace("Direct", "Image"),
                [image, weight, bias, add_initializer(_graph(node), f"{x.name}_levels", levels), *threshold],
                {"channels_last": int(last)} | {name: list(a.as_ints()) for name, a in node.attributes.items()},
                f"{old.name}_image",
                dtype=old.dtype or ir.DataType.FLOAT,
                shape=old.shape,
                domain=DOMAIN,
                name=node.name,
                metadata=node.metadata_props,
            )
            result.rewrote(maker(new), node)
            name = old.name
            new.metadata_props.update(old.metadata_props)
            replace_value(old, new)
            new.name = name
            remove_if_dead(node)
        return result


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _levels(x: ir.Value, channels: int, rank: int) -> tuple[ir.Value, bool, NDArray[np.float32]] | None:
    """The image that x is made of, whether its channels are last, and x for each channel and byte, [C, 256].

    Args:
        x: [N, C, spatial...] float32.
        channels: C.
        rank: the number of dimensions of x.
    """
    nodes: list[ir.Node] = []
    while x.dtype != ir.DataType.UINT8 or is_op(x.producer(), "Transpose", "Reshape"):
        node = x.producer()
        data = [] if node is None else [value for value in node.inputs if constant(value) is None and value is not None]
        if node is None or len(data) != 1 or not (is_elementwise(node) or _moves_channels(node)):
            return None
        nodes.insert(0, node)
        (x,) = data
    to_first = [0, rank - 1, *range(1, rank - 1)]
    last = any(map(_moves_channels, nodes))
    # Each byte is a row of an image of one column.
    shape = [1, channels, BYTES, *[1] * (rank - 3)]
    made: NDArray[Any] = np.broadcast_to(np.arange(BYTES, dtype=np.uint8).reshape(1, 1, *shape[2:]), shape)
    axis = 1
    if last:
        made, axis = np.moveaxis(made, 1, -1), rank - 1
    for node in nodes:
        if _moves_channels(node):
            if axis == 1:
                return None
            made, axis = made.transpose(to_first), 1
            continue
        operands = [None if value is None else constant(value) for value in node.inputs]
        if not all(array is None or _is_per_channel(array, rank, axis) for array in operands):
            return None
        given = [made if a is None and value is not None else a for a, value in zip(operands, node.inputs, strict=True)]
        try:
            made = evaluate(node, given)
        except (TypeError, ValueError):
            return None
    if axis != 1 or made.dtype != np.float32 or list(made.shape) != shape:
        return None
    return x, last, np.ascontiguousarray(made.reshape(channels, BYTES))


def _moves_channels(node: ir.Node) -> bool:
    """Whether a node moves the last dimension behind the first: of an only channel it may be a Reshape."""
    before, after = (None if value is None else static_shape(value) for value in (node.inputs[0], node.outputs[0]))
    if is_op(node, "Transpose") and after is not None:
        return ints(node, "perm", []) == [0, len(after) - 1, *range(1, len(after) - 1)]
    if not is_op(node, "Reshape") or before is None or after is None or len(before) != len(after):
        return False
    return before[-1] == after[1] == 1 and None not in before[1:] and before[1:-1] == after[2:]


def _is_per_channel(array: NDArray[Any], rank: int, axis: int) -> bool:
    """Whether a constant is the same for all pixels of a channel, along that axis of `rank` dimensions."""
    if array.ndim > rank:
        return False
    shape = [1] * (rank - array.ndim) + list(array.shape)
    del shape[axis]
    return all(size == 1 for size in shape)
