"""A float ONNX model of any exporter, made ready for the passes, and for onnxruntime as the reference of `verify`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper, version_converter

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.operators import DOMAIN, OPSET
from bnn_deploy.qonnx_quant import expand_quant

QONNX = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")
"""The domains under which BipolarQuant and Quant are known."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

MIN_IR_VERSION = 8

OnnxSource = str | os.PathLike[str] | ModelProto | ir.Model


def is_onnx(source: object) -> bool:
    """Whether `source` is an ONNX model, or the path of one, and not a module or a checkpoint."""
    if isinstance(source, str | os.PathLike):
        return Path(source).suffix == ".onnx"
    return isinstance(source, ModelProto | ir.Model)


def read(source: OnnxSource) -> ModelProto:
    """Read a float model, with standard operators and one input only; its own tensors keep their names.

    Functions that the file brings are inlined, QONNX's BipolarQuant is written as Less, Where and Mul and its Quant as
    rounding and clipping, and initializers that are also listed as inputs (as before IR version 4) are constants.

    Args:
        source: a file, or a model, which is not changed.

    Raises:
        InputError: no such file, not ONNX, not a float model, exported in training mode, an unknown operator, or not
            one float32 input and one output.
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
    _require_tensors(model, name)
    model = inliner.inline_local_functions(model) if model.functions else model
    expand_bipolar_quant(model)
    expand_quant(model, QONNX, name)
    _require_known_operators(model, name)
    _require_inference(model, name)
    _require_sound_parameters(model, name)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)
    if len(inputs) != 1 or len(model.graph.output) != 1:
        names = ", ".join(value.name for value in (*inputs, *model.graph.output))
        raise InputError(
            f"{name}: it has {len(inputs)} inputs and {len(model.graph.output)} outputs ({names}); "
            "convert takes networks with one of each, and weights as initializers"
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise InputError(f"{name}: its input '{inputs[0].name}' is {kind}; convert takes float32")
    return model


def upgrade(model: ModelProto, name: str, sample: tuple[int, ...] | None = None) -> ModelProto:
    """Convert a model to the opset of the passes where it is older, set its input's shape, and infer all others.

    Args:
        model: as `read` gives it.
        name: of it, for errors.
        sample: one sample's shape, for an input with dimensions that are not numbers; None if there are none.

    Raises:
        InputError: onnx cannot convert it, the shape of its input is not known or not as given.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    if opset < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except Exception as error:  # whatever the C++ converter raises
            raise InputError(
                f"{name}: its opset is {opset}, and onnx cannot convert it to {OPSET} ({one_line(error, 120)}); "
                f"export it with opset {OPSET}"
            ) from error
    graph_input = model.graph.input[0]
    shape = graph_input.type.tensor_type.shape
    own = [dim.dim_value if dim.HasField("dim_value") else None for dim in shape.dim]
    if len(own) < 2:
        raise InputError(f"{name}: its input '{graph_input.name}' has {len(own)} dimensions; a batch has 2 or more")
    if sample is not None and (
        len(sample) != len(own) - 1 or any(a not in (None, b) for a, b in zip(own[1:], sample, strict=True))
    ):
        raise InputError(f"{name}: its input is {['N', *own[1:]]}, which --input-shape {list(sample)} does not fit")
    for dim, size in zip(shape.dim[1:], sample or (), strict=False):
        dim.dim_value = size
    if None in own[1:] and sample is None:
        raise InputError(
            f"{name}: its input '{graph_input.name}' has dimensions besides the batch that are not numbers "
            f"({', '.join(dim.dim_param or '?' for dim in shape.dim)}); give --input-shape"
        )
    if own[0] is None:
        shape.dim[0].dim_param = "batch"
        del model.graph.value_info[:]  # they may call it otherwise
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx's own exception types
        raise InputError(f"{name}: the shapes of its tensors do not fit: {one_line(error)}") from error


def _load(path: Path) -> ModelProto:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        model = onnx.load(path)
    except onnx.checker.ValidationError as error:  # of the files that the tensors are in
        raise InputError(
            f"{path}: its external data cannot be read ({one_line(error, 160)}); keep them beside it, or save the "
            "model as one file"
        ) from error
    except (DecodeError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a valid ONNX file, or a truncated one ({one_line(error, 160)})") from error
    if not model.graph.node:
        raise InputError(f"{path}: not a valid ONNX file, or a truncated one (it has no nodes)")
    return model


def _require_tensors(model: ModelProto, name: str) -> None:
    """Check that every tensor that is read is made, and that the model is valid in all else."""
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


def expand_bipolar_quant(model: ModelProto) -> None:
    """Replace BipolarQuant(x, scale) by scale * (-1 where x < 0, else 1), its definition in QONNX."""
    nodes: list[NodeProto] = []
    found = False
    for node in model.graph.node:
        if node.domain not in QONNX or node.op_type != "BipolarQuant":
            nodes.append(node)
            continue
        found = True
        (x, scale), (y,) = node.input, node.output
        nodes += [
            helper.make_node("Less", [x, "bipolar_quant_0"], [f"{y}_negative"], f"{y}_negative"),
            helper.make_node(
                "Where", [f"{y}_negative", "bipolar_quant_-1", "bipolar_quant_1"], [f"{y}_sign"], f"{y}_sign"
            ),
            helper.make_node("Mul", [f"{y}_sign", scale], [y], node.name),
        ]
    if found:
        for number in (0, 1, -1):
            model.graph.initializer.append(
                numpy_helper.from_array(np.array(number, np.float32), f"bipolar_quant_{number}")
            )
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _require_known_operators(model: ModelProto, name: str) -> None:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise InputError(
                f"{name}: {node.op_type} '{node.name or node.output[0]}' is of the domain {node.domain}, which has no "
                f"definition here (known: BipolarQuant and Quant of {QONNX[0]}); export with standard operators"
            )


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    """The initializers and the tensors of Constant nodes, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer} | {
        node.output[0]: attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def _require_sound_parameters(model: ModelProto, name: str) -> None:
    """Refuse parameters that make outputs NaN, and layers where no pass looks: in the branches of an If or Loop."""
    constants = _constants(model)
    for node in model.graph.node:
        label = f"{name}: {node.op_type} '{node.name or node.output[0]}'"
        for inner in (n for attribute in node.attribute for g in (attribute.g, *attribute.graphs) for n in g.node):
            if inner.op_type in LAYERS:
                raise InputError(
                    f"{label} has a {inner.op_type} '{inner.name or inner.output[0]}' in a branch or loop, where no "
                    "pass looks: export the network without control flow"
                )
        if node.op_type not in (*LAYERS, "BatchNormalization"):
            continue
        for tensor in (constants[parameter] for parameter in node.input[1:] if parameter in constants):
            array = numpy_helper.to_array(tensor)
            if not np.isfinite(array).all():
                raise InputError(
                    f"{label}: its parameter '{tensor.name}' holds NaN or infinity: the training diverged; export an "
                    "earlier checkpoint"
                )
        if node.op_type == "BatchNormalization" and node.input[4] in constants:
            variance = numpy_helper.to_array(constants[node.input[4]])
            if variance.size and variance.min() < 0:
                raise InputError(
                    f"{label}: the variance of channel {int(variance.argmin())} is {variance.min():g}; "
                    "it cannot be negative: the file is damaged, export it again"
                )


def _require_inference(model: ModelProto, name: str) -> None:
    """Refuse a model that was exported in training mode: it draws random numbers, and takes statistics of the batch."""
    constants = _constants(model)
    for node in model.graph.node:
        mode = constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        training = mode is not None and bool(numpy_helper.to_array(mode))
        if node.op_type == "BatchNormalization":
            training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if training:
            raise InputError(
                f"{name}: {node.op_type} '{node.name or node.output[0]}' is in training mode; "
                "call model.eval() and export again"
            )
