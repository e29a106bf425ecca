"""FuseResidual: a Bi-Real block is one node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.conditions import batch_norms_folded, thresholds_folded
from bnn_deploy.passes.fusion_reasons import NoSignReads, ResidualShape, UsedElsewhere
from bnn_deploy.passes.graph import add_initializer, constant, is_binary_op, is_op, replace_value, sole_consumer
from bnn_deploy.passes.monotone import bisect_threshold, monotone
from bnn_deploy.passes.outcome import Outcome, Pass, take_in
from bnn_deploy.passes.reasons import Reason
from bnn_deploy.provenance import bit_metadata, source_metadata


class FuseResidual(Pass):
    """y = Add(BinaryConv(...), r); b = Binarize(y, t)  ==>  y, b = BinaryConvResidual(..., r, t).

    1. The BinaryConv feeds only the Add, and r has its shape. The sums are made in the same order: every bit agrees.
    2. The bits are made while y is in registers.
    3. A function f that rises in each channel, such as a hard tanh, may stand in front of the Binarize where something
       else, the next shortcut, reads f(y), too: the bits are then f(y) >= t, as y >= t', and f stays.

    Declines: an Add that no Binarize reads; one whose operand is broadcast, or of unknown shape; a BinaryConv that
    something else uses too.
    """

    needs = (thresholds_folded, batch_norms_folded)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Add that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_op(node, "Add"):
                continue
            for index in (0, 1):
                conv_value, residual = node.inputs[index], node.inputs[1 - index]
                conv = None if conv_value is None else conv_value.producer()
                if conv is None or conv_value is None or residual is None or not is_binary_op(conv, "BinaryConv"):
                    continue
                if sole_consumer(conv_value) is not node:
                    result.decline(node, UsedElsewhere(f"'{conv_value.name}' is"))
                elif residual.shape is None or list(residual.shape) != list(conv_value.shape or []):
                    result.decline(node, ResidualShape(residual.name or ""))
                elif (binarize := _binarize(node.outputs[0]) or _behind_function(node)) is None:
                    result.decline(node, NoSignReads())
                else:
                    result.rewrote(self._fuse(model.graph, conv, node, residual, binarize), conv, node, binarize)
                    break
        return result

    def _fuse(self, graph: ir.Graph, conv: ir.Node, add: ir.Node, residual: ir.Value, binarize: ir.Node) -> ir.Node:
        old, old_bits = add.outputs[0], binarize.outputs[0]
        name, bits_name = old.name or "", old_bits.name
        new = ir.Node(
            DOMAIN,
            "BinaryConvResidual",
            [*conv.inputs, residual, binarize.inputs[1]],
            list(conv.attributes.values()),
            num_outputs=2,
            name=conv.name,
            metadata_props=source_metadata(old),
        )
        y, bits = new.outputs
        y.type, y.shape, y.name = old.type, old.shape, f"{name}_new"
        bits.type, bits.shape, bits.name = old_bits.type, old_bits.shape, f"{bits_name}_new"
        new.metadata_props.update(bit_metadata(binarize, 1))
        graph.insert_before(add, new)
        replace_value(old_bits, bits)
        replace_value(old, y)
        y.name, bits.name = name, bits_name
        return new


def _behind_function(add: ir.Node) -> ir.Node | None:
    """The Binarize of a rising function of a sum, made one of the sum itself; None if there is none."""
    value = add.outputs[0]
    for user in value.consumers():
        binarize = _binarize(user.outputs[0])
        threshold = None if binarize is None else constant(binarize.inputs[1])
        function = None if threshold is None else monotone(user, len(threshold))
        if binarize is None or threshold is None or function is None or isinstance(function, Reason):
            continue
        with np.errstate(over="ignore"):  # the bisection starts at the largest floats
            new, falling = bisect_threshold(lambda x, f=function, t=threshold: f(x) >= t, len(threshold))  # type: ignore[misc]
        if falling.any():
            continue
        assert isinstance(add.graph, ir.Graph)
        binarize.replace_input_with(0, value)
        name = f"{binarize.outputs[0].name}_before_{user.op_type}"
        binarize.replace_input_with(1, add_initializer(add.graph, name, new))
        take_in(binarize, user)
        return binarize
    return None


def _binarize(value: ir.Value) -> ir.Node | None:
    """The first Binarize of a value, if there is one; others stay, and read the float."""
    return next((consumer for consumer in value.consumers() if is_binary_op(consumer, "Binarize")), None)
