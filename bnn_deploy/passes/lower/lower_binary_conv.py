"""LowerBinaryConv: convolutions and linear layers of ±1 with two-valued weights become BinaryConv."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.bits import pack_bits, words
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, insert_node, is_op, maker, static_shape
from bnn_deploy.passes.lower.bases import plane_of_signs, sum_of_bases
from bnn_deploy.passes.lower.each_layer import EachLayer
from bnn_deploy.passes.lower.layer import (
    SMALLEST,
    FloatLayer,
    NotTwoValuedError,
    SignInput,
    fit_weight,
    insert_max_pool,
    is_on_rows,
    is_plain_pool,
    large_window,
    replace_layer,
    sign_input,
    two_valued,
)
from bnn_deploy.passes.outcome import take_in
from bnn_deploy.passes.reasons import InputShape, MixedPads, PadValue, PoolForm, Reason
from bnn_deploy.provenance import SOURCE, bit_metadata, zero_value


class LowerBinaryConv(EachLayer[SignInput]):
    """Sign(x) -> MaxPool* -> Conv | Flatten -> Gemm | MatMul  ==>  Binarize(x, t) -> BinaryMaxPool* -> BinaryConv.

    1. The input comes from a Sign, possibly times a positive number, through MaxPool and, for a convolution, a Pad with
       0 or ± that number, or, for a linear layer, Flatten or Reshape to [N, features].
    2. The weight is constant and two-valued, ±alpha, per filter; alpha (times the input's number) becomes `scale`.
    3. A linear layer after a flattened map becomes a BinaryConv whose kernel covers the map; otherwise a 1x1 one.
    4. One Binarize per Sign, whatever number of layers it feeds; a Sign that also feeds something float stays for that.
    5. sign(0) = 0 becomes +1, as in the paper: t = 0. A sign that is -1 at 0 gets the smallest float32 above 0.
    6. Weights of a few values per filter, {beta - alpha, beta + alpha}, ternary or sums of ±alpha, make it a
       BinaryConvBases. That has no padding of ±1: a Pad of the bits stands before it.
    7. The padding is that of the Conv (zeros), of the Pad (0, -1 or +1), or, if both are zeros, of both.

    Declines, with the reason: real-valued weights, weights that take too many bases, weights or bias that are not
    constant, unknown shapes, auto_pad, three and more spatial dimensions, 2^24 or more products per output, a Pad of
    channels, of other values or before a MaxPool, zeros and ±1 in one padding. A layer whose input is no Sign is not
    looked at; the audit names it. Nor is a MatMul over the last of three and more dimensions: LowerLinear does that.

    Raises InputError for a filter that is all zeros.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def _source(self, node: ir.Node) -> SignInput | Reason | None:
        source = sign_input(node)
        return None if is_op(node, "MatMul") and is_on_rows(source) else source

    def _lower(self, node: ir.Node, source: SignInput, layer: FloatLayer) -> ir.Node | Reason:
        sign_shape = static_shape(source.sign.outputs[0])
        if sign_shape is None or len(sign_shape) < 2 or sign_shape[1] is None:
            return InputShape()
        for pool in source.pools:
            if not is_plain_pool(pool):
                return PoolForm(pool.outputs[0].name or "")
        fitted = fit_weight(layer, sign_shape, source.flattened)
        if isinstance(fitted, Reason):
            return fitted
        weight, channels = fitted
        pads = self._pads(layer, source)
        if isinstance(pads, Reason):
            return pads
        if (large := large_window(node, layer, pads)) is not None:
            return large
        bias = np.zeros(len(weight), dtype=np.float32) if layer.bias is None else layer.bias
        attributes = {"channels": channels, "kernel_shape": list(weight.shape[2:])}
        try:
            signs, alpha = two_valued(weight)
        except NotTwoValuedError:
            found = sum_of_bases(plane_of_signs(source.factor), weight)
            if found is None:
                raise
            if isinstance(found, Reason):
                return found
            sums, counts = found
            bits = self._bits(source)
            if source.pad_value:
                bits, pads = _padded(node, bits, pads, source.pad_value, channels), [0] * len(pads)
            return replace_layer(node, "BinaryConvBases", bits, sums | {"bias": bias}, layer, pads, attributes | counts)
        if source.factor != 1:
            alpha = (alpha.astype(np.float64) * source.factor).astype(np.float32)
        constants = {
            "weight_bits": pack_bits(np.moveaxis(signs, 1, -1)),
            "scale": alpha,
            "bias": bias,
            "pad_value": np.array([source.pad_value], np.float32),
        }
        return replace_layer(node, "BinaryConv", self._bits(source), constants, layer, pads, attributes)

    def _pads(self, layer: FloatLayer, source: SignInput) -> list[int] | Reason:
        """The padding of Conv and Pad together, or why a BinaryConv cannot have it."""
        if source.pads is None or not any(source.pads):
            source.pad_value = 0.0
            return layer.pads
        if source.pad_value not in (-1, 0, 1):
            return PadValue(source.pad_value)
        if source.pad_value and any(layer.pads):
            return MixedPads(source.pad_value)
        return [own + extra for own, extra in zip(layer.pads, source.pads, strict=True)]

    def _bits(self, source: SignInput) -> ir.Value:
        """The bits of the Sign after its pools, made once for each."""
        sign = source.sign
        value = sign.outputs[0]
        if value not in self._binarized:
            data = sign.inputs[0]
            assert data is not None and value.shape is not None and sign.graph is not None
            channels = value.shape[1]
            assert isinstance(channels, int)
            threshold = np.full(channels, SMALLEST if zero_value(sign) < 0 else 0, dtype=np.float32)
            self._binarized[value] = insert_node(
                sign,
                "Binarize",
                [data, add_initializer(sign.graph, f"{value.name}_threshold", threshold)],
                {},
                f"{value.name}_bits",
                dtype=ir.DataType.UINT32,
                shape=[value.shape[0], *value.shape[2:], words(channels)],
                domain=DOMAIN,
                metadata={SOURCE: value.name or ""} | bit_metadata(sign),
            )
            take_in(maker(self._binarized[value]), sign)
        bits = self._binarized[value]
        for pool in source.pools:
            value = pool.outputs[0]
            if value not in self._binarized:
                self._binarized[value] = insert_max_pool(pool, bits, value)
            bits = self._binarized[value]
        return bits


def _padded(node: ir.Node, bits: ir.Value, pads: list[int], value: float, channels: int) -> ir.Value:
    """Insert, in front of `node`, what pads bits [N, spatial..., words] with -1 or +1 in all channels."""
    graph, name, rank = node.graph, node.outputs[0].name, len(pads) // 2
    assert isinstance(graph, ir.Graph) and bits.shape is not None
    # -1 are zeros; +1 are the complement of -1, but for the unused bits of the last word.
    ones = add_initializer(graph, f"{name}_ones", pack_bits(np.ones(channels, np.bool_))) if value > 0 else None

    def insert(op_type: str, inputs: list[ir.Value], suffix: str) -> ir.Value:
        return insert_node(node, op_type, inputs, {}, f"{name}_{suffix}", dtype=ir.DataType.UINT32, shape=shape)

    shape: list[Any] = list(bits.shape)
    if ones is not None:
        bits = insert("BitwiseXor", [bits, ones], "complement")
    for axis in range(rank):
        size = shape[1 + axis]
        shape[1 + axis] = size + pads[axis] + pads[rank + axis] if isinstance(size, int) else None
    amounts = np.array([0, *pads[:rank], 0, 0, *pads[rank:], 0], np.int64)
    bits = insert("Pad", [bits, add_initializer(graph, f"{name}_pads", amounts)], "padded")
    return bits if ones is None else insert("BitwiseXor", [bits, ones], "padded_with_ones")
