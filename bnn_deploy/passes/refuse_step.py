"""RefuseStep: a sign that is 0 over an interval is a step to 0 and 1, and not ±1."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.fold_threshold import Monotone, monotone
from bnn_deploy.passes.graph import REFUSED, PassResult, constant, is_op, static_shape, zero_value

_MOVES = ("AveragePool", "Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What gives 0 where all that it reads is 0."""


class RefuseStep:
    """Sign(Relu(x)), sign(0) being 0: marked, so that LowerBinaryConv leaves the layers that read it float.

    1. A ReLU, or a Clip with 0 as one of its limits, is exactly 0 for every x on one side; Sign is 0 there, and not at
       a single number that the paper's +1 could stand for: the activations are 0 and 1 (Larq's ste_heaviside).
    2. Between it and the Sign there may be pools, moves, and functions per channel that keep that 0 exactly 0 in some
       channel.

    Declines: what is behind a BatchNormalization, whose shift is 0 only before training. It rewrites nothing: where
        sign(0) is +1 or -1 in the source, ±1 is right.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Mark every such Sign."""
        result = PassResult()
        for node in model.graph:
            clamp = _clamp(node) if is_op(node, "Sign") and not zero_value(node) else None
            if clamp is not None:
                node.metadata_props[REFUSED] = (
                    f"its input is a Sign that gives 0 and 1, not -1 and 1: {clamp.op_type} '{clamp.outputs[0].name}' "
                    "before it gives exact zeros, whose sign is 0"
                )
                result.modified += 1
        return result


def _clamp(sign: ir.Node) -> ir.Node | None:
    """What above a Sign makes its input exactly 0 over an interval, in some channel at least."""
    functions: list[Monotone] = []
    value, shape = sign.inputs[0], static_shape(sign.outputs[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    while value is not None and (node := value.producer()) is not None:
        for limit in _limits(node):
            y = np.full(channels or 1, limit, np.float32)
            for function in functions[::-1]:
                y = function(y)
            if (y == 0).any():
                return node
        if not is_op(node, *_MOVES):
            here = static_shape(node.outputs[0])
            if channels is None or here is None or len(here) < 2 or here[1] != channels:
                return None
            step = "" if is_op(node, "BatchNormalization") else monotone(node, channels)
            if isinstance(step, str):
                return None
            functions.append(step)
        value = node.inputs[0] if constant(node.inputs[0]) is None else node.inputs[1]
    return None


def _limits(node: ir.Node) -> list[float]:
    """The values that a clamp gives over an interval."""
    if is_op(node, "Relu"):
        return [0.0]
    limits = [constant(value) for value in node.inputs[1:3]] if is_op(node, "Clip") else []
    return [float(limit.reshape(())) for limit in limits if limit is not None and limit.size == 1]
