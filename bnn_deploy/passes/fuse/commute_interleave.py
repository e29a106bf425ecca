"""CommuteInterleave: binarise the phases of a transposed convolution first, then interleave the bits."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.operators.bits import words
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.fusion_reasons import UsedElsewhere
from bnn_deploy.passes.graph import insert_node, is_binary_op, maker, remove_if_dead, replace_value, sole_consumer
from bnn_deploy.passes.interleave import Interleaved, interleave, interleaved
from bnn_deploy.passes.outcome import Outcome, Pass, take_in
from bnn_deploy.provenance import bit_metadata


class CommuteInterleave(Pass):
    """Binarize(interleave(a, b, ...), t)  ==>  interleave(Binarize(a, t), Binarize(b, t), ...).

    What is interleaved are the phases of a transposed convolution: FuseConvThreshold then makes each of them one node
    with the Binarize, and bits are interleaved instead of floats, 32 times as many.

    Conditions: the map feeds only this Binarize.

    Declines: a map that something else uses too.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Binarize of an interleaved map."""
        result = Outcome(model)
        for node in list(model.graph):
            value = node.inputs[0] if is_binary_op(node, "Binarize") else None
            made = interleaved(value)
            if value is None or made is None:
                continue
            if sole_consumer(value) is not node:
                result.decline(node, UsedElsewhere(f"'{value.name}' is"))
                continue
            result.rewrote(self._commute(node, made), node)
        return result

    def _commute(self, node: ir.Node, made: Interleaved) -> ir.Node:
        old = node.outputs[0]
        name = old.name or ""
        phases = []
        for i, phase in enumerate(made.phases):
            assert phase.shape is not None
            channels = phase.shape[1]
            assert isinstance(channels, int)
            bits = insert_node(
                node,
                "Binarize",
                [phase, node.inputs[1]],
                {},
                f"{name}_phase_{i}",
                dtype=ir.DataType.UINT32,
                shape=[phase.shape[0], *list(phase.shape)[2:], words(channels)],
                domain=DOMAIN,
            )
            take_in(maker(bits), node)
            phases.append(bits)
        together = Interleaved(tuple(phases), made.strides, made.crop)
        new = interleave(node, together, f"{name}_interleaved", bit_metadata(node), channels_last=True)
        replace_value(old, new)
        remove_if_dead(node)
        new.name = name
        return maker(new)
