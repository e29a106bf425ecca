"""SimplifyBroadcast: what is one value per channel is written as one value per channel."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.elementwise import uniform
from bnn_deploy.passes.graph import add_initializer, constant, is_op, remove_if_dead, static_shape
from bnn_deploy.passes.outcome import Outcome, Pass

BROADCASTING = ("Add", "Div", "Mul", "PRelu", "Sub")


class SimplifyBroadcast(Pass):
    """Add(x, Expand(c, shape)), or a constant of x's full shape with equal slices  ==>  Add(x, c), c [1, C, 1, 1].

    Learned thresholds and shifts (RSign, RPReLU) come like this out of exporters, the second form with the batch size
    of the export in it.

    Conditions: the operator is Add, Sub, Mul, Div or PRelu; its result has the rank of the other operand, and its
        sizes wherever both are known, so that the constant does not enlarge it.

    Declines: nothing; a constant whose slices differ stays, and FoldThreshold says so.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every operand that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_op(node, *BROADCASTING):
                continue
            for index in (1,) if is_op(node, "PRelu") else (0, 1):
                value, data = node.inputs[index], node.inputs[1 - index]
                array = uniform(value)
                if value is None or data is None or array is None or uniform(data) is not None:
                    continue
                reduced = _reduce(array)
                if not _keeps_shape(node, data, array) or (constant(value) is not None and reduced.size == array.size):
                    continue
                name = f"{node.outputs[0].name}_operand"
                node.replace_input_with(index, add_initializer(model.graph, name, reduced))
                remove_if_dead(value.producer())
                result.rewrote(node)
        return result


def _reduce(array: NDArray[Any]) -> NDArray[Any]:
    """One slice of each axis along which all slices are equal; axis 1, the channels, keeps its size."""
    for axis in range(array.ndim):
        first = array.take([0], axis=axis)
        if array.shape[axis] > 1 and (axis != 1 or array.ndim < 2) and (array == first).all():
            array = first
    return array


def _keeps_shape(node: ir.Node, data: ir.Value, array: NDArray[Any]) -> bool:
    """Whether the result has the data's shape, as far as that is known."""
    before, after = static_shape(data), static_shape(node.outputs[0])
    if before is None or after is None or len(before) != len(after) or array.ndim > len(before):
        return False
    sizes = zip(before, after, strict=True)
    if any(a != b for a, b in sizes if a is not None and b is not None):
        return False
    # A dimension that is not known of the data is its own only if the constant would fit any.
    aligned = (1,) * (len(before) - array.ndim) + array.shape
    return all(size is not None or constant_size == 1 for size, constant_size in zip(before, aligned, strict=True))
