"""FoldConstants: everything that can be computed from constants is, so that the other passes see plain initializers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray
from onnxscript.optimizer import fold_constants

from bnn_deploy.passes.graph import add_initializer, constant, is_op, without_logs
from bnn_deploy.passes.outcome import Outcome, Pass, Rewrite, display_name

NO_LIMIT = 2**62

MOST_FOLDED = 2**28
"""Elements that an operator may make of fewer when it is folded: 1 GiB of float32."""


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
        while True:
            with without_logs():
                fold_constants(
                    model,
                    onnx_shape_inference=True,
                    input_size_limit=NO_LIMIT,
                    output_size_limit=NO_LIMIT,
                    should_fold=_should_fold,
                )
            several = [(node, found) for node in model.graph if (found := _several_constants(node)) is not None]
            for node, found in several:
                for output, array in zip(node.outputs, found, strict=True):
                    folded = add_initializer(model.graph, f"{output.name}_folded", array)
                    ir.convenience.replace_all_uses_with(output, folded, replace_graph_outputs=True)
                model.graph.remove(node, safe=True)
            if not several:
                break
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


def _several_constants(node: ir.Node) -> list[NDArray[Any]] | None:
    """The outputs of an operator of constants that onnxscript does not fold; None if it is none, or not of constants.

    Split and TopK have several outputs; the evaluator that folds refuses a GatherElements of fewer indices than data.
    """
    data = constant(node.inputs[0]) if is_op(node, "GatherElements", "Split", "TopK") else None
    second = node.inputs[1] if len(node.inputs) > 1 else None
    operand = constant(second)
    if data is None or (second is not None and operand is None):
        return None
    axis = _integer(node, "axis", -1 if is_op(node, "TopK") else 0)
    if is_op(node, "GatherElements"):
        assert operand is not None
        axis %= data.ndim
        fitting = tuple(slice(None if i == axis else size) for i, size in enumerate(operand.shape))
        return [np.take_along_axis(data[fitting], operand, axis=axis)]
    if is_op(node, "Split"):
        count = len(node.outputs)
        each = -(-data.shape[axis] // count)
        sizes = [each] * count if operand is None else operand.tolist()
        return np.split(data, np.cumsum(sizes[:-1]), axis=axis)
    if operand is None or data.dtype.kind != "f":
        return None
    order = np.argsort(-data if _integer(node, "largest", 1) else data, axis=axis, kind="stable")
    chosen = np.take(order, np.arange(int(operand.reshape(()))), axis=axis)
    return [np.take_along_axis(data, chosen, axis=axis), chosen]


def _integer(node: ir.Node, name: str, default: int) -> int:
    """The INT attribute `name` of a node."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _should_fold(node: ir.Node) -> bool | None:
    """Fold ConstantOfShape, too, which onnxscript leaves for its size: TorchScript's pads are made of one.

    What makes more than MOST_FOLDED elements of fewer, as a ConstantOfShape or an Expand can of a few bytes, stays.
    """
    sizes = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
    of_shape = constant(node.inputs[0]) if is_op(node, "ConstantOfShape") else None
    for output in node.outputs:
        shape = of_shape.tolist() if of_shape is not None else output.shape
        made = math.prod(size for size in shape or () if isinstance(size, int))
        if made > max(MOST_FOLDED, sum(sizes)):
            return False
    return True if of_shape is not None else None
