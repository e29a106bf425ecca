"""FuseFactor: a binary convolution and its factor per pixel are one node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import DOMAIN, holds_bits, is_binary_layer, operator_of
from bnn_deploy.passes.fusion_reasons import FactorLayer, FactorShape, UsedElsewhere
from bnn_deploy.passes.graph import (
    MOVING_OPERATORS,
    add_initializer,
    constant,
    insert_node,
    is_binary_op,
    is_op,
    maker,
    replace_value,
    sole_consumer,
)
from bnn_deploy.passes.interleave import interleaved
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import source_metadata


class FuseFactor(Pass):
    """Mul(BinaryConv(...), k), k of one channel  ==>  BinaryConvScaled(..., k).

    k is K of XNOR-Net (Rastegari et al., ECCV 2016, equation 11), or any other gate [N, 1, spatial...].

    1. The BinaryConv feeds only the Mul, and k has its batch and spatial size. The products are made in the same order,
       so every bit agrees.
    2. Mul(BinaryConv(...), Mul(k, c)) with a constant c per filter: c goes into scale and bias.
    3. A k of one value per sample, such as a mean of |x|, is expanded to the pixels first: to one channel, where the
       Mul reads and writes all of them.

    Declines: a factor that has more than one channel, or one per row or column, or is of unknown shape, as is one per
    sample where the number of pixels is not known; a BinaryConv that something else uses too; a factor behind another
    binary layer, such as one of levels. A constant per channel is not looked at: it is FoldBatchNorm's.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Mul that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_op(node, "Mul"):
                continue
            for index in (0, 1):
                conv_value, factor = node.inputs[index], node.inputs[1 - index]
                conv = None if conv_value is None else conv_value.producer()
                if conv is None or conv_value is None or factor is None:
                    continue
                if not is_binary_op(conv, "BinaryConv") or constant(factor) is not None:
                    layer = _layer(conv_value)
                    if layer is not None and _differs_by_position(factor, conv_value, layer):
                        direct, name = is_binary_op(conv, "BinaryConv"), factor.name or ""
                        result.decline(node, FactorShape(name) if direct else FactorLayer(name, layer.op_type))
                    continue
                if sole_consumer(conv_value) is not node:
                    result.decline(node, UsedElsewhere(f"'{conv_value.name}' is"))
                    continue
                if split := _split(factor, conv_value):
                    gate, inner = split
                    alpha = per_filter(inner, conv_value)
                    assert alpha is not None
                    scale_conv(model.graph, conv, alpha, node.outputs[0].name or "")
                    factor = gate
                if _is_per_sample(factor, conv_value):
                    factor = _expand(model.graph, node, factor, conv_value)
                if not _is_per_pixel(factor, conv_value):
                    result.decline(node, FactorShape(factor.name or ""))
                    continue
                result.rewrote(self._fuse(conv, node, factor), conv, node)
                break
        return result

    def _fuse(self, conv: ir.Node, mul: ir.Node, factor: ir.Value) -> ir.Node:
        old = mul.outputs[0]
        name = old.name or ""
        new = insert_node(
            mul,
            "BinaryConvScaled",
            [*conv.inputs, factor],
            {key: attribute.value for key, attribute in conv.attributes.items()},
            f"{name}_new",
            dtype=ir.DataType.FLOAT,
            shape=None if old.shape is None else list(old.shape),
            domain=DOMAIN,
            name=conv.name,
            metadata=source_metadata(old),
        )
        replace_value(old, new)
        new.name = name
        return maker(new)


def _layer(value: ir.Value) -> ir.Node | None:
    """The binary layer whose floats a value is, moved at most; None if it is of none."""
    made = interleaved(value)
    if made is not None:
        value = made.phases[0]
    node = value.producer()
    while node is not None and is_op(node, *MOVING_OPERATORS) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return None if node is None or not is_binary_layer(node) or holds_bits(node, value.index() or 0) else node


def _differs_by_position(factor: ir.Value, of: ir.Value, layer: ir.Node) -> bool:
    """Whether a factor of a layer's floats is no constant, or one that is not the same at all positions."""
    array = constant(factor)
    if array is None:
        return True
    rank = array.ndim if of.shape is None else max(len(of.shape), array.ndim)
    row = operator_of(layer)
    channels = rank - 1 if row is not None and row.outputs[0].channels_last else 1
    sizes = (*[1] * (rank - array.ndim), *array.shape)
    return any(size > 1 for axis, size in enumerate(sizes) if axis != channels)


def _is_per_pixel(factor: ir.Value, conv: ir.Value) -> bool:
    """Whether a factor has one value for each pixel of a convolution's output, and one channel."""
    if factor.shape is None or conv.shape is None or len(factor.shape) < 3:
        return False
    batch, _, *spatial = conv.shape
    return list(factor.shape) == [batch, 1, *spatial]


def _is_per_sample(factor: ir.Value, conv: ir.Value) -> bool:
    """Whether a factor has one value for each sample, and a convolution's output a known number of pixels."""
    if factor.shape is None or conv.shape is None or len(factor.shape) != len(conv.shape):
        return False
    batch, _, *spatial = conv.shape
    known = all(isinstance(size, int) for size in spatial) and any(size != 1 for size in spatial)
    return known and list(factor.shape) == [batch, *[1] * (len(spatial) + 1)]


def _expand(graph: ir.Graph, mul: ir.Node, factor: ir.Value, conv: ir.Value) -> ir.Value:
    """A factor per sample as one per pixel."""
    assert conv.shape is not None and factor.dtype is not None
    batch, _, *spatial = conv.shape
    name = f"{mul.outputs[0].name}_factor"
    sizes = add_initializer(graph, f"{name}_shape", np.array([1, 1, *spatial], np.int64))
    return insert_node(mul, "Expand", [factor, sizes], {}, name, dtype=factor.dtype, shape=[batch, 1, *spatial])


def _split(factor: ir.Value, conv: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The k and the c of a factor Mul(k, c) that only one node reads; None if it is none."""
    mul = factor.producer()
    if mul is None or not is_op(mul, "Mul") or sole_consumer(factor) is None:
        return None
    for gate, inner in ((mul.inputs[0], mul.inputs[1]), (mul.inputs[1], mul.inputs[0])):
        if gate is None or inner is None or not _is_per_pixel(gate, conv):
            continue
        if per_filter(inner, conv) is not None:
            return gate, inner
    return None


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
    aligned = array.reshape([1] * (len(of.shape) - array.ndim) + list(array.shape))
    if aligned.size not in (1, channels) or list(aligned.shape)[1] != aligned.size:
        return None
    return np.broadcast_to(aligned.reshape(-1), channels).astype(np.float32)


def scale_conv(graph: ir.Graph, conv: ir.Node, factor: NDArray[np.float32], name: str) -> None:
    """Multiply scale and bias of a binary convolution by `factor` [O]; the new constants are called after `name`."""
    for index, suffix in ((2, "scale"), (3, "bias")):
        old = constant(conv.inputs[index])
        assert old is not None
        # Constants of its own: the old ones may be shared.
        conv.replace_input_with(index, add_initializer(graph, f"{name}_{suffix}", old * factor))
