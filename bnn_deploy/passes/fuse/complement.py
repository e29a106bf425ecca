"""Complemented channels: a bit stored inverted, and the weight bits of its readers with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.bits import WORD, pack_bits, unpack_bits
from bnn_deploy.operators.contract import BINARY, operator_of
from bnn_deploy.passes.fusion_reasons import BitsAreOutput, BitsFeed
from bnn_deploy.passes.graph import constant, is_op
from bnn_deploy.passes.reasons import Reason
from bnn_deploy.provenance import complemented, set_complemented


def _hands_on(node: ir.Node) -> bool:
    """Whether a node moves words of bits as they are: a Concat of channels, a Gather along rows or columns."""
    if is_op(node, "Concat"):
        return node.attributes["axis"].as_int() == -1
    return is_op(node, "Gather", "Unsqueeze")


def complementable(consumer: ir.Node, bits: ir.Value) -> Reason | None:
    """Why complementing a channel of `bits` cannot be undone in `consumer`; None if it can."""
    if _hands_on(consumer):
        reasons = [complementable(c, consumer.outputs[0]) for c in consumer.outputs[0].consumers()]
        return next((reason for reason in reasons if reason), None)
    if bits.is_graph_output():
        return BitsAreOutput()
    row = operator_of(consumer)
    if row is not None and row.status == BINARY and any(given.name == "pad_value" for given in row.inputs):
        return None
    return BitsFeed(consumer.op_type, consumer.outputs[0].name or "")


def complement_channels(producer: ir.Node, channels: NDArray[np.bool_]) -> None:
    """Account for the bits of `channels` [C] being complemented, in the metadata and in every consumer's weights."""
    set_complemented(producer, complemented(producer) ^ set(np.flatnonzero(channels).tolist()))
    _complement(producer.outputs[0], channels)


def _complement(bits: ir.Value, channels: NDArray[np.bool_]) -> None:
    """Account for complemented channels [C] in everything that reads `bits`."""
    for consumer, place in list(bits.uses()):
        if is_op(consumer, "Concat"):  # of whole words, but for those of the last part
            shapes = [value.shape for value in consumer.inputs[:place] if value is not None]
            before = sum(WORD * shape[-1] for shape in shapes if shape is not None and isinstance(shape[-1], int))
            _complement(consumer.outputs[0], np.pad(channels, (before, 0)))
        elif _hands_on(consumer):
            _complement(consumer.outputs[0], channels)
        else:
            _flip_inputs(consumer, channels)


def _flip_inputs(conv: ir.Node, channels: NDArray[np.bool_]) -> None:
    """Flip the weight bits, and the ±1 that the padding holds, of some input channels [C] of a binary convolution."""
    weight_value, pad_value = conv.inputs[1], conv.inputs[-1]
    weight, pad = constant(weight_value), constant(pad_value)
    assert weight_value is not None and pad_value is not None and weight is not None and pad is not None
    group, count = conv.attributes["group"].as_int(), conv.attributes["channels"].as_int()
    channels = np.pad(channels, (0, count - len(channels)))  # of the first parts of a Concat
    outputs, per_group = len(weight), len(channels) // group
    flips = channels.reshape(group, per_group)[np.arange(outputs) // (outputs // group)]
    signs = unpack_bits(weight, per_group) ^ flips.reshape(outputs, *([1] * (weight.ndim - 2)), per_group)
    weight_value.const_value = ir.tensor(pack_bits(signs), name=weight_value.name)
    if pad.any():
        flipped = np.where(channels, -pad, pad).astype(np.float32)
        pad_value.const_value = ir.tensor(flipped, name=pad_value.name)
        pad_value.shape = ir.Shape(flipped.shape)
