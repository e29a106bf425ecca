"""Reads a float ONNX model of any exporter: the passes start from it, and `verify` runs it as the reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeGuard

import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto, inliner

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.file_kind import other_kind
from bnn_deploy.files import is_file, require_file, require_texts
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.pipeline import IR_VERSION
from bnn_deploy.source.blocked import expand_blocked
from bnn_deploy.source.half import to_float32
from bnn_deploy.source.input_sizes import Examples, SampleShape, settle_sizes
from bnn_deploy.source.opset import all_nodes, set_opset
from bnn_deploy.source.optimised import expand_optimised, name_early_norms
from bnn_deploy.source.qonnx import expand_bipolar_quant, expand_quant
from bnn_deploy.source.soundness import (
    require_inference,
    require_known_operators,
    require_sound_parameters,
    require_tensors,
)

MIN_IR_VERSION = 8

OnnxSource = str | os.PathLike[str] | ModelProto | ir.Model


def is_onnx(source: object) -> TypeGuard[OnnxSource]:
    """Whether `source` is an ONNX model, or the path of one, and not a module or a checkpoint."""
    if isinstance(source, str | os.PathLike):
        return Path(source).suffix.lower() == ".onnx" or _holds_onnx(Path(source))
    return isinstance(source, ModelProto | ir.Model)


def _holds_onnx(path: Path) -> bool:
    """Whether a file of any name is ONNX by its content."""
    if not is_file(path):
        return False
    with path.open("rb") as file:
        if file.read(2) in (b"PK", b"\x80\x02"):  # a zip file or a pickle, as torch.save writes
            return False
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception:  # it is something else
        return False
    return bool(model.ir_version and model.graph.node)


def read(source: OnnxSource, notes: list[str] | None = None) -> ModelProto:
    """Read a float model, and reduce it to standard operators; its tensors keep their names.

    Functions in the file are inlined, float16 and bfloat16 become float32 (see `to_float32`), QONNX's BipolarQuant is
    written as Less, Where and Mul and its Quant as rounding and clipping, what onnxruntime's optimiser fused or stored
    in blocks is written out, and initializers that are also listed as inputs (as before IR version 4) are constants.

    Args:
        source: a file, or a model, which is not changed.
        notes: gets what the user should know about it, one line each.

    Raises:
        InputError: no such file, not ONNX, not a float model, exported in training mode, an unknown operator, or
            an input that holds no numbers.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        model = _load(Path(source))
    else:
        name = "the model"
        model = ModelProto()
        model.CopyFrom(source if isinstance(source, ModelProto) else ir.to_proto(source))
    if any(node.domain == DOMAIN for node in model.graph.node):
        raise InputError(f"{name}: has operators of the domain {DOMAIN}: it is converted already")
    for graph in (model.graph, *(a.g for node in all_nodes(model.graph) for a in node.attribute if a.g.node)):
        graph.name = graph.name or "graph"  # onnx demands one, onnxruntime does not
    name_early_norms(model)
    require_tensors(model, name)
    model = inliner.inline_local_functions(model) if model.functions else model
    expand_bipolar_quant(model)
    expand_quant(model, name)
    found = expand_blocked(model, name)
    expand_optimised(model, name)
    require_known_operators(model, name)
    require_inference(model, name)
    require_sound_parameters(model, name)
    found = (*found, *to_float32(model))
    if notes is not None:
        notes.extend(found)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    # A newer format than the converted model's would keep the float one out of the runtimes that load that.
    model.ir_version = min(max(model.ir_version, MIN_IR_VERSION), IR_VERSION)
    if not inputs or not model.graph.output:
        raise InputError(f"{name}: it has {len(inputs)} inputs and {len(model.graph.output)} outputs; it needs both")
    for value in inputs:
        kind = value.type.tensor_type.elem_type
        if kind not in _NUMBERS:
            text = TensorProto.DataType.Name(kind) if kind else "no tensor"
            raise InputError(
                f"{name}: its input '{value.name}' is {text}; convert takes float32, integers and booleans"
            )
    return model


_NUMBERS = (
    *(TensorProto.FLOAT, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)
"""The types that an input may have."""


def upgrade(model: ModelProto, name: str, sample: SampleShape | None = None) -> tuple[ModelProto, Examples]:
    """Convert a model of another opset to that of the passes, set its inputs' shapes, and infer all other shapes.

    Args:
        model: the result of `read`.
        name: the model's name in errors.
        sample: the shape of one sample, for inputs whose shape is symbolic; None if only their batch is, see
            `settle_sizes`.

    Returns:
        The model, and shapes of its inputs at which it runs.

    Raises:
        InputError: onnx cannot convert the model or infer its shapes, or see `settle_sizes`.
    """
    model = set_opset(model, name)
    examples = settle_sizes(model, name, sample)
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True), examples
    except Exception as error:  # onnx's own exception types
        raise InputError(f"{name}: the shapes of its tensors do not fit: {one_line(error)}") from error


def _load(path: Path) -> ModelProto:
    require_file(path)
    try:
        model = onnx.load(path, format="protobuf")
    except onnx.checker.ValidationError as error:  # about the external data files
        raise InputError(
            f"{path}: its external data cannot be read ({one_line(error, 160)}); keep them beside it, or save the "
            "model as one file"
        ) from error
    except Exception as error:
        what = other_kind(path) or f"not a valid ONNX file, or a truncated one ({one_line(error, 160)})"
        raise InputError(f"{path}: {what}") from error
    if not model.graph.node:
        raise InputError(f"{path}: not a valid ONNX file, or a truncated one (it has no nodes)")
    require_texts(model, path)
    return model
