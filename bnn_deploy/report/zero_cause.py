"""Why the input of a sign can be exactly 0, as far as the graph says it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from bnn_deploy.passes.graph import LAYER_OPERATORS, constant, is_op
from bnn_deploy.passes.lower.audit_leftovers import nearest_sign
from bnn_deploy.passes.lower.layer import levels_input
from bnn_deploy.passes.monotone import batch_norm_line
from bnn_deploy.passes.moves import moves_only
from bnn_deploy.passes.reasons import Reason

_KEEPS_ZERO = ("AveragePool", "Identity", "LeakyRelu", "MaxPool", "Neg", "PRelu", "Pad", "Tanh")
"""Operators whose output is 0 where all that they read is 0, besides those that only move it."""


def zero_causes(model: ir.Model) -> dict[ir.Value, str]:
    """What may well make values of a canonical graph exactly 0; without those that only chance does, as a BatchNorm."""
    found = dict.fromkeys(model.graph.inputs, "the model's input")
    for node in model.graph:
        if cause := _cause(node, found):
            found[node.outputs[0]] = cause
    return found


def _cause(node: ir.Node, found: Mapping[ir.Value, str]) -> str | None:
    constants = [array for value in node.inputs if (array := constant(value)) is not None]
    causes = [found.get(value) for value in node.inputs if value is not None and constant(value) is None]
    first = causes[0] if causes else None
    if is_op(node, "Relu", "Gelu"):
        return f"a {node.op_type}"
    if is_op(node, "Clip"):
        return "a Clip at 0" if constants and not constants[0].any() else first
    if is_op(node, *LAYER_OPERATORS):
        few = nearest_sign(node) is not None or levels_input(node) is not None
        bias = constants[1] if len(constants) > 1 else None
        return "sums of \N{PLUS-MINUS SIGN}alpha" if few and (bias is None or not bias.all()) else None
    if is_op(node, "BatchNormalization"):
        line = batch_norm_line(node)
        return None if isinstance(line, Reason) or line[1].all() else first
    if is_op(node, "Add", "Sub"):
        return first if all(causes) and not any(array.all() for array in constants) else None
    if is_op(node, "Mul", "Div"):
        return next(filter(None, causes), None)
    return first if is_op(node, *_KEEPS_ZERO) or moves_only(node) else None
