"""FuseResidual: a Bi-Real block is one node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.bits import words
from bnn_deploy.operators import DOMAIN
from bnn_deploy.passes.graph import (
    COMPLEMENTED,
    SOURCE,
    PassResult,
    add_initializer,
    constant,
    is_binary_op,
    is_op,
    output_key,
    replace_value,
    sole_consumer,
)


class FuseResidual:
    """y = Add(BinaryConv(...), r); b = Binarize(y, t)  ==>  y, b = BinaryConvResidual(..., r, t).

    1. The BinaryConv feeds only the Add, and r has its shape. The sums are made in the same order, so every bit agrees.
    2. The bits are made while y is in registers; without a Binarize the second output stays absent.

    Declines: an Add whose other operand is broadcast, or of unknown shape; a BinaryConv that something else uses too.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrite every Add that qualifies."""
        result = PassResult()
        for node in list(model.graph):
            if not is_op(node, "Add"):
                continue
            for index in (0, 1):
                conv_value, residual = node.inputs[index], node.inputs[1 - index]
                conv = None if conv_value is None else conv_value.producer()
                if conv is None or conv_value is None or residual is None or not is_binary_op(conv, "BinaryConv"):
                    continue
                if sole_consumer(conv_value) is not node:
                    result.decline(node, f"'{conv_value.name}' is used elsewhere too")
                elif residual.shape is None or list(residual.shape) != list(conv_value.shape or []):
                    result.decline(node, f"its operand '{residual.name}' is broadcast, or of unknown shape")
                else:
                    self._fuse(model.graph, conv, node, residual)
                    result.modified += 1
                    break
        return result

    def _fuse(self, graph: ir.Graph, conv: ir.Node, add: ir.Node, residual: ir.Value) -> None:
        old = add.outputs[0]
        name = old.name or ""
        binarize = next((c for c in old.consumers() if is_binary_op(c, "Binarize")), None)
        scale = constant(conv.inputs[2])
        assert scale is not None and old.shape is not None
        threshold = None if binarize is None else binarize.inputs[1]
        if threshold is None:
            threshold = add_initializer(graph, f"{name}_threshold", np.zeros(len(scale), dtype=np.float32))
        new = ir.Node(
            DOMAIN,
            "BinaryConvResidual",
            [*conv.inputs, residual, threshold],
            list(conv.attributes.values()),
            num_outputs=2,
            name=conv.name,
            metadata_props={SOURCE: name},
        )
        y, bits = new.outputs
        y.type, y.shape, y.name = old.type, old.shape, f"{name}_new"
        bits.name = ""
        graph.insert_before(add, new)
        if binarize is not None:
            old_bits = binarize.outputs[0]
            bits_name = old_bits.name
            bits.dtype = ir.DataType.UINT32
            bits.shape = ir.Shape([old.shape[0], *old.shape[2:], words(len(scale))])
            for key in (SOURCE, COMPLEMENTED):
                if key in binarize.metadata_props:
                    new.metadata_props[output_key(key, 1)] = binarize.metadata_props[key]
            replace_value(old_bits, bits)
            bits.name = bits_name
        replace_value(old, y)
        y.name = name
