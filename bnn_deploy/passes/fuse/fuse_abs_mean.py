"""FuseAbsMean: the signs of a tensor and the mean of its magnitudes come from one reading."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.fuse.complement import complement_channels, complementable
from bnn_deploy.passes.fusion_reasons import (
    ChannelsDropped,
    Falls,
    FoldedAlready,
    SumNotDivided,
    UnknownChannels,
    UsedElsewhere,
)
from bnn_deploy.passes.graph import (
    add_initializer,
    constant,
    is_binary_op,
    is_op,
    remove_if_dead,
    replace_value,
    sole_consumer,
    static_shape,
)
from bnn_deploy.passes.monotone import batch_norm_line, bisect_threshold
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.passes.reasons import Reason
from bnn_deploy.provenance import bit_metadata, output_key, source_metadata


class FuseAbsMean(Pass):
    """Binarize(x, t) and mean over the channels of |x|  ==>  BinarizeAbsMean.

    A of XNOR-Net (Rastegari et al., ECCV 2016, equation 11), from which its K is filtered.

    1. b = Binarize(x, t), A = ReduceMean(Abs(x), axis 1)  ==>  b, A = BinarizeAbsMean(x, t, 1, 0). The mean may also be
       ReduceL1(x), or ReduceSum(Abs(x)), divided by the number of channels, and may drop the channel dimension if an
       Unsqueeze puts it back.
    2. BinarizeAbsMean(BatchNormalization(u), t, 1, 0)  ==>  BinarizeAbsMean(u, t', a, b), if nothing else reads the
       BatchNorm: t' as FoldThreshold finds it, and a * u + b as PyTorch and onnxruntime evaluate the BatchNorm, so the
       bits and the terms of A are those of the float graph, rounding included. A negative gamma complements the
       channel's bits; magnitudes have no sign.

    Declines: a mean without the channel dimension; a sum that is not divided by the number of channels; a BatchNorm
    that something else reads too, or one with a negative gamma where a consumer cannot take complemented bits. What is
    no mean over the channels of what a Binarize reads is not looked at.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every mean, and then every BatchNorm, that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            x = _magnitudes_of(node)
            binarize = None if x is None else next((c for c in x.consumers() if is_binary_op(c, "Binarize")), None)
            if x is None or binarize is None:
                continue
            mean = _mean(node, x)
            if isinstance(mean, Reason):
                result.decline(node, mean)
            else:
                result.rewrote(self._fuse(model.graph, binarize, mean), binarize)
        for node in list(model.graph):
            if is_binary_op(node, "BinarizeAbsMean"):
                norm = None if node.inputs[0] is None else node.inputs[0].producer()
                reason = self._fold(model.graph, node, norm)
                if norm is not None and reason is None:
                    result.rewrote(node, norm)
                elif reason:
                    result.decline(node, reason)
        return result

    def _fuse(self, graph: ir.Graph, binarize: ir.Node, old_mean: ir.Value) -> ir.Node:
        x, threshold = binarize.inputs
        old_bits = binarize.outputs[0]
        bits_name, mean_name = old_bits.name or "", old_mean.name or ""
        assert x is not None and x.shape is not None and threshold is not None
        values = constant(threshold)
        assert values is not None
        one = add_initializer(graph, f"{mean_name}_scale", np.ones(len(values), np.float32))
        zero = add_initializer(graph, f"{mean_name}_shift", np.zeros(len(values), np.float32))
        new = ir.Node(
            DOMAIN,
            "BinarizeAbsMean",
            [x, threshold, one, zero],
            num_outputs=2,
            name=binarize.name,
            metadata_props=bit_metadata(binarize) | {output_key(k, 1): t for k, t in source_metadata(old_mean).items()},
        )
        bits, mean = new.outputs
        bits.type, bits.shape, bits.name = old_bits.type, old_bits.shape, f"{bits_name}_new"
        mean.type, mean.name = ir.TensorType(ir.DataType.FLOAT), f"{mean_name}_new"
        mean.shape = ir.Shape([x.shape[0], 1, *x.shape[2:]])
        graph.insert_before(binarize, new)
        replace_value(old_bits, bits)
        replace_value(old_mean, mean)
        bits.name, mean.name = bits_name, mean_name
        return new

    def _fold(self, graph: ir.Graph, node: ir.Node, norm: ir.Node | None) -> Reason | Literal[""] | None:
        """Fold `norm`, which makes what `node` reads: None if done, a reason if declined, "" if it is no BatchNorm."""
        value = node.inputs[0]
        threshold, scale, shift = (constant(v) for v in node.inputs[1:4])
        assert threshold is not None and scale is not None and shift is not None
        if value is None or norm is None or not is_op(norm, "BatchNormalization"):
            return ""
        if (scale != 1).any() or shift.any():
            return FoldedAlready()
        if sole_consumer(value) is not node:
            return UsedElsewhere(f"'{value.name}' (BatchNormalization) is")
        line = batch_norm_line(norm)
        if isinstance(line, Reason):
            return line
        a, b = line
        with np.errstate(over="ignore"):  # the bisection starts at the largest floats
            new, falling = bisect_threshold(lambda x: x * a + b >= threshold, len(threshold))
        if falling.any():
            for consumer in node.outputs[0].consumers():
                if reason := complementable(consumer, node.outputs[0]):
                    channel = int(np.flatnonzero(falling)[0])
                    return Falls(channel, "BatchNormalization", value.name or "", reason)
            complement_channels(node, falling)
        node.replace_input_with(0, norm.inputs[0])
        name = node.outputs[1].name
        for index, (suffix, array) in enumerate((("threshold", new), ("scale", a), ("shift", b)), start=1):
            node.replace_input_with(index, add_initializer(graph, f"{name}_{suffix}", array))
        remove_if_dead(norm)
        return None


def _magnitudes_of(node: ir.Node) -> ir.Value | None:
    """The tensor whose magnitudes a node adds up over the channels; None if it does not."""
    if not is_op(node, "ReduceMean", "ReduceSum", "ReduceL1"):
        return None
    magnitudes = node.inputs[0]
    rank = None if magnitudes is None or magnitudes.shape is None else len(magnitudes.shape)
    if magnitudes is None or rank is None or _axes(node, rank) != [1]:
        return None
    if is_op(node, "ReduceL1"):
        return magnitudes
    producer = magnitudes.producer()
    return producer.inputs[0] if producer is not None and is_op(producer, "Abs") else None


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    """The axes of a reduction or an Unsqueeze, counted from the front; None if they are not constant."""
    attribute = node.attributes.get("axes")
    axes: NDArray[np.int64] | list[int] | None
    axes = list(attribute.as_ints()) if attribute else constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if axes is None else [int(axis) % rank for axis in axes]


def _mean(node: ir.Node, x: ir.Value) -> ir.Value | Reason:
    """The mean that a reduction of |x| ends in, [N, 1, spatial...], or why there is none."""
    shape = static_shape(x)
    if shape is None or shape[1] is None:
        return UnknownChannels()
    keepdims = node.attributes.get("keepdims")
    dropped = keepdims is not None and not keepdims.as_int()
    is_sum = not is_op(node, "ReduceMean")
    value = node.outputs[0]
    while is_sum or dropped:
        user = sole_consumer(value)
        if user is not None and dropped and is_op(user, "Unsqueeze") and _axes(user, len(shape)) == [1]:
            dropped = False
        elif user is not None and is_sum and _divides(user, value, shape[1]):
            is_sum = False
        elif is_sum:
            return SumNotDivided(shape[1])
        else:
            return ChannelsDropped()
        value = user.outputs[0]
    return value


def _divides(node: ir.Node, value: ir.Value, count: int) -> bool:
    """Whether `node` is value / count, or value * (1 / count)."""
    if not is_op(node, "Div", "Mul"):
        return False
    index = 1 if node.inputs[0] is value else 0
    number = constant(node.inputs[index])
    if number is None or number.size != 1 or (is_op(node, "Div") and index == 0):
        return False
    factor = float(number.reshape(()))
    return factor == count if is_op(node, "Div") else factor == np.float32(1 / count)
