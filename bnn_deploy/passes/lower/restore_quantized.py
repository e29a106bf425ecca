"""RestoreQuantized: what stays float keeps its parameters in the bits that they were stored in."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.graph import add_initializer, constant, insert_node, is_op
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
            inputs = [_initializer(model.graph, name, array) for name, array in stored.inputs]
            name = value.name or ""
            value.name = f"{name}_floats"
            new = insert_node(
                first, "DequantizeLinear", inputs, stored.attributes, name, dtype=ir.DataType.FLOAT, shape=value.shape
            )
            value.replace_all_uses_with(new)
            result.rewrote(new.producer() or first)
        return result


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """The initializer of that name if it is still this one: the name may be that of a binary layer's constant now."""
    value = graph.initializers.get(name)
    found = constant(value)
    same = found is not None and found.dtype == array.dtype and np.array_equal(found, array)
    return value if value is not None and same else add_initializer(graph, name, array)
