"""Read a model's graph: layers, shapes, bits, multiply-accumulates (MACs) and bytes. Needs the onnx package."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bnn_deploy.errors import InputError, SetupError, reading
from bnn_deploy.file_kind import not_onnx
from bnn_deploy.files import model_bytes, model_sha256, require_file, require_texts, require_utf8
from bnn_deploy.installation import install_command
from bnn_deploy.json_form import JsonDocument
from bnn_deploy.operators.contract import DOMAIN, FLOAT, Operator, operator_of, standard_macs
from bnn_deploy.operators.shapes import Call, Made, Shape
from bnn_deploy.provenance import PART_OF, SOURCE, properties, read_shapes

try:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import NodeProto, shape_inference

except ImportError as missing:
    raise SetupError(f"inspecting a model needs the onnx package: run {install_command('convert')}") from missing

MOST_SHAPE_BYTES = 1 << 16
"""Bytes of a constant from which shapes are computed, at most."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of the model; shape None if even the rank is unknown."""

    name: str
    dtype: str | None
    shape: Shape | None


@dataclass(frozen=True)
class Layer:
    """One node of the model's main graph (Constant nodes are counted with the nodes that read them).

    Attributes:
        name: the node's name, or its first output's name if it has none.
        op_type: the operator.
        domain: the operator's domain; "" is standard ONNX.
        output: the first output, with its stored shape: for bits uint32 [N, spatial..., ceil(C/32)].
        output_bits: the number of channels C of a bit tensor; None for any other output. Levels of k bits have k planes
            of C bits.
        kernel_shape: attribute of a convolution or pooling; None if the node does not set it.
        strides: likewise.
        pads: likewise; begins, then ends.
        dilations: likewise.
        group: likewise.
        pool_shape: the kernel of the max pool behind a DirectConv or DirectConvThreshold; None for other operators.
        pool_strides: likewise.
        pool_pads: likewise; begins, then ends.
        binary_macs: products of bits per sample: k products for a level of k bits times ±1. None if a shape that they
            depend on is unknown. Where sizes are open, those that the converter noted are meant.
        float_macs: float multiply-accumulates per sample, of Conv, ConvTranspose, Gemm and MatMul, and of bnn_deploy's
            float layers; None as above.
        constant_bytes: bytes of the constant inputs: weights, thresholds, scales, shapes.
        quantized: whether its constants are stored in 8 bits; constant_bytes then counts the 8-bit values and scales.
        binary_weights: whether its weights are stored in one bit each (UnpackWeights), as constant_bytes counts them.
        source: the tensor of the float graph that the output stands for, as the converter noted it.
        part_of: the name of the layer that it computes a further part of, as the converter noted it.
        reads: the names of the tensors that it reads, without constants.
        writes: the names of all its outputs.
        writes_bits: those of them that hold bits.
    """

    name: str
    op_type: str
    domain: str
    output: Tensor
    output_bits: int | None
    kernel_shape: tuple[int, ...] | None
    strides: tuple[int, ...] | None
    pads: tuple[int, ...] | None
    dilations: tuple[int, ...] | None
    group: int | None
    pool_shape: tuple[int, ...] | None
    pool_strides: tuple[int, ...] | None
    pool_pads: tuple[int, ...] | None
    binary_macs: int | None
    float_macs: int | None
    constant_bytes: int
    quantized: bool
    binary_weights: bool
    source: str | None
    part_of: str | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    writes_bits: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """Whether it is one of the operators of bnn_deploy."""
        return self.domain == DOMAIN


@dataclass(frozen=True)
class ModelReport(JsonDocument):
    """The result of `inspect_model`.

    Attributes:
        path: the file, as it was given.
        file_bytes: size of the .onnx file and of the external data files that it names.
        constant_bytes: bytes of all constants of the main graph, each counted once.
        binary_constant_bytes: bytes of the constants that the operators of bnn_deploy read, but for its float layers.
        function_bytes: bytes of the ONNX functions that the file carries.
        functions: the names of these functions, "domain::name".
        ir_version: version of the file format.
        opsets: domain -> version; "" is standard ONNX.
        producer: name and version of the program that wrote the file.
        metadata: the model's metadata properties.
        inputs: the graph's inputs, without initializers.
        outputs: the graph's outputs.
        layers: the nodes, in the order of the file.
        sha256: of these files, see `files.model_sha256`.
    """

    JSON_FORMAT = "inspection"
    JSON_PROPERTIES: ClassVar = ("binary_macs", "float_macs", "uncounted")

    path: str
    file_bytes: int
    constant_bytes: int
    binary_constant_bytes: int
    function_bytes: int
    functions: tuple[str, ...]
    ir_version: int
    opsets: dict[str, int]
    producer: str
    metadata: dict[str, str]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    sha256: str

    @property
    def binary_macs(self) -> int:
        """Binary MACs per sample, of the layers where they are known."""
        return sum(layer.binary_macs or 0 for layer in self.layers)

    @property
    def float_macs(self) -> int:
        """Float MACs per sample, of the layers where they are known."""
        return sum(layer.float_macs or 0 for layer in self.layers)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Names of the layers whose MACs are not known."""
        return tuple(layer.name for layer in self.layers if layer.binary_macs is None or layer.float_macs is None)


def inspect_model(path: str | os.PathLike[str], content: bytes | None = None) -> ModelReport:
    """Read an .onnx file, converted or not.

    Args:
        path: the file.
        content: what it will hold, of a model that is not written yet; None reads it.

    Returns:
        The content of the file, without the nodes inside the branches of If, Loop and Scan.

    Raises:
        InputError: it is missing, truncated, or not a valid ONNX model.
    """
    with reading(path, "not a valid ONNX model, or a damaged one"):
        return _report(Path(path), _load(Path(path), content), content)


def _report(path: Path, model: onnx.ModelProto, content: bytes | None) -> ModelReport:
    graph = model.graph
    constants = _constant_bytes(graph)
    for weight in graph.initializer:  # the inference of shapes, which copies all several times, reads small ones alone
        if constants[weight.name] > MOST_SHAPE_BYTES:
            weight.ClearField("raw_data")
    shapes, dtypes, bit_channels = _infer(path, model)

    def tensor(name: str) -> Tensor:
        return Tensor(name, dtypes.get(name), shapes.get(name))

    binary_inputs = {
        name
        for node in graph.node
        if (row := operator_of(node)) is not None and row.status != FLOAT
        for name in node.input
    }
    layers = []
    packed = {node.output[0] for node in graph.node if (row := operator_of(node)) and row.weights_status}
    stored = {
        node.output[0]: sum(constants[name] for name in node.input)
        for node in graph.node
        if (node.op_type == "DequantizeLinear" or node.output[0] in packed) and all(n in constants for n in node.input)
    }
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in packed:
            packed.add(node.output[0])
            stored[node.output[0]] = stored[node.input[0]]
    sized = _at_example_sizes(model)
    known = shapes if sized is None else _infer(path, sized)[0]
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            continue
        binary_macs, float_macs = _macs(path, node, known, bit_channels)
        layers.append(
            Layer(
                name=_node_name(node),
                op_type=node.op_type,
                domain=node.domain,
                output=tensor(node.output[0]),
                output_bits=bit_channels.get(node.output[0]),
                kernel_shape=_ints(node, "kernel_shape"),
                strides=_ints(node, "strides"),
                pads=_ints(node, "pads"),
                dilations=_ints(node, "dilations"),
                group=_int(node, "group"),
                pool_shape=_ints(node, "pool_shape"),
                pool_strides=_ints(node, "pool_strides"),
                pool_pads=_ints(node, "pool_pads"),
                binary_macs=binary_macs,
                float_macs=float_macs,
                constant_bytes=sum(constants.get(name, 0) + stored.get(name, 0) for name in set(node.input)),
                quantized=any(name in stored and name not in packed for name in node.input),
                binary_weights=any(name in packed for name in node.input),
                source=properties(node).get(SOURCE),
                part_of=properties(node).get(PART_OF),
                reads=tuple(dict.fromkeys(name for name in node.input if name and name not in constants)),
                writes=tuple(name for name in node.output if name),
                writes_bits=tuple(name for name in node.output if name in bit_channels),
            )
        )
    return ModelReport(
        path=str(path),
        file_bytes=model_bytes(path) if content is None else len(content),
        constant_bytes=sum(constants.values()),
        binary_constant_bytes=sum(constants.get(name, 0) for name in binary_inputs),
        function_bytes=sum(function.ByteSize() for function in model.functions),
        functions=tuple(f"{function.domain}::{function.name}" for function in model.functions),
        ir_version=model.ir_version,
        opsets={opset.domain: opset.version for opset in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        metadata=properties(model),
        inputs=tuple(tensor(value.name) for value in graph.input if value.name not in constants),
        outputs=tuple(tensor(value.name) for value in graph.output),
        layers=tuple(layers),
        sha256=model_sha256(path) if content is None else hashlib.sha256(content).hexdigest(),
    )


def _load(path: Path, content: bytes | None) -> onnx.ModelProto:
    """Read the file, or its content, without its external data, and check it."""
    if content is None:
        require_file(path)
        require_utf8(path)
    try:
        if content is None:
            model = onnx.load(path, format="protobuf", load_external_data=False)
            onnx.checker.check_model(path)
        else:
            model = onnx.load_model_from_string(content)
            onnx.checker.check_model(content)
    except DecodeError as error:
        what = not_onnx(path) if content is None else None
        raise InputError(f"{path}: {what or 'not an ONNX file, or a truncated one'}") from error
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a valid ONNX model: {str(error).strip().splitlines()[0]}") from error
    require_texts(model, path)
    return model


def _constant_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Name -> bytes, of the initializers and of the outputs of Constant nodes."""
    sizes = {tensor.name: _tensor_bytes(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            value = onnx.helper.get_attribute_value(node.attribute[0])
            sizes[node.output[0]] = (
                _tensor_bytes(value) if isinstance(value, onnx.TensorProto) else np.asarray(value).nbytes
            )
    return sizes


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    elements: int = math.prod(tensor.dims)
    return elements * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _dtype_name(data_type: int) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def _infer(path: Path, model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, str], dict[str, int]]:
    """Shapes and data types of all tensors of the main graph, and the channels that each bit tensor holds.

    ONNX's shape inference gives up on the shape arithmetic in the bodies of our functions. So it runs without them,
    and this function computes our operators' shapes. After `_walk`, the two alternate, because each needs the other's
    results, until there is no new shape.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    foreign = [function for function in model.functions if function.domain != DOMAIN]
    del work.functions[:]
    work.functions.extend(foreign)
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    outputs = {name for node in ours for name in node.output}
    stated = [value for value in model.graph.value_info if value.name not in outputs]
    del work.graph.value_info[:]
    work.graph.value_info.extend(stated)

    found, channels = _walk(path, work)
    while True:
        shapes, dtypes = _standard_inference(work)
        shapes |= found
        new: dict[str, Shape] = {}
        for node in ours:
            if node.output[0] not in found:
                new |= _ours(path, work, node, shapes, channels)
        if not new:
            return shapes, dtypes, channels
        found |= new


def _walk(path: Path, work: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """The shapes and channels of our operators' outputs that one walk finds, in the order of the file.

    Only the standard nodes since the last of our operators are inferred before the next one: the work is linear. It
    finds all but those that depend on sizes which nodes before and behind one of ours compute together.
    """
    graph = work.graph
    stated = {value.name: value for value in (*graph.input, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes: dict[str, Shape] = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    shapes |= {name: shape for name, value in stated.items() if (shape := _shape(value)) is not None}
    channels: dict[str, int] = {}
    found: dict[str, Shape] = {}
    between = onnx.ModelProto(ir_version=work.ir_version, opset_import=work.opset_import, functions=work.functions)
    for node in list(graph.node):
        if node.domain != DOMAIN:
            between.graph.node.append(node)
            continue
        if between.graph.node and any(name and name not in shapes for name in node.input):
            read = dict.fromkeys(name for other in between.graph.node for name in other.input)
            between.graph.input.extend(stated[name] for name in read if name in stated)
            between.graph.initializer.extend(constants[name] for name in read if name in constants)
            for value in shape_inference.infer_shapes(between, data_prop=True).graph.value_info:
                stated[value.name] = value
                if (shape := _shape(value)) is not None:
                    shapes[value.name] = shape
            between.ClearField("graph")
        before = len(graph.value_info)
        found |= _ours(path, work, node, shapes, channels)
        stated |= {value.name: value for value in graph.value_info[before:]}
    return found, channels


def _ours(
    path: Path, work: onnx.ModelProto, node: NodeProto, shapes: dict[str, Shape], channels: dict[str, int]
) -> dict[str, Shape]:
    """The shapes of one of our operators' outputs as far as they are known, noted in all the other arguments, too."""
    row = operator_of(node)
    new: dict[str, Shape] = {}
    if row is None:
        return new
    for output, made, name in zip(row.outputs, _made(path, node, row, shapes, channels), node.output, strict=False):
        if not name:
            continue
        shapes[name] = new[name] = made.shape
        if made.channels is not None:
            channels[name] = made.channels
        dtype = onnx.TensorProto.FLOAT if output.content == "floats" else onnx.TensorProto.UINT32
        work.graph.value_info.append(onnx.helper.make_tensor_value_info(name, dtype, made.shape))
    return new


def _at_example_sizes(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy with the sizes that the converter noted in place of open ones, to count MACs; None if none are open."""
    examples = read_shapes(properties(model), [value.name for value in model.graph.input])
    sizes = [dim for value in model.graph.input for dim in value.type.tensor_type.shape.dim[1:]]
    if not examples or all(dim.HasField("dim_value") for dim in sizes):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim[1:], examples.get(value.name, ()), strict=False):
            dim.dim_value = size
    del copy.graph.value_info[:]
    return copy


def _standard_inference(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, str]]:
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            dtypes[value.name] = _dtype_name(tensor.elem_type)
        if (shape := _shape(value)) is not None:
            shapes[value.name] = shape
    for initializer in graph.initializer:
        shapes[initializer.name] = tuple(initializer.dims)
        dtypes[initializer.name] = _dtype_name(initializer.data_type)
    return shapes, dtypes


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)


def _call(path: Path, node: NodeProto, row: Operator, shapes: dict[str, Shape], channels: dict[str, int]) -> Call:
    attributes = {name: _required(path, node, name) for name in row.attributes}
    return Call(attributes, [shapes.get(name) for name in node.input], channels.get(node.input[0]))


def _made(
    path: Path, node: NodeProto, row: Operator, shapes: dict[str, Shape], channels: dict[str, int]
) -> tuple[Made, ...]:
    """The outputs of one of our operators, as far as they are known."""
    if node.input[0] not in shapes:
        return ()
    try:
        return row.shapes(_call(path, node, row, shapes, channels)) or ()
    except ValueError as error:
        raise InputError(f"{path}: node {_node_name(node)}: {error}") from error


def _macs(
    path: Path, node: NodeProto, shapes: dict[str, Shape], channels: dict[str, int]
) -> tuple[int | None, int | None]:
    """Binary and float MACs of a node per sample (dimension 0 is the batch); None where a shape is unknown."""
    row = operator_of(node)
    if row is not None:
        made = _made(path, node, row, shapes, channels)
        count = row.macs(_call(path, node, row, shapes, channels), made[0]) if made else None
        return (0, count) if row.status == FLOAT else (count, 0)
    if node.domain not in ("", "ai.onnx"):
        return 0, 0
    data, weights, output = (shapes.get(name) for name in (*(*node.input, "", "")[:2], node.output[0]))
    return 0, standard_macs(node.op_type, data, weights, output)


def _ints(node: NodeProto, name: str) -> tuple[int, ...] | None:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == name), None)


def _int(node: NodeProto, name: str) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), None)


def _required(path: Path, node: NodeProto, name: str) -> tuple[int, ...]:
    """A required attribute of our operators; an INT becomes a tuple of one value."""
    for attribute in node.attribute:
        if attribute.name == name:
            return (attribute.i,) if attribute.type == onnx.AttributeProto.INT else tuple(attribute.ints)
    raise InputError(
        f"{path}: node {_node_name(node)} ({node.op_type}) has no attribute {name}: convert the model again"
    )


def _node_name(node: NodeProto) -> str:
    return node.name or node.output[0]
