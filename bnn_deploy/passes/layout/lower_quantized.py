"""LowerQuantized: binarise an 8-bit layer's output as it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import add_initializer, constant, is_binary_op, is_op, sole_consumer
from bnn_deploy.passes.layout.channels_last import replace_channels_last
from bnn_deploy.passes.outcome import Outcome, Pass


class LowerQuantized(Pass):
    """Binarize(DequantizeLinear(q), t)  ==>  BinarizeQuantized(Transpose(q, channels last), t').

    1. q is uint8 with one scale and zero point, used only here.
    2. t' is the smallest of the 256 values whose float32 dequantisation reaches t (256 if none does), tried one by one.
    3. onnxruntime runs 8-bit convolutions channels last, and removes the Transpose together with its own.

    Declines: nothing; other dequantisations stay.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Binarize of a DequantizeLinear."""
        result = Outcome(model)
        for node in list(model.graph):
            value = node.inputs[0] if is_binary_op(node, "Binarize") else None
            producer = None if value is None else value.producer()
            if producer is None or value is None or not is_op(producer, "DequantizeLinear"):
                continue
            data, threshold = producer.inputs[0], constant(node.inputs[1])
            scale, zero = (constant(v) for v in producer.inputs[1:3])
            bits = node.outputs[0]
            if data is None or threshold is None or scale is None or zero is None or bits.shape is None:
                continue
            if zero.dtype != np.uint8 or scale.size != 1 or len(bits.shape) < 3:
                continue
            if sole_consumer(value) is not node or sole_consumer(data) is not producer:
                continue
            levels = (np.arange(256) - int(zero.reshape(()))).astype(np.float32) * np.float32(scale.reshape(()))
            reached = (levels[:, None] < threshold[None, :]).sum(axis=0).astype(np.int32)
            levels_reached = add_initializer(model.graph, f"{bits.name}_quantized_threshold", reached)
            new = replace_channels_last(node, data, "BinarizeQuantized", levels_reached, ir.DataType.UINT8)
            result.rewrote(new, node, producer)
        return result
