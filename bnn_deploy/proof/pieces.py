"""Pieces of a converted model as models of their own."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from bnn_deploy.errors import InputError, reading
from bnn_deploy.file_kind import not_onnx
from bnn_deploy.files import require_file, require_texts
from bnn_deploy.operators.contract import DOMAIN, VERSION, is_layer, operator_of
from bnn_deploy.preprocessing import read_preprocessing
from bnn_deploy.proof.cuts import Cut, cuts
from bnn_deploy.provenance import PART_OF, SOURCE, properties, read_shapes
from bnn_deploy.runtime.inputs import InputSpec
from bnn_deploy.source.opset import inner_nodes


@dataclass(frozen=True)
class Segment:
    """The subgraph of the converted model between cuts.

    Attributes:
        name: the names of its layers, or else the source of its output, for reports.
        nodes: the names of its nodes, in order.
        inputs: the tensors that it reads: cuts, or inputs of the model.
        output: the cut that it computes.
        quantized: whether a layer in it has 8-bit weights and activations.
        model: the segment as a model of its own.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    output: Cut
    quantized: bool
    model: ModelProto


def load_model(path: str | os.PathLike[str]) -> ModelProto:
    """Read and check an ONNX file.

    Raises:
        InputError: no such file, truncated, or not ONNX.
    """
    path = Path(path)
    require_file(path)
    with reading(path, "not a valid ONNX file, or a truncated one"):
        try:
            model = onnx.load(path)
        except Exception as error:
            if what := not_onnx(path):
                raise InputError(f"{path}: {what}") from error
            raise
        onnx.checker.check_model(model)
        require_texts(model, path)
    return model


def require_converted(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Check that `model` was made by `bnn-deploy convert`.

    Raises:
        InputError: it has no binary operators, another version of them, or lost the names of the float graph.
    """
    if not any(node.domain == DOMAIN for node in model.graph.node):
        raise InputError(
            f"{path}: an ONNX file, but not one that bnn-deploy converted: it has no operator of the domain {DOMAIN}"
        )
    versions = [opset.version for opset in model.opset_import if opset.domain == DOMAIN]
    if versions != [VERSION]:
        raise InputError(
            f"{path}: uses version {versions} of the domain {DOMAIN}; this bnn-deploy knows version {VERSION}"
        )
    if not any(SOURCE in properties(node) for node in model.graph.node):
        raise InputError(
            f"{path}: its nodes do not say which float tensors they stand for ({SOURCE}); convert the model again"
        )


def model_inputs(model: ModelProto) -> list[InputSpec]:
    """The inputs of a model, as `load_data` wants them."""
    found = []
    metadata = properties(model)
    examples, steps = read_shapes(metadata, [value.name for value in model.graph.input]), read_preprocessing(metadata)
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        found.append(InputSpec(value.name, dtype, tuple(shape), examples.get(value.name, ()), steps))
    return found


def split(model: ModelProto, names: Collection[str] = ()) -> list[Segment]:
    """Cut `model` at its `cuts` into segments, in the order of the graph.

    Every node that reaches an output is in at least one segment.
    """
    by_tensor = {cut.tensor: cut for cut in cuts(model, names)}
    producers = {output: node for node in model.graph.node for output in node.output}
    position = {id(node): i for i, node in enumerate(model.graph.node)}
    graph_inputs = {info.name: info for info in model.graph.input}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    segments = []
    for cut in by_tensor.values():
        nodes: dict[int, NodeProto] = {}
        inputs: dict[str, None] = {}
        pending = [cut.tensor]
        while pending:
            tensor = pending.pop()
            if tensor != cut.tensor and (tensor in by_tensor or tensor in graph_inputs):
                inputs[tensor] = None
            elif tensor and tensor in producers:
                node = producers[tensor]
                if position[id(node)] not in nodes:
                    nodes[position[id(node)]] = node
                    pending += reads(node)
        ordered = [nodes[i] for i in sorted(nodes)]
        layers = [n.name for n in ordered if is_layer(n) and PART_OF not in properties(n)]
        infos = [graph_inputs[name] if name in graph_inputs else _declaration(by_tensor[name]) for name in inputs]
        segments.append(
            Segment(
                " + ".join(layers) or cut.source,
                tuple(n.name for n in ordered),
                tuple(inputs),
                cut,
                any(n.op_type == "QuantizeLinear" for n in ordered),
                piece(model, ordered, infos, [cut.tensor], initializers),
            )
        )
    return segments


def side_by_side(model: ModelProto, segments: Sequence[Segment], cuts: Mapping[str, Cut]) -> ModelProto:
    """Some segments of a model, of which these are all cuts, as one model.

    It reads what they read, cuts too, and its outputs are theirs, in their order, by other names.
    """
    graph_inputs = {info.name: info for info in model.graph.input}
    read = dict.fromkeys(name for segment in segments for name in segment.inputs)
    infos = [graph_inputs[name] if name in graph_inputs else _declaration(cuts[name]) for name in read]
    taken = {name for node in model.graph.node for name in node.output}
    suffix = "_made"
    while not taken.isdisjoint(name + suffix for name in cuts):
        suffix += "_"
    used = {name for segment in segments for node in segment.model.graph.node for name in node.output if name}
    nodes = []
    for node in model.graph.node:
        if not used.isdisjoint(node.output):
            nodes.append(NodeProto())
            nodes[-1].CopyFrom(node)
            nodes[-1].output[:] = [name + suffix if name in cuts else name for name in node.output]
    return piece(model, nodes, infos, [segment.output.tensor + suffix for segment in segments])


def unknown_source(segments: Sequence[Segment], outputs: Collection[str], names: Collection[str]) -> Segment | None:
    """The first segment whose output stands for a tensor that a reference with these names of tensors does not have.

    Of the model's `outputs` those with floats or integers are found by their order: the reference may name them
    otherwise.
    """
    for segment in segments:
        cut = segment.output
        if cut.source not in names and (cut.is_bits or cut.source not in outputs):
            return segment
    return None


def tensors_of_samples(model: ModelProto) -> set[str]:
    """The tensors whose first dimension is declared to be the open batch of the first input: a row for each sample."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    first = {value.name: value.type.tensor_type.shape.dim[:1] for value in values}
    batches = {name: dims[0].dim_param for name, dims in first.items() if dims and dims[0].dim_param}
    own = batches.get(model.graph.input[0].name)
    return {name for name, batch in batches.items() if batch == own}


def operator_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes of the domain bnn_deploy."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def has_kernels(model: ModelProto) -> bool:
    """Whether the C++ library has a kernel for an operator of `model`; False for a model with binary weights only."""
    return any(row.has_kernel for node in operator_nodes(model) if (row := operator_of(node)) is not None)


def single_node(model: ModelProto, node: NodeProto, output: int, inputs: dict[str, NDArray[Any]]) -> ModelProto:
    """A model of one operator node alone, with one of its outputs, for inputs of the given dtypes and ranks."""
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for name, array in inputs.items()
    ]
    return piece(model, [node], infos, [node.output[output]])


def add_body(model: ModelProto, operator: str) -> None:
    """Make a model carry the function body of an operator of the domain bnn_deploy, if it does not."""
    if any(function.domain == DOMAIN and function.name == operator for function in model.functions):
        return
    import onnx_ir

    from bnn_deploy.operators.bodies import functions

    model.functions.extend(onnx_ir.to_proto(function) for function in functions([operator]))


def reads(node: NodeProto) -> list[str]:
    """The tensors that a node reads, and all that the nodes in its branches or its loop read, their own too."""
    return [*node.input, *(name for inner in inner_nodes(node) for name in inner.input)]


def data_inputs(model: ModelProto, node: NodeProto) -> list[str]:
    """The inputs of `node` that are not constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [name for name in node.input if name and name not in constants]


def _declaration(cut: Cut) -> ValueInfoProto:
    """The declaration of a cut as an input of a piece."""
    shape = None if cut.rank is None else [None] * cut.rank
    info: ValueInfoProto = helper.make_tensor_value_info(cut.tensor, cut.dtype, shape)
    return info


def piece(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[str],
    constants: Mapping[str, TensorProto] | None = None,
) -> ModelProto:
    """A model of some nodes of `model`, with the constants that they use and all of its functions.

    Its outputs have no type: onnxruntime infers it.

    Args:
        model: the whole.
        nodes: those.
        inputs: what they read and do not make.
        outputs: the names of what is wanted of what they make.
        constants: the constants of `model` by name, for who makes many pieces of it; None to look for them.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer} if constants is None else constants
    used = dict.fromkeys(name for node in nodes for name in reads(node))
    graph = helper.make_graph(
        list(nodes),
        "piece",
        list(inputs),
        [ValueInfoProto(name=name) for name in outputs],
        [constants[name] for name in used if name in constants],
    )
    return helper.make_model(
        graph, opset_imports=list(model.opset_import), functions=list(model.functions), ir_version=model.ir_version
    )


def with_outputs(model: ModelProto, tensors: Sequence[str]) -> bytes:
    """A model like `model`, serialised, whose outputs are the named tensors; onnxruntime infers their types."""
    own = GraphProto(output=model.graph.output)
    try:
        # Not in a copy, which would take as much memory again.
        del model.graph.output[:]
        model.graph.output.extend(ValueInfoProto(name=tensor) for tensor in tensors)
        content: bytes = model.SerializeToString()
        return content
    finally:
        del model.graph.output[:]
        model.graph.output.extend(own.output)
