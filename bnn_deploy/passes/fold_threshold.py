"""FoldThreshold: what stands between a layer and its binarisation goes into the binarisation's threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.bits import pack_bits, unpack_bits
from bnn_deploy.passes.graph import (
    PassResult,
    complemented,
    constant,
    is_binary_op,
    is_op,
    remove_if_dead,
    set_complemented,
    static_shape,
    zero_value,
)

Floats = NDArray[np.float32]
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


class FoldThreshold:
    """Binarize(f(x), t), f monotone in each channel  ==>  Binarize(x, t').

    1. f is BatchNormalization, Relu, LeakyRelu, PRelu, Clip, Mul, Add, Sub or Div by a constant per channel, Neg, Sign
       or Identity, with x of the same shape, used only by this Binarize.
    2. t' is the smallest float32 x for which the float32 expression f(x) >= t holds, found by bisection over the
       float32 numbers and not by algebra, so the bits agree by construction, f's rounding included. BatchNormalization
       is evaluated as a * x + b with a = gamma / sqrt(var + eps) and b = beta - mean * a, as PyTorch and onnxruntime
       do.
    3. A channel in which f falls (negative gamma) is x <= s, the complement of x > s: its bits are stored complemented,
       and the weight bits (and pad value) of that channel are flipped in every consumer, which leaves every product
       unchanged.
    4. A constant channel (gamma 0) gets an infinite threshold.

    Declines: a falling channel where a consumer is not a BinaryConv (its OR would become an AND); PRelu with a negative
    slope, which is not monotone; constants that are not per channel.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Fold until nothing changes."""
        result = PassResult()
        for node in list(model.graph):
            if is_binary_op(node, "Binarize"):
                while (reason := self._fold(node)) is None:
                    result.modified += 1
                if reason:
                    result.decline(node, reason)
        return result

    def _fold(self, binarize: ir.Node) -> str | None:
        """Fold one node into `binarize`: None if done, a reason if declined, "" if there is nothing to look at."""
        value = binarize.inputs[0]
        producer = None if value is None else value.producer()
        if value is None or producer is None:
            return ""
        threshold = constant(binarize.inputs[1])
        assert threshold is not None
        function = monotone(producer, len(threshold))
        if isinstance(function, str):
            return function
        if len(list(value.uses())) > 1 or value.is_graph_output():
            return f"'{value.name}' ({producer.op_type}) is used elsewhere too"
        with np.errstate(over="ignore"):  # the bisection starts at the largest floats
            new, falling = bisect_threshold(lambda x: function(x) >= threshold, len(threshold))
        if falling.any():
            for consumer in binarize.outputs[0].consumers():
                reason = complementable(consumer, binarize.outputs[0])
                if reason:
                    channel = int(np.flatnonzero(falling)[0])
                    return f"channel {channel} of {producer.op_type} '{value.name}' falls: {reason}"
            complement_channels(binarize, falling)
        data = producer.inputs[0] if constant(producer.inputs[0]) is None else producer.inputs[1]
        assert binarize.graph is not None and data is not None
        binarize.replace_input_with(0, data)
        old = binarize.inputs[1]
        name = old.name if old is not None else None
        assert old is not None and name is not None
        old.const_value = ir.tensor(new, name=name)
        remove_if_dead(producer)
        return None


def monotone(node: ir.Node, channels: int) -> Monotone | str:
    """The function per channel that `node` computes, or why it is not one; "" if it is none of the known operators."""
    if is_op(node, "Relu"):
        return lambda x: np.maximum(x, np.float32(0))
    if is_op(node, "Identity"):
        return lambda x: x
    if is_op(node, "Neg"):
        return lambda x: -x
    if is_op(node, "Sign"):
        zero = np.float32(zero_value(node))
        return lambda x: np.where(x == 0, zero, np.sign(x))
    if is_op(node, "LeakyRelu"):
        attribute = node.attributes.get("alpha")
        slope = np.float32(0.01 if attribute is None else attribute.as_float())
        return _leaky(node, np.full(channels, slope))
    if is_op(node, "PRelu"):
        slopes = operand_per_channel(node, 1, channels)
        return slopes if isinstance(slopes, str) else _leaky(node, slopes)
    if is_op(node, "Clip"):
        if node.attributes:
            return "the bounds of Clip are attributes, as before opset 11: convert the model to a newer opset"
        bounds = [constant(v) if v is not None else None for v in list(node.inputs[1:3])]
        if any(v is not None and b is None for v, b in zip(node.inputs[1:3], bounds, strict=False)):
            return "the bounds of Clip are not constant"
        low, high = ([*bounds, None, None])[:2]
        return lambda x: np.clip(x, -np.inf if low is None else low, np.inf if high is None else high).astype(
            np.float32
        )
    if is_op(node, "BatchNormalization"):
        line = batch_norm_line(node)
        return line if isinstance(line, str) else lambda x: x * line[0] + line[1]
    if is_op(node, "Add", "Sub", "Mul", "Div"):
        return _arithmetic(node, channels)
    return ""


def _leaky(node: ir.Node, slopes: Floats) -> Monotone | str:
    if (slopes < 0).any():
        channel, name = int(np.flatnonzero(slopes < 0)[0]), node.outputs[0].name
        return f"channel {channel} of {node.op_type} '{name}' has a negative slope, so it is not monotone"
    return lambda x: np.where(x < 0, x * slopes, x)


def batch_norm_line(node: ir.Node) -> tuple[Floats, Floats] | str:
    """The a and b [C] of the a * x + b that a BatchNormalization computes, in float32, or why there are none."""
    parameters = [constant(v) for v in node.inputs[1:5]]
    if any(p is None for p in parameters):
        return "the parameters of BatchNormalization are not constant"
    training = node.attributes.get("training_mode")
    if training is not None and training.as_int():
        return "BatchNormalization is in training mode: export the model in eval mode"
    gamma, beta, mean, var = (np.asarray(p, dtype=np.float32) for p in parameters)
    epsilon = node.attributes.get("epsilon")
    eps = np.float32(1e-5 if epsilon is None else epsilon.as_float())
    a = gamma / np.sqrt(var + eps)
    return a, beta - mean * a


def _arithmetic(node: ir.Node, channels: int) -> Monotone | str:
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if left is None and right is None:
        return ""  # a residual: both sides are data
    c = operand_per_channel(node, 0 if left is not None else 1, channels)
    if isinstance(c, str):
        return c
    if is_op(node, "Add"):
        return lambda x: x + c
    if is_op(node, "Mul"):
        return lambda x: x * c
    if is_op(node, "Sub"):
        return (lambda x: x - c) if left is None else (lambda x: c - x)
    if left is not None:
        return "it divides by data, which is not monotone"
    if (c == 0).any():
        return f"channel {int(np.flatnonzero(c == 0)[0])} is divided by 0"
    return lambda x: x / c


def operand_per_channel(node: ir.Node, index: int, channels: int) -> Floats | str:
    """Input `index` of an elementwise node as [C] float32, if it is constant and broadcasts along axis 1."""
    array = constant(node.inputs[index])
    other = node.inputs[1 - index]
    shape = None if other is None else static_shape(other)
    name = node.outputs[0].name
    if array is None or shape is None:
        return f"the operand of {node.op_type} '{name}' is not constant, or its shape is unknown"
    if array.ndim > len(shape):
        return f"the operand of {node.op_type} '{name}' has more dimensions than the data"
    if shape[1] != channels:
        return f"{node.op_type} '{name}' broadcasts its data to more channels, or their number is unknown"
    aligned = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    per_channel = [1] * len(shape)
    per_channel[1] = aligned.shape[1]
    if list(aligned.shape) != per_channel or aligned.shape[1] not in (1, channels):
        return (
            f"the operand of {node.op_type} '{name}' has shape {list(array.shape)}, which is not one value per channel"
        )
    values: Any = np.broadcast_to(aligned.reshape(-1), (channels,))
    return np.array(values, dtype=np.float32)


def complementable(consumer: ir.Node, bits: ir.Value) -> str:
    """Why complementing a channel of `bits` cannot be undone in `consumer`; "" if it can."""
    if is_op(consumer, "Unsqueeze"):
        reasons = [complementable(c, consumer.outputs[0]) for c in consumer.outputs[0].consumers()]
        return next((reason for reason in reasons if reason), "")
    if bits.is_graph_output():
        return "its bits are an output of the model"
    if is_binary_op(consumer, "BinaryConv", "BinaryConvThreshold"):
        return ""
    return f"its bits feed {consumer.op_type} '{consumer.outputs[0].name}', which cannot take them complemented"


def complement_channels(producer: ir.Node, channels: NDArray[np.bool_]) -> None:
    """Account for the bits of `channels` [C] being complemented, in the metadata and in every consumer's weights."""
    set_complemented(producer, complemented(producer) ^ set(np.flatnonzero(channels).tolist()))
    consumers = list(producer.outputs[0].consumers())
    while consumers:
        consumer = consumers.pop()
        if is_op(consumer, "Unsqueeze"):
            consumers += consumer.outputs[0].consumers()
        else:
            _flip_inputs(consumer, channels)


def _flip_inputs(conv: ir.Node, channels: NDArray[np.bool_]) -> None:
    """Flip the weight bits, and the ±1 that the padding holds, of some input channels [C] of a binary convolution."""
    weight_value, pad_value = conv.inputs[1], conv.inputs[-1]
    weight, pad = constant(weight_value), constant(pad_value)
    assert weight_value is not None and pad_value is not None and weight is not None and pad is not None
    group = conv.attributes["group"].as_int()
    outputs, per_group = len(weight), len(channels) // group
    flips = channels.reshape(group, per_group)[np.arange(outputs) // (outputs // group)]
    signs = unpack_bits(weight, per_group) ^ flips.reshape(outputs, *([1] * (weight.ndim - 2)), per_group)
    weight_value.const_value = ir.tensor(pack_bits(signs), name=weight_value.name)
    if pad.any():
        flipped = np.where(channels, -pad, pad).astype(np.float32)
        pad_value.const_value = ir.tensor(flipped, name=pad_value.name)
        pad_value.shape = ir.Shape(flipped.shape)
