"""Checks of a float ONNX model before any pass runs on it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.operators.contract import FLOAT_LAYERS, OPSET
from bnn_deploy.source.opset import inner_nodes, opset_of
from bnn_deploy.source.qonnx import QONNX, constants

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def require_tensors(model: ModelProto, name: str) -> None:
    """Check that every tensor a node reads is defined, and that the model is valid ONNX."""
    known = {"", *(value.name for value in model.graph.input), *(tensor.name for tensor in model.graph.initializer)}
    known |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    made = known | {output for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        for tensor in node.input:
            if tensor not in made:
                raise InputError(
                    f"{name}: invalid: {node.op_type} '{node.name or node.output[0]}' reads '{tensor}', "
                    "which nothing makes. PyTorch's "
                    "exporter writes that for two equal clamps of a straight-through estimator: export again with "
                    "torch.onnx.export(..., dynamo=True, optimize=False), or convert the module itself"
                )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(
            f"{name}: not a valid ONNX model: {one_line(error)}; export it again, with opset {OPSET}"
        ) from error


def require_known_operators(model: ModelProto, name: str) -> None:
    """Refuse operators of domains that have no definition here."""
    for node in model.graph.node:
        if node.domain.startswith("com.microsoft"):
            raise InputError(
                f"{name}: {node.op_type} '{node.name or node.output[0]}' is of the domain {node.domain}: onnxruntime's "
                "optimiser or quantiser wrote it; give the model as it was before"
            )
        if node.domain not in ("", "ai.onnx"):
            raise InputError(
                f"{name}: {node.op_type} '{node.name or node.output[0]}' is of the domain {node.domain}, which has no "
                f"definition here (known: BipolarQuant and Quant of {QONNX[0]}); export with standard operators"
            )


def require_sound_parameters(model: ModelProto, name: str) -> None:
    """Refuse parameters that make outputs NaN, and layers inside an If or Loop, which no pass visits."""
    known = constants(model)
    for node in model.graph.node:
        label = f"{name}: {node.op_type} '{node.name or node.output[0]}'"
        for inner in inner_nodes(node):
            if inner.op_type in FLOAT_LAYERS:
                raise InputError(
                    f"{label} has a {inner.op_type} '{inner.name or inner.output[0]}' in a branch or loop, where no "
                    "pass looks: export the network without control flow"
                )
        if node.op_type not in (*FLOAT_LAYERS, "BatchNormalization"):
            continue
        for tensor in (known[parameter] for parameter in node.input[1:] if parameter in known):
            array = numpy_helper.to_array(tensor)
            if not np.isfinite(array).all():
                raise InputError(
                    f"{label}: its parameter '{tensor.name}' holds NaN or infinity: the training diverged; export an "
                    "earlier checkpoint"
                )
        if node.op_type == "BatchNormalization" and node.input[4] in known:
            variance = numpy_helper.to_array(known[node.input[4]])
            if variance.size and variance.min() < 0:
                raise InputError(
                    f"{label}: the variance of channel {int(variance.argmin())} is {variance.min():g}; "
                    "it cannot be negative: the file is damaged, export it again"
                )


def require_inference(model: ModelProto, name: str) -> None:
    """Refuse a model that draws random numbers, or was exported in training mode: it normalises by batch statistics."""
    known = constants(model)
    opset = opset_of(model)
    for node in model.graph.node:
        if node.op_type in _RANDOM and not node.domain:
            raise InputError(
                f"{name}: {node.op_type} '{node.name or node.output[0]}' draws random numbers, so the network computes "
                "something else each time: export it without"
            )
        mode = known.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        training = mode is not None and bool(numpy_helper.to_array(mode))
        if node.op_type == "BatchNormalization":
            # Before opset 14 it is in training mode if it gives statistics, too.
            training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute) or (
                opset < 14 and sum(map(bool, node.output)) > 1
            )
        if training:
            raise InputError(
                f"{name}: {node.op_type} '{node.name or node.output[0]}' is in training mode; "
                "call model.eval() and export again"
            )
