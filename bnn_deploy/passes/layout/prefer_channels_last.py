"""PreferChannelsLast: binarise a float convolution's output in the layout that onnxruntime gives it most cheaply."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.conditions import thresholds_folded
from bnn_deploy.passes.graph import is_binary_op, is_op, sole_consumer
from bnn_deploy.passes.layout.channels_last import replace_channels_last
from bnn_deploy.passes.outcome import Outcome, Pass


class PreferChannelsLast(Pass):
    """Binarize(Conv(x), t)  ==>  BinarizeChannelsLast(Transpose(Conv(x), channels last), t).

    onnxruntime computes a float convolution in blocks of channels, and must reorder its output. Reordering to channels
    last copies whole blocks, and the Transpose disappears in it; the bits of a pixel are then compared side by side.

    Conditions: a two-dimensional Conv that feeds only this Binarize, with a multiple of 32 channels: with a rest
    it does not pay.

    Declines: nothing.
    """

    needs = (thresholds_folded,)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Binarize of a Conv."""
        result = Outcome(model)
        for node in list(model.graph):
            value = node.inputs[0] if is_binary_op(node, "Binarize") else None
            bits, threshold = node.outputs[0], node.inputs[1] if value is not None else None
            if value is None or threshold is None or bits.shape is None or len(bits.shape) != 4:
                continue
            if not is_op(value.producer(), "Conv") or sole_consumer(value) is not node or threshold.shape is None:
                continue
            channels = threshold.shape[0]
            if not isinstance(channels, int) or channels % 32:
                continue
            new = replace_channels_last(node, value, "BinarizeChannelsLast", threshold, ir.DataType.FLOAT)
            result.rewrote(new, node)
        return result
