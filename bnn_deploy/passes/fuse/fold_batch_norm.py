"""FoldBatchNorm: a BatchNorm, or alpha, that did not become a threshold goes into the layer before or after it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import operator_of
from bnn_deploy.passes.conditions import thresholds_folded
from bnn_deploy.passes.graph import (
    add_initializer,
    auto_pad,
    constant,
    ints,
    is_binary_op,
    is_op,
    maker,
    replace_value,
    sole_consumer,
    static_shape,
)
from bnn_deploy.passes.interleave import interleaved
from bnn_deploy.passes.lower.binary_filters import BinaryFilters, binary_filters
from bnn_deploy.passes.monotone import Doubles, batch_norm_line, operand_per_channel
from bnn_deploy.passes.outcome import Outcome, Pass, display_name, take_in
from bnn_deploy.passes.reasons import Reason
from bnn_deploy.provenance import set_source


class FoldBatchNorm(Pass):
    """BatchNormalization, or arithmetic per channel, next to a layer  ==>  the layer with other constants.

    BatchNormalization(BinaryConv(x)) gives another scale and bias; BatchNormalization(Conv(x)) and
    Conv | Gemm(BatchNormalization(x)) another weight and bias.

    1. With a = gamma / sqrt(var + eps) and b = beta - mean * a: scale' = a * scale, bias' = a * bias + b before, or
       W' = W * a, bias' = bias + W b (over the input channels) after; computed in float64 and rounded once.
    2. The layer and the BatchNorm feed only each other. A Conv after it has no padding, whose zeros would not be
       shifted, one group, and no weights that PackWeights makes bits of.
    3. Behind a layer, a Mul, Add, Sub or Div by a constant per channel is one too: a learned alpha, Keras's BatchNorm,
       the bias of a linear layer on tokens. Behind a BinaryConvScaled, whose factor comes last, it is one without a
       shift.

    This changes the rounding of floats, by about one unit in the last place; FoldThreshold, which is exact, goes first.

    Declines: nothing; a BatchNorm between other nodes stays.
    """

    needs = (thresholds_folded,)

    def call(self, model: ir.Model) -> Outcome:
        """Fold every BatchNormalization that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_op(node, "BatchNormalization", "Add", "Div", "Mul", "Sub"):
                continue
            data = node.inputs[0] if constant(node.inputs[0]) is None else node.inputs[1]
            before = None if data is None else data.producer()
            row = None if before is None else operator_of(before)
            is_norm = is_op(node, "BatchNormalization")
            axis = -1 if row is not None and row.outputs[0].channels_last else 1
            affine = _affine(node) if is_norm else _arithmetic(node, axis)
            if affine is None or data is None:
                continue
            after = sole_consumer(node.outputs[0]) if is_norm else None
            alone = sole_consumer(data) is node
            layers = _layers(before) if before is not None and alone and (axis == 1 or not is_norm) else []
            if layers:
                if not all(_can_fold(layer, *affine) for layer in layers):
                    continue
                for layer in layers:
                    _fold_before(model.graph, layer, node, *affine)
                _take_place(node, data)
                for other in layers[1:]:
                    take_in(other, node)
                layer = layers[0]
            elif before is not None and is_op(before, "Conv") and alone:
                layer = before
                if not _fold_into_conv(model.graph, before, node, *affine):
                    continue
            elif after is not None and _fold_after(model.graph, after, node, *affine):
                layer = after
            else:
                continue
            result.rewrote(layer, node)
        return result


LEAST_LEVEL_SCALE = 2.0**-125
"""Half of a BinaryConvLevels' scale must be a float32, without rounding."""


def _affine(node: ir.Node) -> tuple[Doubles, Doubles] | None:
    """The a and b [C] of the a * x + b that a BatchNormalization computes, in float64."""
    line = batch_norm_line(node, np.float64)
    return None if isinstance(line, Reason) else line


def _arithmetic(node: ir.Node, axis: int) -> tuple[Doubles, Doubles] | None:
    """Return a and b of a * x + b, per channel, of arithmetic with a constant; the channels are axis `axis`."""
    index = 0 if constant(node.inputs[0]) is not None else 1
    shape = static_shape(node.outputs[0])
    channels = shape[axis] if shape is not None and len(shape) > 1 else None
    if constant(node.inputs[index]) is None or channels is None:
        return None
    operand = operand_per_channel(node, index, channels, axis)
    if isinstance(operand, Reason) or (is_op(node, "Div") and (index == 0 or not operand.all())):
        return None
    c = operand.astype(np.float64)
    one, zero = np.ones(channels), np.zeros(channels)
    if is_op(node, "Mul", "Div"):
        return (c if is_op(node, "Mul") else 1 / c), zero
    if is_op(node, "Add"):
        return one, c
    return (one, -c) if index == 1 else (-one, c)


def _set_input(graph: ir.Graph, node: ir.Node, index: int, name: str, array: Doubles) -> None:
    """Give `node` a new constant of its own; the old one may be shared."""
    node.replace_input_with(index, add_initializer(graph, name, array.astype(np.float32)))


def _layers(before: ir.Node) -> list[ir.Node]:
    """The binary layers in front of a BatchNorm that can be folded into: one, or the phases of a transposed one."""
    made = interleaved(before.outputs[0])
    layers = [before] if made is None else [maker(phase) for phase in made.phases]
    rows = [operator_of(layer) for layer in layers]
    return layers if all(row is not None and row.is_affine for row in rows) else []


def _can_fold(conv: ir.Node, a: Doubles, b: Doubles) -> bool:
    """Whether a binary layer can have the scale and the bias of the BatchNorm behind it."""
    scale, row = constant(conv.inputs[2]), operator_of(conv)
    assert scale is not None
    if row is not None and row.operand is not None and b.any():
        return False
    small = (a * scale != 0) & (np.abs(a * scale) < LEAST_LEVEL_SCALE)
    return not (is_binary_op(conv, "BinaryConvLevels") and small.any())


def _fold_before(graph: ir.Graph, conv: ir.Node, norm: ir.Node, a: Doubles, b: Doubles) -> None:
    """Fold into a binary layer before the BatchNorm."""
    scale, bias = constant(conv.inputs[2]), constant(conv.inputs[3])
    assert scale is not None and bias is not None
    name = norm.outputs[0].name or ""
    _set_input(graph, conv, 2, f"{name}_scale", a * scale)
    _set_input(graph, conv, 3, f"{name}_bias", a * bias + b)


def _take_place(norm: ir.Node, data: ir.Value) -> None:
    """Let what feeds a folded BatchNorm stand for what it computed."""
    name = norm.outputs[0].name
    set_source(maker(data), norm.outputs[0])
    replace_value(norm.outputs[0], data)
    data.name = name


def _fold_into_conv(graph: ir.Graph, conv: ir.Node, norm: ir.Node, a: Doubles, b: Doubles) -> bool:
    """Fold into the float Conv before the BatchNorm; False if its weight or bias is not constant."""
    weight = constant(conv.inputs[1])
    bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = constant(bias_value)
    if weight is None or (bias_value is not None and bias is None):
        return False
    name = norm.outputs[0].name or ""
    _set_input(graph, conv, 1, f"{name}_weight", weight * a.reshape(-1, *[1] * (weight.ndim - 1)))
    folded = add_initializer(graph, f"{name}_bias", (b + a * (0 if bias is None else bias)).astype(np.float32))
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, folded)
    replace_value(norm.outputs[0], conv.outputs[0])
    conv.outputs[0].name = name
    return True


def _fold_after(graph: ir.Graph, layer: ir.Node, norm: ir.Node, a: Doubles, b: Doubles) -> bool:
    """Fold into the layer behind the BatchNorm; False if it is not one that can take it."""
    data, weight = norm.inputs[0], constant(layer.inputs[1]) if len(layer.inputs) > 1 else None
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] is not None
    if isinstance(binary_filters(layer), BinaryFilters):  # a factor per input channel would make them real-valued
        return False
    if weight is None or data is None or layer.inputs[0] is not norm.outputs[0] or (has_bias and bias is None):
        return False
    if is_op(layer, "Conv"):
        group = layer.attributes.get("group")
        if any(ints(layer, "pads", [])) or auto_pad(layer) or (group is not None and group.as_int() != 1):
            return False
        input_axis = 1
    elif is_op(layer, "Gemm") and weight.ndim == 2 and norm_is_flat(norm):
        if any(layer.attributes[key].as_float() != 1 for key in ("alpha", "beta") if key in layer.attributes):
            return False
        if "transA" in layer.attributes and layer.attributes["transA"].as_int():
            return False
        input_axis = 1 if "transB" in layer.attributes and layer.attributes["transB"].as_int() else 0
    else:
        return False
    shape = [1] * weight.ndim
    shape[input_axis] = len(a)
    others = tuple(axis for axis in range(weight.ndim) if axis != (1 - input_axis))
    shift = (weight * b.reshape(shape)).sum(axis=others)
    name = display_name(layer)
    _set_input(graph, layer, 1, f"{name}_folded_weight", weight * a.reshape(shape))
    folded = add_initializer(graph, f"{name}_folded_bias", (shift + (0 if bias is None else bias)).astype(np.float32))
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, folded)
    replace_value(norm.outputs[0], data)
    return True


def norm_is_flat(norm: ir.Node) -> bool:
    """Whether a BatchNorm works on [N, features]."""
    shape = norm.outputs[0].shape
    return shape is not None and len(shape) == 2
