"""What passes need of a model at their place in the pipeline: each condition names the node that breaks it."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.graph import constant, is_binary_op, is_op, sole_consumer


def constants_folded(model: ir.Model) -> str:
    """No node computes something from constants alone: FoldConstants has run."""
    for node in model.graph:
        if is_op(node, "Constant", "Identity") and not node.outputs[0].is_graph_output():
            return f"{node.op_type} '{node.outputs[0].name}' is left"
    return ""


def shapes_known(model: ir.Model) -> str:
    """The ranks of all tensors are known: shapes have been inferred since the last rewrite that left some open."""
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.shape is None:
                return f"'{value.name}' has no shape"
    return ""


def signs_canonical(model: ir.Model) -> str:
    """A sign is a Sign: CanonicalizeSign has run, so no Where of a comparison gives two numbers of one magnitude."""
    for node in model.graph:
        numbers = [constant(value) for value in node.inputs[1:]] if is_op(node, "Where") else []
        if len(numbers) == 2 and all(number is not None and number.size == 1 for number in numbers):
            one, other = (float(number.reshape(())) for number in numbers if number is not None)
            if one == -other != 0:
                return f"Where '{node.outputs[0].name}' is a sign"
    return ""


def thresholds_folded(model: ir.Model) -> str:
    """No BatchNormalization feeds a Binarize alone: FoldThreshold, which is exact, goes before what rounds."""
    for node in model.graph:
        value = node.inputs[0] if is_binary_op(node, "Binarize") else None
        if value is not None and is_op(value.producer(), "BatchNormalization") and sole_consumer(value) is node:
            return f"BatchNormalization '{value.name}' is in front of a Binarize"
    return ""


def batch_norms_folded(model: ir.Model) -> str:
    """No BatchNormalization stands alone behind a binary layer: FoldBatchNorm has run."""
    for node in model.graph:
        value = node.inputs[0] if is_op(node, "BatchNormalization") else None
        if value is not None and is_binary_op(value.producer(), "BinaryConv") and sole_consumer(value) is node:
            return f"BatchNormalization '{node.outputs[0].name}' is behind a BinaryConv"
    return ""
