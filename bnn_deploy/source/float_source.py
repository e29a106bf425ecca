"""Reads any source (a module, a checkpoint, an ONNX file or a Darknet network) as a float ONNX model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from torch.export import ExportedProgram

from bnn_deploy.errors import InputError, option, reading
from bnn_deploy.passes.pipeline import fold
from bnn_deploy.passes.recognise.binarize_weights import Weights
from bnn_deploy.progress import ProgressStep
from bnn_deploy.source.darknet.network import Darknet, read_darknet
from bnn_deploy.source.inferred_shape import infer_shape
from bnn_deploy.source.input_sizes import Examples, SampleShape
from bnn_deploy.source.latent_weights import float_model, float_module
from bnn_deploy.source.module_inputs import ExampleInputs, module_inputs, program_inputs
from bnn_deploy.source.onnx_file import OnnxSource, is_onnx
from bnn_deploy.source.open_sizes import with_example_sizes
from bnn_deploy.source.torch_source import TorchInput, TorchSource, torch_source
from bnn_deploy.source.user_code import users_network
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
        accuracy: what a checkpoint says of its accuracy, see `LoadedNetwork`.
        outputs: what a module calls its outputs, if it returns a dict; empty if it does not.
    """

    model: ir.Model
    name: str
    examples: Examples
    binarized: dict[str, int | None]
    notes: tuple[str, ...] = ()
    accuracy: dict[str, float] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


def read_source(
    source: TorchInput | OnnxSource | Darknet,
    arch: str | None,
    arch_args: Mapping[str, Any] | None,
    key: str | None,
    prefix: str | None,
    input_shape: SampleShape | None,
    example_inputs: ExampleInputs | None,
    weights: Weights,
    progress: Callable[[str], None],
) -> FloatSource:
    """Read any source as float ONNX."""
    if arch_args and arch is None:
        raise InputError(f"{option('arch_args')} are the arguments of an architecture: give {option('arch')}, too")
    if arch is None and (key, prefix) != (None, None):
        raise InputError(
            f"{option('key')} and {option('prefix')} say where a network's weights are in a checkpoint: give "
            f"{option('arch')}, too"
        )
    if example_inputs is not None and (isinstance(source, Darknet) or is_onnx(source)):
        raise InputError("example_inputs are those of a torch module; this source says its inputs itself: leave it out")
    if isinstance(source, Darknet):
        name = os.fspath(source.cfg)
        if arch is not None or input_shape is not None:
            raise InputError(
                f"{name}: a .cfg file says its layers and sizes itself: leave out {option('arch')} and "
                f"{option('input_shape')}"
            )
        progress("reading the Darknet network")
        with reading(source.cfg, "not a Darknet network that can be computed"):
            model, examples, _ = float_model(read_darknet(source), None, weights)
        return FloatSource(model, name, examples, {}, (source.note,))
    if is_onnx(source):
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the model"
        if arch is not None:
            raise InputError(f"{name} is an ONNX model, which says itself what it is: leave out {option('arch', arch)}")
        progress("reading the float model")
        notes: list[str] = []
        with reading(name, "not a valid ONNX model, or a damaged one"):
            model, examples, binarized = float_model(source, input_shape, weights, notes)
        return FloatSource(model, name, examples, dict.fromkeys(binarized), tuple(notes))
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__
    with users_network(name):
        progress("loading the network")
        network = torch_source(source, arch, arch_args, key, prefix)
        return _export(network, input_shape, example_inputs, weights, progress)


def _export(
    network: TorchSource,
    input_shape: SampleShape | None,
    example_inputs: ExampleInputs | None,
    weights: Weights,
    progress: Callable[[str], None],
) -> FloatSource:
    """A network in PyTorch as float ONNX."""
    module, name = network.module, network.name
    notes = list(network.notes)
    if isinstance(module, ExportedProgram):
        inputs = program_inputs(module, input_shape, example_inputs)
    else:
        if input_shape is None and example_inputs is None and getattr(module, "input_shape", None) is None:
            progress("looking for the shape of the input")
            input_shape = infer_shape(module)
            notes.append(f"the shape of the input was taken from the network: {option('input_shape', input_shape)}")
        inputs = with_example_sizes(module, module_inputs(module, name, input_shape, example_inputs), name)
    progress(ProgressStep("exporting to float ONNX", 0.05))
    export = float_module(module, inputs, weights, name)
    note_weights(export.model.graph)
    fold(export.model)
    sizes = {item.name: (item.shape if item.has_batch else item.shape[1:]) for item in inputs.items}
    examples = Examples(sizes, export.others)
    zeros = dict(zip(export.binarized, export.zeros, strict=True))
    notes += export.notes
    return FloatSource(export.model, name, examples, dict(zeros), tuple(notes), network.accuracy, export.outputs)
