"""LowerLevels: convolutions and linear layers of few levels with two-valued weights become BinaryConvLevels."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.bits import pack_bits, words
from bnn_deploy.operators.contract import DOMAIN, MAX_TERMS
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, insert_node, static_shape
from bnn_deploy.passes.lower.each_layer import EachLayer
from bnn_deploy.passes.lower.layer import (
    FloatLayer,
    LevelsInput,
    fit_weight,
    levels_input,
    pool_window,
    replace_layer,
    two_valued,
)
from bnn_deploy.passes.reasons import InputShape, LargeSums, Reason
from bnn_deploy.passes.recognise.few_levels import transposed
from bnn_deploy.provenance import Levels, MaxPool, Transpose, node_place, place


class LowerLevels(EachLayer[LevelsInput]):
    """q(x) -> MaxPool* -> Conv | Flatten -> Gemm | MatMul  ==>  MaxPool*(x) -> QuantizeLevels -> BinaryConvLevels.

    1. q has 2 to 16 values 0, d, 2 d, ..., and rises with x (see `levels.quantizer`); what rises with x in front of it,
       such as BatchNormalization with positive gammas and Relu, goes into its thresholds.
    2. The weight is constant and two-valued, ±alpha, per filter; scale = alpha * d.
    3. A maximum commutes with q, so the pools go in front of it.
    4. A padded tap is 0, which is level 0, by the layer's pads or a Pad with 0.
    5. One QuantizeLevels per tensor, whatever number of layers it feeds; q(x) stays for something float that reads it.
    6. Fewer than 2^bits levels: the thresholds of those that are missing are infinite.

    Declines, with the reason: levels that are not evenly spaced from 0 up; a Pad with another value; weights and layers
    as LowerBinaryConv does; 2^24 or more as the largest sum. A layer whose input has no such levels, or is ±1, is not
    looked at.

    Raises InputError for a filter that is all zeros.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def _source(self, node: ir.Node) -> LevelsInput | Reason | None:
        return levels_input(node)

    def _lower(self, node: ir.Node, source: LevelsInput, layer: FloatLayer) -> ir.Node | Reason:
        shape = static_shape(source.value)
        if shape is None or len(shape) < 2 or shape[1] is None:
            return InputShape()
        fitted = fit_weight(layer, shape, source.flattened)
        if isinstance(fitted, Reason):
            return fitted
        weight, channels = fitted
        quantizer = source.quantizer
        highest = 2**quantizer.bits - 1
        if highest * math.prod(weight.shape[1:]) >= MAX_TERMS:
            return LargeSums(math.prod(weight.shape[1:]), highest)
        signs, alpha = two_valued(weight)
        pads = layer.pads
        if source.pads is not None:
            pads = [own + extra for own, extra in zip(layer.pads, source.pads, strict=True)]
        constants = {
            "weight_bits": pack_bits(np.moveaxis(signs, 1, -1)),
            "scale": (alpha.astype(np.float64) * quantizer.step).astype(np.float32),
            "bias": np.zeros(len(weight), dtype=np.float32) if layer.bias is None else layer.bias,
        }
        attributes = {"channels": channels, "kernel_shape": list(weight.shape[2:]), "bits": quantizer.bits}
        return replace_layer(node, "BinaryConvLevels", self._quantized(source), constants, layer, pads, attributes)

    def _quantized(self, source: LevelsInput) -> ir.Value:
        """The planes of a tensor, made once for each."""
        value, quantizer = source.value, source.quantizer
        if value not in self._binarized:
            before = value.producer()
            assert before is not None and isinstance(before.graph, ir.Graph)
            graph, name = before.graph, value.name or ""
            data = quantizer.data
            shape = None if data.shape is None else transposed(list(data.shape), quantizer.perm)
            if quantizer.perm:
                data = insert_node(
                    before,
                    "Transpose",
                    [data],
                    {"perm": list(quantizer.perm)},
                    f"{name}_channels_first",
                    dtype=ir.DataType.FLOAT,
                    shape=shape,
                )
            origin = place(quantizer.before)
            if quantizer.before_perm:
                origin = origin.then(Transpose(quantizer.before_perm))
            for pool in source.pools:
                window, output = pool_window(pool), pool.outputs[0]
                data = insert_node(
                    before,
                    "MaxPool",
                    [data],
                    window,
                    f"{output.name}_before_levels",
                    dtype=ir.DataType.FLOAT,
                    shape=output.shape,
                )
                origin = origin.then(MaxPool(window))
            bits = quantizer.bits
            missing = 2**bits - 1 - len(quantizer.thresholds)
            thresholds = np.pad(quantizer.thresholds, ((0, missing), (0, 0)), constant_values=np.inf)
            levels = Levels(bits, quantizer.step, quantizer.before_thresholds)
            assert value.shape is not None
            self._binarized[value] = insert_node(
                before,
                "QuantizeLevels",
                [data, add_initializer(graph, f"{name}_thresholds", thresholds)],
                {"bits": bits},
                f"{name}_levels",
                dtype=ir.DataType.UINT32,
                shape=[value.shape[0], *value.shape[2:], bits * words(thresholds.shape[1])],
                domain=DOMAIN,
                metadata=node_place(value.producer(), value).as_source() | origin.as_before() | levels.as_metadata(),
            )
        return self._binarized[value]
