"""Reads any source (a module, a checkpoint, an ONNX file or a Darknet network) as a float ONNX model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch.export import ExportedProgram

from bnn_deploy.errors import InputError
from bnn_deploy.passes.pipeline import fold
from bnn_deploy.passes.recognise.binarize_weights import Weights
from bnn_deploy.source.checkpoint import input_shape as module_input_shape
from bnn_deploy.source.darknet.network import Darknet, read_darknet
from bnn_deploy.source.input_sizes import Examples, SampleShape
from bnn_deploy.source.latent_weights import float_model, float_module
from bnn_deploy.source.onnx_file import OnnxSource, is_onnx
from bnn_deploy.source.torch_export import program_input
from bnn_deploy.source.torch_source import TorchInput, torch_source
from bnn_deploy.source.weight_form import note_weights


@dataclass(frozen=True)
class FloatSource:
    """The source of a conversion, as a float ONNX model.

    Attributes:
        model: the float ONNX model.
        name: the source's name in errors.
        examples: shapes of one sample of each input, without the batch dimension.
        binarized: the binarised weights: parameter name -> number of exact zeros before, for a module or checkpoint;
            node name -> None, for an ONNX model.
        notes: what was done to the source that its user should know, one line each.
    """

    model: ir.Model
    name: str
    examples: Examples
    binarized: dict[str, int | None]
    notes: tuple[str, ...] = ()


def read_source(
    source: TorchInput | OnnxSource | Darknet,
    arch: str | None,
    arch_args: Mapping[str, Any] | None,
    key: str | None,
    prefix: str | None,
    input_shape: SampleShape | None,
    weights: Weights,
    progress: Callable[[str], None],
) -> FloatSource:
    """Read any source as float ONNX."""
    if arch_args and arch is None:
        raise InputError("--arch-args are the arguments of an architecture: give --arch, too")
    if arch is None and (key, prefix) != (None, None):
        raise InputError("--key and --prefix say where a network's weights are in a checkpoint: give --arch, too")
    if isinstance(source, Darknet):
        name = os.fspath(source.cfg)
        if arch is not None or input_shape is not None:
            raise InputError(
                f"{name}: a .cfg file says its layers and sizes itself: leave out --arch and --input-shape"
            )
        progress("reading the Darknet network")
        model, examples, _ = float_model(read_darknet(source), None, weights)
        return FloatSource(model, name, examples, {}, (source.note,))
    if is_onnx(source):
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the model"
        if arch is not None:
            raise InputError(f"{name} is an ONNX model, which says itself what it is: leave out --arch {arch}")
        progress("reading the float model")
        notes: list[str] = []
        model, examples, binarized = float_model(source, input_shape, weights, notes)
        return FloatSource(model, name, examples, dict.fromkeys(binarized), tuple(notes))
    if isinstance(input_shape, Mapping):
        raise InputError(f"--input-shape names inputs, which a module has not: give the shape alone, not {input_shape}")
    progress("loading the network")
    network = torch_source(source, arch, arch_args, key, prefix)
    module, name = network.module, network.name
    shape = input_shape or (
        program_input(module)[1] if isinstance(module, ExportedProgram) else module_input_shape(module, None)
    )
    progress("exporting to float ONNX")
    export = float_module(module, shape, weights, name)
    note_weights(export.model.graph)
    fold(export.model)
    examples = Examples({value.name or "": shape for value in export.model.graph.inputs}, {})
    zeros = dict(zip(export.binarized, export.zeros, strict=True))
    return FloatSource(export.model, name, examples, dict(zeros), (*network.notes, *export.notes))
