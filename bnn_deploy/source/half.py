"""Computes an ONNX model of float16, bfloat16 or float64 in float32."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper

from bnn_deploy.operators.contract import FLOAT_LAYERS
from bnn_deploy.source.opset import all_nodes

_OTHER_FLOATS = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
"""The attributes of Cast, EyeLike, RandomNormal and others that are types."""


def to_float32(model: ModelProto) -> tuple[str, ...]:
    """Let a model whose inputs, outputs or layers are float16, bfloat16 or float64 compute in float32.

    Weights keep their values (those of float64 are rounded), and inputs and outputs are float32. Where only something
    between the layers is of another type, such as a cast through float16, it stays: its rounding is the network's.

    Args:
        model: changed in place.

    Returns:
        A note for each type that was replaced.
    """
    found = [kind for kind in _OTHER_FLOATS if kind in _layer_types(model)]
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            _widen(tensor, found)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in found:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in all_nodes(model.graph):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t, found)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in found:
                attribute.i = TensorProto.FLOAT
    return tuple(
        f"it computes in {_OTHER_FLOATS[kind]}; converted to float32, inputs and outputs included" for kind in found
    )


def _layer_types(model: ModelProto) -> set[int]:
    """The element types of inputs, outputs and the results of layers."""
    tensors = [tensor for graph in _graphs(model.graph) for tensor in graph.initializer]
    tensors += [attribute.t for node in all_nodes(model.graph) for attribute in node.attribute]
    ends = [*model.graph.input, *model.graph.output]
    stored = {tensor.data_type for tensor in tensors} | {value.type.tensor_type.elem_type for value in ends}
    if not stored & set(_OTHER_FLOATS):
        return set()  # and so no shape inference, which copies the model
    inferred = onnx.shape_inference.infer_shapes(model)
    values: dict[str, ValueInfoProto] = {value.name: value for value in inferred.graph.value_info}
    layers = [node.output[0] for node in model.graph.node if node.op_type in FLOAT_LAYERS]
    ends += [values[name] for name in layers if name in values]
    return {value.type.tensor_type.elem_type for value in ends}


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph, and those of the branches and bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _widen(tensor: TensorProto, kinds: Collection[int]) -> None:
    """Store a tensor of one of these types as float32."""
    if tensor.data_type in kinds:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
