"""DequantizeParameters: weights that are stored in few bits are floats for the passes."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.graph import add_initializer
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.passes.stored import STORED, Stored, parameter, stored_inputs


class DequantizeParameters(Pass):
    """DequantizeLinear(constants)  ==>  an initializer, float32, which remembers what it was made of.

    Quantisers write weights, biases and numbers so. What still reads the initializer when all layers are lowered gets
    the DequantizeLinear back, see RestoreQuantized. One that is an output of the model stays for that.

    Declines: nothing; scales in blocks stay, and what is not float32.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Replace every DequantizeLinear of constants."""
        result = Outcome(model)
        for node in list(model.graph):
            arrays, output = stored_inputs(node), node.outputs[0]
            floats = None if arrays is None else parameter(output)
            if arrays is None or floats is None or not output.uses():
                continue
            name = output.name or ""
            new = add_initializer(model.graph, f"{name}_floats" if output.is_graph_output() else name, floats)
            attributes = {key: attribute.value for key, attribute in node.attributes.items()}
            names = [value.name or "" for value in node.inputs if value is not None]
            new.meta[STORED] = Stored(tuple(zip(names, arrays, strict=True)), attributes)
            for use in list(output.uses()):
                use.node.replace_input_with(use.idx, new)
            if not output.is_graph_output():
                model.graph.remove(node, safe=True)
            result.modified = True
        return result
