"""Binarises the latent weights of a float ONNX model or of an exported module, as training did."""

from __future__ import annotations

import gc
import os
import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from bnn_deploy.architectures import RecipeNetwork
from bnn_deploy.errors import InputError, option
from bnn_deploy.passes.graph import constant, is_op
from bnn_deploy.passes.normalise.dequantize_parameters import DequantizeParameters
from bnn_deploy.passes.outcome import Outcome, display_name
from bnn_deploy.passes.pipeline import canonicalize, fold, infer_shapes
from bnn_deploy.passes.recognise.binarize_weights import BinarizeWeights, Weights, binarize
from bnn_deploy.source import onnx_file
from bnn_deploy.source.input_sizes import Examples, SampleShape
from bnn_deploy.source.kept_exports import kept_export
from bnn_deploy.source.module_inputs import ModuleInputs
from bnn_deploy.source.onnx_file import OnnxSource
from bnn_deploy.source.torch_export import FloatExport, export_float, name_layers, strip_metadata
from bnn_deploy.source.weight_form import WEIGHT_FORM, note_weights
from bnn_deploy.training import binarize_weight


def float_model(
    source: OnnxSource, sample: SampleShape | None, weights: Weights, notes: list[str] | None = None
) -> tuple[ir.Model, Examples, list[str]]:
    """Prepare a float ONNX model of any exporter for the passes, and binarise its latent weights.

    Args:
        source: a file, or a model, which is not changed.
        sample: the shape of one sample, if the model leaves it open.
        weights: the scheme for real-valued weights of layers whose input is a sign.
        notes: gets what the user should know about the model, one line each.

    Returns:
        The model with its constants folded, shapes of its inputs, and the names of the nodes whose weights were
        binarised.

    Raises:
        InputError: see `onnx_file.read` and `BinarizeWeights`.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the model"
    proto, examples = onnx_file.upgrade(onnx_file.read(source, notes), name, sample)
    model = ir.from_proto(proto)
    name_layers(model)
    strip_metadata(model)
    model.graph.name = "float"
    note_weights(model.graph)
    fold(model)
    infer_shapes(model)
    canonical = model.clone()
    canonicalize(canonical)
    step = BinarizeWeights(weights, computed=_computed(model.graph))
    try:
        step.find(Outcome(canonical))
        del canonical
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if step.binarized:
        DequantizeParameters()(model)
    step.apply(model)
    return model, examples, list(step.binarized)


def float_module(
    module: nn.Module | torch.export.ExportedProgram,
    inputs: ModuleInputs | tuple[int, ...],
    weights: Weights = "auto",
    name: str | None = None,
) -> FloatExport:
    """Export a module to float ONNX, and binarise its latent parameters in both the program and the model.

    Args:
        module: in eval mode, or a program of torch.export; it is not changed.
        inputs: its inputs, see `export_float`.
        weights: the scheme for real-valued weights of layers whose input is a sign. "auto" applies the recipe's scheme
            to a RecipeNetwork; in other modules it guesses nothing, see `BinarizeWeights`.
        name: the module's name in errors; None for the name of its class.

    Raises:
        InputError: see `export_float` and `BinarizeWeights`; or forward() computes real-valued weights.
    """
    export = kept_export(module, inputs, export_float)
    if weights == "as-is":
        return export
    model = export.model.clone()
    note_weights(model.graph)
    fold(model)
    infer_shapes(model)
    canonical = model.clone()
    canonicalize(canonical)
    layers = {display_name(node): node for node in model.graph}
    recipe = set(layers) if isinstance(module, RecipeNetwork) else set()
    step = BinarizeWeights(weights, recipe, _as_in_training, _computed(model.graph))
    exported = {node.outputs[0].name: node for node in export.model.graph}
    state = export.program.state_dict
    names, zeros = [], []
    try:
        step.find(Outcome(canonical))
        del canonical
        gc.collect()  # its nodes and values refer to each other, and to the latent weights
        for layer in map(layers.__getitem__, step.binarized):
            weight = constant(layer.inputs[1])
            parameter = _parameter(exported.get(layer.outputs[0].name))
            latent = state.get(parameter or "")
            if parameter in names:
                continue
            if (
                parameter is None
                or latent is None
                or weight is None
                or not _is_transposed_or_equal(latent.detach().numpy(), weight)
            ):
                raise InputError(
                    f"{layer.op_type} '{display_name(layer)}': its input is a sign, but its weights, which forward() "
                    "computes, are real-valued: make them ±alpha in forward(), or leave them real with "
                    f"{option('weights', 'as-is')}"
                )
            binary = step.binary(layer, weight)
            binary = np.ascontiguousarray(binary if latent.shape == binary.shape else binary.T)
            zeros.append(latent.numel() - int(latent.count_nonzero()))
            state[parameter].data = torch.from_numpy(binary).to(latent.dtype)  # in the same memory as the model's
            export.model.graph.initializers[parameter].const_value = ir.tensor(binary, name=parameter)
            names.append(parameter)
            if (read := layer.inputs[1]) is not None:
                read.const_value = None
            del latent, weight, binary, read  # all may be large; what replaces the latent weight is in `state`
    except InputError as error:
        raise InputError(f"{name or type(module).__name__}: {error}") from error
    return replace(export, binarized=tuple(names), zeros=tuple(zeros))


def _computed(graph: ir.Graph) -> set[str]:
    """The layers whose weights the network binarises itself; `note_weights` saw how before they were folded."""
    forms = ((node, node.meta.get(WEIGHT_FORM)) for node in graph)
    return {display_name(node) for node, form in forms if form is not None and not _STORED.fullmatch(form.text)}


_STORED = re.compile(r"((Transpose|DequantizeLinear)\()*W(, [^,()]+|\))*")
"""The form of weights that are stored as the layer reads them, or transposed, or in few bits."""


def _as_in_training(filters: NDArray[np.float32], scheme: Weights) -> NDArray[np.float32]:
    """`binarize`, but with PyTorch's float32 rounding for the recipe: it decides the sign of a weight near the mean."""
    if scheme != "xnor-centred" or filters.shape[1] == 1:
        return binarize(filters, scheme)
    binary = np.empty_like(filters)
    # Filters by themselves, in parts: of a large layer, each step would take as much memory as its weights.
    rows = max(512, 2**22 // filters[0].size)
    for start in range(0, len(filters), rows):
        part = torch.from_numpy(np.array(filters[start : start + rows]))
        binary[start : start + rows] = binarize_weight(part).numpy()
    return binary


def _parameter(layer: ir.Node | None) -> str | None:
    """The name of the parameter that an exported layer reads as its weight, directly or transposed."""
    value = None if layer is None else layer.inputs[1]
    while value is not None and (producer := value.producer()) is not None:
        value = producer.inputs[0] if is_op(producer, "Identity", "Transpose") else None
    return None if value is None else value.name


def _is_transposed_or_equal(latent: NDArray[Any], weight: NDArray[Any]) -> bool:
    return np.array_equal(latent, weight) or (weight.ndim == 2 and np.array_equal(latent.T, weight))
