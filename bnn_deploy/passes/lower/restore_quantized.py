"""RestoreQuantized: what stays float keeps its parameters in the bits that they were stored in."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.graph import add_initializer, insert_node, is_op
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.passes.stored import STORED, Stored


class RestoreQuantized(Pass):
    """An initializer that DequantizeParameters made  ==>  the DequantizeLinear that it was.

    onnxruntime computes in 8 bits what stands between such and a QuantizeLinear.

    Conditions: something still reads it; a binary layer reads its own bits instead.

    Declines: nothing.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Write every such DequantizeLinear."""
        result = Outcome(model)
        for value in list(model.graph.initializers.values()):
            stored = value.meta.get(STORED)
            if not isinstance(stored, Stored) or not value.uses():
                continue
            first = next(node for node in model.graph if not is_op(node, "Constant"))
            inputs = [
                model.graph.initializers.get(name) or add_initializer(model.graph, name, array)
                for name, array in stored.inputs.items()
            ]
            name = value.name or ""
            value.name = f"{name}_floats"
            new = insert_node(
                first, "DequantizeLinear", inputs, stored.attributes, name, dtype=ir.DataType.FLOAT, shape=value.shape
            )
            value.replace_all_uses_with(new)
            result.rewrote(new.producer() or first)
        return result
