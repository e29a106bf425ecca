"""Signs whose argument is exactly 0 in the model where it is in the reference, so that rounding excuses no flip."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.provenance import PART_OF, properties

_MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

_SUMS = {"BinaryConv": 3, "BinaryConvResidual": 3, "BinaryLinear": 3, "BinaryMatMul": None}
"""Layers that give a multiple of an exact integer sum, and which input is the bias that they add."""


def signed_tensor(model: ModelProto, bits: str) -> str | None:
    """The tensor, moved at most, whose signs some bits are; None if they are made in another way."""
    producers = {output: node for node in model.graph.node for output in node.output}
    node = producers.get(bits)
    if node is not None and node.domain == DOMAIN and node.op_type == "BinaryConvResidual":
        return str(node.output[0])
    if node is None or node.domain != DOMAIN or node.op_type not in ("Binarize", "BinarizeChannelsLast"):
        return None
    tensor = str(node.input[0])
    while (node := producers.get(tensor)) is not None and node.op_type in _MOVES and node.domain == "":
        tensor = str(node.input[0])
    return tensor


def is_exact_sum(model: ModelProto, tensor: str) -> bool:
    """Whether a tensor is an input of the model, or the sum of a binary layer without a bias.

    A sum that is not 0 is at least 1, in units of alpha, which no rounding in the reference makes 0: where the
    reference's is exactly 0, so is the model's, if it got the same bits.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    constants = {constant.name: constant for constant in model.graph.initializer}
    node = producers.get(tensor)
    if node is None:
        return tensor in {info.name for info in model.graph.input}
    # Half of a layer of x >= 0 and half of one of x > 0: where they cancel out, they do so exactly.
    layers: list[NodeProto | None] = [node]
    if node.op_type == "Add" and node.domain == "":
        layers = [producers.get(name) for name in node.input]
    elif node.op_type == "BinaryConvResidual":
        layers = [node, producers.get(node.input[5])]
    found = [layer for layer in layers if layer is not None and _is_sum(layer, constants)]
    return len(found) == len(layers) and len({properties(layer).get(PART_OF, layer.name) for layer in found}) == 1


def _is_sum(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    if node.domain != DOMAIN or node.op_type not in _SUMS:
        return False
    bias = _SUMS[node.op_type]
    return bias is None or not numpy_helper.to_array(constants[node.input[bias]]).any()
