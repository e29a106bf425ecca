"""DequantizeParameters: weights that are stored in few bits are floats for the passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.elementwise import evaluate
from bnn_deploy.passes.graph import add_initializer, constant, is_op
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.passes.stored import STORED, Stored


class DequantizeParameters(Pass):
    """DequantizeLinear(constants)  ==>  an initializer, float32, which remembers what it was made of.

    Quantisers write weights, biases and numbers so. What still reads the initializer when all layers are lowered gets
    the DequantizeLinear back, see RestoreQuantized.

    Declines: nothing; scales in blocks stay, and what is not float32.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Replace every DequantizeLinear of constants."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_op(node, "DequantizeLinear") or node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
                continue
            values = [value for value in node.inputs if value is not None]
            arrays = [array for value in values if (array := constant(value)) is not None]
            if len(arrays) < len(values) or "block_size" in node.attributes:
                continue
            data, *scales = arrays
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            if any(scale.size > 1 and (scale.ndim != 1 or scale.size != data.shape[axis]) for scale in scales):
                continue
            shape = [1] * data.ndim
            if data.ndim:
                shape[axis] = -1
            aligned = [scale.reshape(shape if scale.size > 1 else ()) for scale in scales]
            output = node.outputs[0]
            floats = evaluate(node, [data, *aligned]).astype(np.float32)
            new = add_initializer(model.graph, output.name or "", floats)
            attributes = {key: attribute.value for key, attribute in node.attributes.items()}
            names = (value.name or "" for value in values)
            new.meta[STORED] = Stored(dict(zip(names, arrays, strict=True)), attributes)
            ir.convenience.replace_all_uses_with(output, new)
            if output.is_graph_output():
                continue
            model.graph.remove(node, safe=True)
            result.modified = True
        return result
