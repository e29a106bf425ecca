"""SimplifyReshape: shapes that are computed at run time only to keep the batch dimension become constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import add_initializer, constant, is_op, remove_if_dead
from bnn_deploy.passes.outcome import Outcome, Pass


class SimplifyReshape(Pass):
    """Reshape(x, Concat(batch of x, constants))  ==>  Reshape(x, [0, constants]).

    PyTorch's x.view(x.shape[0], ...) exports as Shape -> Squeeze -> Reshape -> Concat -> Reshape: five nodes that cost
    a small network a noticeable part of its time, and behind which shape inference knows nothing.

    Conditions: the first dimension of the data and of the result are the same symbol, or must be the same size since
    the others have equally many elements; and all others are known, of the result or from what its shape is computed
    of; a -1 counts as known if the data's dimensions are.

    Declines: nothing; a Reshape that does not qualify stays as it is.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Reshape that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            data, output = (node.inputs[0], node.outputs[0]) if is_op(node, "Reshape") else (None, None)
            if data is None or data.shape is None or output is None or constant(node.inputs[1]) is not None:
                continue
            shape = _known(list(data.shape), None if output.shape is None else list(output.shape))
            shape = shape or _known(list(data.shape), dimensions(node.inputs[1]))
            if shape is None:
                continue
            old = node.inputs[1]
            target = np.array([0, *shape[1:]], dtype=np.int64)  # 0 keeps the dimension of the input
            node.replace_input_with(1, add_initializer(model.graph, f"{output.name}_shape", target))
            node.attributes.pop("allowzero", None)
            output.shape = ir.Shape(shape)
            remove_if_dead(None if old is None else old.producer())
            result.rewrote(node)
        return result


def _known(data: list[Any], shape: list[Any] | None) -> list[Any] | None:
    """The shape [batch of data, numbers...], with a -1 resolved; None if it is not one."""
    if not shape or not data or isinstance(data[0], int) or (shape[0] != data[0] and not _same_batch(data, shape)):
        return None
    sizes = shape[1:]
    if -1 in sizes:
        rest = [size for size in data[1:] if isinstance(size, int)]
        others = math.prod(size for size in sizes if isinstance(size, int) and size != -1)
        if len(rest) != len(data) - 1 or others == 0 or math.prod(rest) % others:
            return None
        sizes = [math.prod(rest) // others if size == -1 else size for size in sizes]
    return [shape[0] or data[0], *sizes] if all(isinstance(size, int) and size > 0 for size in sizes) else None


def _same_batch(data: list[Any], shape: list[Any]) -> bool:
    """Whether two first dimensions, which are no numbers, are of one size because all others are known."""
    rest = [*data[1:], *shape[1:]]
    known = all(isinstance(size, int) and size > 0 for size in rest) and not isinstance(shape[0], int)
    return known and math.prod(data[1:]) == math.prod(shape[1:])


def dimensions(value: ir.Value | None) -> list[Any] | None:
    """What a tensor of dimensions holds: numbers, and symbols where it copies those of a shape; None if unknown."""
    array = constant(value)
    if array is not None:
        return [int(number) for number in array.reshape(-1)] if array.dtype.kind == "i" else None
    node = None if value is None else value.producer()
    data = None if node is None else node.inputs[0]
    if node is None or data is None:
        return None
    if is_op(node, "Shape"):
        attributes = [node.attributes.get(key) for key in ("start", "end")]
        limits = slice(*(None if attribute is None else attribute.as_int() for attribute in attributes))
        return None if data.shape is None else list(data.shape)[limits]
    if is_op(node, "Concat"):
        parts = [dimensions(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [dim for part in parts for dim in part or []]
    known = dimensions(data)
    if known is None or is_op(node, "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return known
    indices = [constant(index) for index in node.inputs[1:]]
    if any(index is None for index in indices):
        return None
    if is_op(node, "Gather"):
        return [known[int(i)] for index in indices if index is not None for i in index.reshape(-1)]
    if is_op(node, "Slice") and len(indices) >= 2:
        numbers = [int(index.reshape(-1)[0]) for index in indices if index is not None]
        start, end, _, step = [*numbers, *(0, 1)[len(numbers) - 2 :]]  # the axis can only be 0
        return known[start:end:step]
    return None
