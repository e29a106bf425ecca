"""DropZeroBias: PyTorch's exporter gives a Conv3d without bias one of zeros, [O, 2] instead of [O]."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.conditions import constants_folded
from bnn_deploy.passes.graph import constant, group_of, is_op, swap_filters
from bnn_deploy.passes.outcome import Outcome, Pass


class DropZeroBias(Pass):
    """Conv | ConvTranspose (x, w, zeros)  ==>  the same of (x, w), if there is not one zero per output.

    Conditions: the weight is constant.

    Declines: nothing; a bias of one value per output stays.
    """

    needs = (constants_folded,)

    def call(self, model: ir.Model) -> Outcome:
        """Drop every such bias."""
        result = Outcome(model)
        for node in model.graph:
            is_conv = is_op(node, "Conv", "ConvTranspose") and len(node.inputs) > 2
            weight, bias = (constant(node.inputs[i]) if is_conv else None for i in (1, 2))
            if weight is None or bias is None or bias.any():
                continue
            filters = swap_filters(weight, group_of(node)) if is_op(node, "ConvTranspose") else weight
            if bias.shape != (len(filters),):
                node.resize_inputs(2)
                result.rewrote(node)
        return result
