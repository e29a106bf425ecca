"""LowerLevels: convolutions and linear layers of few levels with weights of few values become binary."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.bits import words
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, insert_node, is_op, static_shape
from bnn_deploy.passes.lower.each_layer import EachLayer
from bnn_deploy.passes.lower.layer import (
    FloatLayer,
    LevelsInput,
    fit_weight,
    is_on_rows,
    large_window,
    levels_input,
    pool_window,
    replace_layer,
)
from bnn_deploy.passes.lower.level_form import level_form
from bnn_deploy.passes.monotone import Floats
from bnn_deploy.passes.outcome import Outcome
from bnn_deploy.passes.reasons import InputShape, Reason
from bnn_deploy.passes.recognise.few_levels import quantizer, transposed
from bnn_deploy.provenance import Levels, MaxPool, Place, Transpose, node_place, place


class LowerLevels(EachLayer[LevelsInput]):
    """q(x) -> MaxPool* -> Conv | Flatten -> Gemm | MatMul  ==>  MaxPool*(x) -> QuantizeLevels -> a binary layer.

    1. q has 2 to 16 values and rises with x (see `few_levels.quantizer`); what rises with x in front of it, such as
       BatchNormalization with positive gammas and Relu, goes into its thresholds.
    2. Evenly spaced levels, where a padded tap is the lowest of them or nothing is padded, and a constant weight of
       two values, ±alpha, per filter: BinaryConvLevels, scale = alpha * step, the lowest level's part in the bias.
    3. Others, b + sum of ±c_p, and weights of a few values, beta + sum of ±alpha_q: BinaryConvBases, where a padded tap
       is 0. The planes are the bits of the levels' indices (up to 4 levels of LQ-Nets, DoReFa in [-1, 1], {b - a,
       b + a} of AdaBin), or one for each threshold.
    4. A maximum commutes with q, so the pools go in front of it.
    5. A tap is padded by the layer's pads, with 0, or by a Pad.
    6. One QuantizeLevels per tensor, whatever number of layers it feeds; q(x) stays for something float that reads it.
    7. Fewer than 2^bits levels: the thresholds of those that are missing are infinite.

    Declines, with the reason: levels or weights that take too many planes; a Pad with another value; weights and layers
    as LowerBinaryConv does; 2^24 or more as the largest sum. A layer whose input has no such levels, or is ±1, is not
    looked at; nor is a MatMul over the last of three and more dimensions: ConvolveTokens does that.

    Raises InputError for a filter that is all zeros.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every layer that qualifies."""
        self._thermometers: dict[ir.Value, ir.Value] = {}  # as _binarized: one plane for each threshold
        self._pooled: dict[ir.Value, tuple[ir.Value, Place]] = {}  # by the tensor behind the pools
        # Layers come after what feeds them, so this pass no longer changes what is in front of a tensor that was read.
        self._quantizer = functools.cache(quantizer)
        return super().call(model)

    def _source(self, node: ir.Node) -> LevelsInput | Reason | None:
        source = levels_input(node, self._quantizer)
        return None if is_op(node, "MatMul") and is_on_rows(source) else source

    def _lower(self, node: ir.Node, source: LevelsInput, layer: FloatLayer) -> ir.Node | Reason:
        shape = static_shape(source.value)
        if shape is None or len(shape) < 2 or shape[1] is None:
            return InputShape()
        fitted = fit_weight(layer, shape, source.flattened)
        if isinstance(fitted, Reason):
            return fitted
        weight, channels = fitted
        bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias
        form = level_form(node, source, layer, weight, bias)
        if isinstance(form, Reason):
            return form
        pads = layer.pads
        if source.pads is not None:
            pads = [own + extra for own, extra in zip(layer.pads, source.pads, strict=True)]
        if (large := large_window(node, layer, pads)) is not None:
            return large
        attributes = {"channels": channels, "kernel_shape": list(weight.shape[2:])} | form.attributes
        bits = self._quantized(source) if form.binary_code else self._thermometer(source)
        return replace_layer(node, form.op_type, bits, form.constants, layer, pads, attributes)

    def _quantized(self, source: LevelsInput) -> ir.Value:
        """The bits of the levels' indices, made once for each tensor."""
        value, quantizer = source.value, source.quantizer
        if value not in self._binarized:
            bits = quantizer.bits
            missing = 2**bits - 1 - len(quantizer.thresholds)
            thresholds = np.pad(quantizer.thresholds, ((0, missing), (0, 0)), constant_values=np.inf)
            step = quantizer.step if quantizer.levels[0] == 0 else None
            values = () if step is not None else tuple(quantizer.levels.tolist())
            levels = Levels(bits, step or 0.0, quantizer.before_thresholds, values)
            self._binarized[value] = self._planes(source, value.name or "", thresholds, levels)
        return self._binarized[value]

    def _thermometer(self, source: LevelsInput) -> ir.Value:
        """One plane for each threshold, made once for each tensor."""
        value, quantizer = source.value, source.quantizer
        if value not in self._thermometers:
            levels = quantizer.levels.tolist()
            planes = [
                self._planes(
                    source,
                    f"{value.name}_{i + 1}",
                    quantizer.thresholds[i : i + 1],
                    Levels(1, 0.0, quantizer.before_thresholds[i : i + 1], (levels[i], levels[i + 1])),
                )
                for i in range(len(levels) - 1)
            ]
            before, first = value.producer(), planes[0]
            assert before is not None and first.shape is not None
            self._thermometers[value] = insert_node(
                before,
                "Concat",
                planes,
                {"axis": -1},
                f"{value.name}_planes",
                dtype=ir.DataType.UINT32,
                shape=[*first.shape[:-1], len(planes) * int(first.shape[-1])],  # type: ignore[arg-type]
            )
        return self._thermometers[value]

    def _planes(self, source: LevelsInput, name: str, thresholds: Floats, levels: Levels) -> ir.Value:
        """Insert the QuantizeLevels of a tensor's quantiser with these of its thresholds."""
        value = source.value
        before = value.producer()
        assert before is not None and isinstance(before.graph, ir.Graph) and value.shape is not None
        data, origin = self._data(source)
        return insert_node(
            before,
            "QuantizeLevels",
            [data, add_initializer(before.graph, f"{name}_thresholds", thresholds)],
            {"bits": levels.bits},
            f"{name}_levels",
            dtype=ir.DataType.UINT32,
            shape=[value.shape[0], *value.shape[2:], levels.bits * words(thresholds.shape[1])],
            domain=DOMAIN,
            metadata=node_place(value.producer(), value).as_source() | origin.as_before() | levels.as_metadata(),
        )

    def _data(self, source: LevelsInput) -> tuple[ir.Value, Place]:
        """What is quantised, channels first and behind the pools, and the place of its pre-activation."""
        value, quantizer = source.value, source.quantizer
        if value not in self._pooled:
            before = value.producer()
            assert before is not None
            name, data = value.name or "", quantizer.data
            if quantizer.perm:
                data = insert_node(
                    before,
                    "Transpose",
                    [data],
                    {"perm": list(quantizer.perm)},
                    f"{name}_channels_first",
                    dtype=ir.DataType.FLOAT,
                    shape=None if data.shape is None else transposed(list(data.shape), quantizer.perm),
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
            self._pooled[value] = data, origin
        return self._pooled[value]
