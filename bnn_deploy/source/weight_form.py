"""Records the formula by which a float graph computes a layer's weights, before folding replaces it by values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.formula import formula
from bnn_deploy.passes.graph import LAYER_OPERATORS, constant, is_op

WEIGHT_FORM = "bnn_deploy.weight_form"
"""Key of `Node.meta`, which is not written to files: the `WeightForm` of a layer before its constants were folded."""


@dataclass(frozen=True)
class WeightForm:
    """How the float graph computes a layer's weights.

    Attributes:
        text: the weights as a formula of the stored tensor W, such as "Sign(W)"; "W" if the graph stores them directly.
        tensor: the name of W.
        zeros: number of exact zeros in W.
    """

    text: str
    tensor: str
    zeros: int


def note_weights(graph: ir.Graph) -> None:
    """Record each layer's weight form in its `meta` (in memory only); call it before folding, which loses the form."""
    for node in graph:
        if is_op(node, *LAYER_OPERATORS) and WEIGHT_FORM not in node.meta and (form := _weight_form(node)):
            node.meta[WEIGHT_FORM] = form


def _weight_form(node: ir.Node) -> WeightForm | None:
    value = node.inputs[1]
    leaves: dict[ir.Value, NDArray[Any]] = {}
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current is None:
            continue
        array, producer = constant(current), current.producer()
        if array is not None:
            leaves[current] = array
        elif producer is None:
            return None  # not constant
        else:
            pending += [v for v in producer.inputs if v not in seen]
            seen.update(producer.inputs)
    if value is None or not leaves:
        return None
    latent = max(leaves, key=lambda leaf: leaves[leaf].size)
    return WeightForm(formula(value, {latent: "W"}, "c"), latent.name or "", int((leaves[latent] == 0).sum()))
