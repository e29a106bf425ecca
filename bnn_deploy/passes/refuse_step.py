"""RefuseStep: a sign that is 0 over an interval is a step to 0 and 1, and not ±1."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.fold_threshold import Monotone, monotone
from bnn_deploy.passes.graph import REFUSED, PassResult, constant, is_op, static_shape, zero_value

_MOVES = ("AveragePool", "Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What gives 0 where all that it reads is 0."""


class RefuseStep:
    """Sign(f(x)), f exactly 0 over an interval and sign(0) being 0: marked, so that its layers are left float.

    1. Relu, a Clip with 0 as one of its limits, Max or Min with 0, rounding to integers, ThresholdedRelu, Shrink,
       HardSigmoid, HardSwish, a channel that is multiplied by 0: there Sign is 0 not only at a single number, which the
       paper's +1 could stand for. Sign(Relu(x)), Larq's ste_heaviside, is 0 and 1.
    2. Between it and the Sign there may be pools, moves, and functions per channel that take the constant to exactly 0
       in some channel.

    Declines: what is behind a BatchNormalization, whose shift is 0 only before training. It rewrites nothing: where
        sign(0) is +1 or -1 in the source, ±1 is right.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Mark every such Sign."""
        result = PassResult()
        for node in model.graph:
            flat = _flat(node) if is_op(node, "Sign") and not zero_value(node) else None
            if flat is not None:
                node.metadata_props[REFUSED] = (
                    f"its input is a Sign that gives 0, too, and not only -1 and 1: {flat.op_type} "
                    f"'{flat.outputs[0].name}' before it makes exact zeros, whose sign is 0"
                )
                result.modified += 1
        return result


def _flat(sign: ir.Node) -> ir.Node | None:
    """What above a Sign makes its input exactly 0 over an interval, in some channel at least."""
    functions: list[Monotone] = []
    value, shape = sign.inputs[0], static_shape(sign.outputs[0])
    channels = (shape[1] if shape is not None and len(shape) > 1 else None) or 1
    while value is not None and (node := value.producer()) is not None:
        step = "" if is_op(node, *_MOVES) or not _has_channels(node, channels) else monotone(node, channels)
        levels = [np.full(channels, level, np.float32) for level in _levels(node)]
        if not isinstance(step, str):
            low, high = step(-np.ones(channels, np.float32)), step(np.ones(channels, np.float32))
            levels.append(np.where(low == high, low, np.float32(np.nan)))
        for level in levels:
            for function in functions[::-1]:
                level = function(level)
            if (level == 0).any():
                return node
        if is_op(node, "BatchNormalization") or (isinstance(step, str) and not is_op(node, *_MOVES)):
            return None
        if not isinstance(step, str):
            functions.append(step)
        value = node.inputs[0] if constant(node.inputs[0]) is None else node.inputs[1]
    return None


def _has_channels(node: ir.Node, channels: int) -> bool:
    """Whether the result of `node` has so many channels."""
    shape = static_shape(node.outputs[0])
    return shape is not None and len(shape) > 1 and shape[1] == channels


def _levels(node: ir.Node) -> list[float]:
    """The values that an operator gives over an interval each; of rounding, those that are near 0."""
    if is_op(node, "HardSwish", "Relu", "Shrink", "ThresholdedRelu"):
        return [0.0]
    if is_op(node, "HardSigmoid"):
        return [0.0, 1.0]
    if is_op(node, "Clip", "Max", "Min"):
        limits = [constant(value) for value in (node.inputs[1:] if is_op(node, "Clip") else node.inputs)]
        return [float(limit.reshape(())) for limit in limits if limit is not None and limit.size == 1]
    data = node.inputs[0] if node.inputs else None
    to_integer = is_op(node, "Cast") and data is not None and data.dtype is not None and data.dtype.is_integer()
    return [float(level) for level in range(-256, 256)] if to_integer or is_op(node, "Ceil", "Floor", "Round") else []
