"""ExpandSign: a sign that something float still reads is spelled out in standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import add_initializer, insert_node, is_op, maker
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import BEFORE, MOVES, SOURCE, zero_value


class ExpandSign(Pass):
    """Sign(x) that is +1 or -1 at 0  ==>  Where(x >= 0, 1, -1) or Where(x > 0, 1, -1).

    CanonicalizeSign makes such signs, which no operator of ONNX is, and LowerBinaryConv uses most of them up. This goes
    last, so that a model never holds one. Metadata that was for LowerBinaryConv goes, too.

    Declines: nothing; a Sign that is 0 at 0 is ONNX's.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Sign that has a value of its own at 0."""
        result = Outcome(model)
        graph = model.graph
        for node in list(graph):
            if not is_op(node, "Sign"):
                continue
            if not zero_value(node):
                for key in (SOURCE, BEFORE, MOVES):
                    node.metadata_props.pop(key, None)
                continue
            data, old = node.inputs[0], node.outputs[0]
            assert data is not None
            name, shape = old.name or "", None if old.shape is None else list(old.shape)
            constants = [
                add_initializer(graph, f"{name}_{kind}", np.array(value, np.float32))
                for kind, value in (("zero", 0), ("plus", 1), ("minus", -1))
            ]
            op_type = "GreaterOrEqual" if zero_value(node) > 0 else "Greater"
            above = insert_node(
                node, op_type, [data, constants[0]], {}, f"{name}_above", dtype=ir.DataType.BOOL, shape=shape
            )
            new = insert_node(
                node, "Where", [above, *constants[1:]], {}, f"{name}_new", dtype=ir.DataType.FLOAT, shape=shape
            )
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            new.name = name
            result.rewrote(maker(new), node)
        return result
