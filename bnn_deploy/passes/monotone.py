"""Functions that are monotone in each channel, and where they reach a threshold, by bisection over float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.elementwise import Array, evaluate
from bnn_deploy.passes.fusion_reasons import (
    ClipAttributes,
    ClipBounds,
    DataBroadcast,
    DividedByZero,
    DividesByData,
    NegativeSlope,
    NormParameters,
    NormTrains,
    OperandDimensions,
    OperandShape,
    OperandUnknown,
)
from bnn_deploy.passes.graph import constant, is_op, static_shape
from bnn_deploy.passes.reasons import Reason

Floats = NDArray[np.float32]

Doubles = NDArray[np.float64]

Monotone = Callable[[Floats], Floats]
"""A function [C] float32 -> [C] float32 that is monotone (either way) in each channel."""


def ordered_to_float(order: NDArray[np.int64]) -> Floats:
    """The inverse of `float_to_ordered`."""
    bits = np.where(order >= 0, order, -order - 1 + 2**31)
    return bits.astype(np.uint32).view(np.float32)


def float_to_ordered(value: float) -> int:
    """Number the float32 values in increasing order, without gaps; -0.0 is -1 and +0.0 is 0."""
    bits = int(np.float32(value).view(np.uint32))
    return bits if bits < 2**31 else -(bits - 2**31) - 1


LARGEST = float(np.finfo(np.float32).max)


def bisect_threshold(reached: Callable[[Floats], NDArray[np.bool_]], channels: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Find where a per-channel monotone predicate on float32 flips, exactly.

    Args:
        reached: maps one float32 per channel to one bool per channel; monotone in each channel.
        channels: number of channels.

    Returns:
        threshold [C] float32 and falling [C] bool: the predicate equals x >= threshold, or its complement where
        `falling`, for every finite x. A constant channel has the threshold -inf (always) or +inf (never).
    """
    low = np.full(channels, float_to_ordered(-LARGEST), dtype=np.int64)
    high = np.full(channels, float_to_ordered(LARGEST), dtype=np.int64)
    at_low, at_high = reached(ordered_to_float(low)), reached(ordered_to_float(high))
    falling = at_low & ~at_high
    # Invariant: the predicate (complemented where falling) is false at `low` and true at `high`.
    while (high - low > 1).any():
        middle = (low + high) // 2
        true = reached(ordered_to_float(middle)) ^ falling
        high, low = np.where(true, middle, high), np.where(true, low, middle)
    threshold = ordered_to_float(high)
    threshold[at_low & at_high] = -np.inf
    threshold[~at_low & ~at_high] = np.inf
    return threshold, falling


def monotone(node: ir.Node, channels: int) -> Monotone | Reason | None:
    """The function per channel that `node` computes, or why it is not one; None if its operator is not known."""
    if is_op(node, "Relu", "Identity", "Neg", "Sign"):
        return lambda x: evaluate(node, [x])
    if is_op(node, "LeakyRelu"):
        attribute = node.attributes.get("alpha")
        slope = np.float32(0.01 if attribute is None else attribute.as_float())
        return _leaky(node, np.full(channels, slope))
    if is_op(node, "PRelu"):
        slopes = operand_per_channel(node, 1, channels)
        return slopes if isinstance(slopes, Reason) else _leaky(node, slopes)
    if is_op(node, "Clip"):
        if node.attributes:
            return ClipAttributes()
        bounds = [constant(v) if v is not None else None for v in list(node.inputs[1:3])]
        if any(v is not None and b is None for v, b in zip(node.inputs[1:3], bounds, strict=False)):
            return ClipBounds()
        return lambda x: evaluate(node, [x, *bounds])
    if is_op(node, "BatchNormalization"):
        line = batch_norm_line(node)
        return line if isinstance(line, Reason) else lambda x: x * line[0] + line[1]
    if is_op(node, "Add", "Sub", "Mul", "Div"):
        return _arithmetic(node, channels)
    return None


def _leaky(node: ir.Node, slopes: Floats) -> Monotone | Reason:
    if (slopes < 0).any():
        return NegativeSlope(int(np.flatnonzero(slopes < 0)[0]), node.op_type, node.outputs[0].name or "")
    return lambda x: np.where(x < 0, x * slopes, x)


def batch_norm_line(node: ir.Node, dtype: type[np.floating[Any]] = np.float32) -> tuple[Array, Array] | Reason:
    """The a and b [C] of the a * x + b that a BatchNormalization computes, in `dtype`; or a reason against it."""
    parameters = [constant(v) for v in node.inputs[1:5]]
    if any(p is None for p in parameters):
        return NormParameters()
    training = node.attributes.get("training_mode")
    if training is not None and training.as_int():
        return NormTrains()
    gamma, beta, mean, var = (np.asarray(p, dtype=dtype) for p in parameters)
    epsilon = node.attributes.get("epsilon")
    # An attribute is a float32 in the file, whatever the exporter has in memory.
    eps = dtype(1e-5 if epsilon is None else np.float32(epsilon.as_float()))
    a = gamma / np.sqrt(var + eps)
    return a, beta - mean * a


def _arithmetic(node: ir.Node, channels: int) -> Monotone | Reason | None:
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if left is None and right is None:
        return None  # a residual: both sides are data
    c = operand_per_channel(node, 0 if left is not None else 1, channels)
    if isinstance(c, Reason):
        return c
    if is_op(node, "Div") and left is not None:
        return DividesByData()
    if is_op(node, "Div") and (c == 0).any():
        return DividedByZero(int(np.flatnonzero(c == 0)[0]))
    return lambda x: evaluate(node, [x, c] if left is None else [c, x])


def operand_per_channel(node: ir.Node, index: int, channels: int, axis: int = 1) -> Floats | Reason:
    """Input `index` of an elementwise node as [C] float32, if it is constant and broadcasts along `axis`."""
    array = constant(node.inputs[index])
    other = node.inputs[1 - index]
    shape = None if other is None else static_shape(other)
    name = node.outputs[0].name or ""
    if array is None or shape is None:
        return OperandUnknown(node.op_type, name)
    if array.ndim > len(shape) or axis >= len(shape):  # one number per sample has no channels
        return OperandDimensions(node.op_type, name)
    if shape[axis] != channels:
        return DataBroadcast(node.op_type, name)
    aligned = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    per_channel = [1] * len(shape)
    per_channel[axis] = aligned.shape[axis]
    if list(aligned.shape) != per_channel or aligned.size not in (1, channels):
        return OperandShape(node.op_type, name, str(list(array.shape)))
    values: Any = np.broadcast_to(aligned.reshape(-1), (channels,))
    return np.array(values, dtype=np.float32)
