"""FoldConstants: everything that can be computed from constants is, so that the other passes see plain initializers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants

from bnn_deploy.passes.graph import constant, is_op
from bnn_deploy.passes.outcome import Outcome, Pass, Rewrite, display_name

NO_LIMIT = 2**62


class FoldConstants(Pass):
    """Constant sub-graphs of any size -> initializers; Identity (and inference-time Dropout) -> nothing.

    Conditions: none. Exporters fold only small constants, so without this one model mixes `Sign(W)` chains with
        constants.

    Declines: nothing.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Fold, inline the exporter's functions, and lift what is constant to initializers."""
        before = [display_name(node) for node in model.graph]
        common.InlinePass()(model)
        for node in _inner(model):
            if is_op(node, "Identity"):
                node.domain = _KEPT
        fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=NO_LIMIT,
            output_size_limit=NO_LIMIT,
            should_fold=_should_fold,
        )
        for node in model.graph:  # what was the branch of an If whose condition is constant
            node.domain = node.domain.removeprefix(_KEPT)
        for step in (
            common.IdentityEliminationPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.RemoveUnusedNodesPass(),
        ):
            step(model)
        for node in _inner(model):
            node.domain = node.domain.removeprefix(_KEPT)
        left = {display_name(node) for node in model.graph}
        return Outcome(model, [Rewrite(name) for name in before if name not in left])


_KEPT = "bnn_deploy.kept"
"""The domain of an Identity in a branch or body while the passes of onnx_ir run.

Such a node may give a tensor from outside, or an input of the body, to the output, which nothing else can do.
"""


def _inner(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes in the branches and bodies of the main graph's nodes."""
    return (node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.graph is not model.graph)


def _should_fold(node: ir.Node) -> bool | None:
    """Fold ConstantOfShape, too, which onnxscript leaves for its size: TorchScript's pads are made of one."""
    return True if is_op(node, "ConstantOfShape") and constant(node.inputs[0]) is not None else None
