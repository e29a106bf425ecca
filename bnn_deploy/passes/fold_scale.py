"""FoldScale: a constant factor per filter behind a binary convolution goes into its scale."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.graph import (
    PassResult,
    add_initializer,
    constant,
    is_binary_op,
    is_op,
    replace_value,
    set_source,
    sole_consumer,
)


class FoldScale:
    """Mul(BinaryConv(..., s, b, ...), c)  ==>  BinaryConv(..., c * s, c * b, ...), and BinaryConvScaled likewise.

    1. c is constant, one value per filter or one for all: alpha, where a network multiplies by it behind a convolution
       with weights of ±1.
    2. Behind a BinaryConv with scale 1 and bias 0 this is exact; else it changes the rounding of floats, by about one
       unit in the last place, as FoldBatchNorm does. Before a sign, FoldThreshold, which is exact, goes first.

    Declines: a convolution that something else uses too.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Fold every Mul that qualifies."""
        result = PassResult()
        for node in list(model.graph):
            if not is_op(node, "Mul"):
                continue
            for index in (0, 1):
                value = node.inputs[index]
                conv = None if value is None else value.producer()
                if value is None or conv is None or not is_binary_op(conv, "BinaryConv", "BinaryConvScaled"):
                    continue
                factor = per_filter(node.inputs[1 - index], value)
                if factor is None:
                    continue
                if sole_consumer(value) is not node:
                    result.decline(node, f"'{value.name}' is used elsewhere too")
                    continue
                name = node.outputs[0].name or ""
                scale_conv(model.graph, conv, factor, name)
                set_source(conv, node.outputs[0])
                replace_value(node.outputs[0], value)
                value.name = name
                result.modified += 1
        return result


def per_filter(operand: ir.Value | None, of: ir.Value) -> NDArray[np.float32] | None:
    """A constant operand of an elementwise node as [O] float32, if it has one value for all of `of`, or per channel.

    Args:
        operand: it.
        of: the other operand, [N, O, spatial...].
    """
    array = constant(operand)
    if array is None or of.shape is None or array.ndim > len(of.shape) or not isinstance(of.shape[1], int):
        return None
    channels = of.shape[1]
    aligned = array.reshape((1,) * (len(of.shape) - array.ndim) + array.shape)
    if aligned.size not in (1, channels) or aligned.shape[1] != aligned.size:
        return None
    return np.broadcast_to(aligned.reshape(-1), channels).astype(np.float32)


def scale_conv(graph: ir.Graph, conv: ir.Node, factor: NDArray[np.float32], name: str) -> None:
    """Multiply scale and bias of a binary convolution by `factor` [O]; the new constants are called after `name`."""
    for index, suffix in ((2, "scale"), (3, "bias")):
        old = constant(conv.inputs[index])
        assert old is not None
        # Constants of its own: the old ones may be shared.
        conv.replace_input_with(index, add_initializer(graph, f"{name}_{suffix}", old * factor))
