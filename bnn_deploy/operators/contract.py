"""The table of the operators of the ONNX domain `bnn_deploy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx import NodeProto

DOMAIN = "bnn_deploy"

VERSION = 1

OPSET = 20
"""The version of the standard operators that the bodies are written in."""

MAX_LEVEL_BITS = 4
"""Bits of a level at most."""

MAX_TERMS = 2**24
"""Products per output must be fewer than this: the bodies sum them in float32, which is exact up to there."""

CONV_ATTRIBUTES = {
    "channels": ir.AttributeType.INT,
    "kernel_shape": ir.AttributeType.INTS,
    "strides": ir.AttributeType.INTS,
    "pads": ir.AttributeType.INTS,
    "dilations": ir.AttributeType.INTS,
    "group": ir.AttributeType.INT,
}

POOL_ATTRIBUTES = {
    "kernel_shape": ir.AttributeType.INTS,
    "strides": ir.AttributeType.INTS,
    "pads": ir.AttributeType.INTS,
    "dilations": ir.AttributeType.INTS,
    "ceil_mode": ir.AttributeType.INT,
}

UNPACK_ATTRIBUTES = {"shape": ir.AttributeType.INTS}

WITHOUT_KERNEL = ("UnpackWeights",)
"""The operators that the C++ library has no kernel for: their body is all there is."""

BINARY = "binary"

WEIGHTS_ONLY = "binary weights only"

OPERATORS = {
    "BinaryConv": BINARY,
    "BinaryConvThreshold": BINARY,
    "BinaryConvResidual": BINARY,
    "BinaryConvScaled": BINARY,
    "BinaryConvLevels": "binary, {bits}-bit activations",
}
"""Operators of the domain bnn_deploy that are a layer, and the status that they give it, with its attributes."""

WEIGHT_OPERATORS: dict[str, str] = {
    "UnpackWeights": WEIGHTS_ONLY,
}
"""Operators of the domain bnn_deploy that make the weights of a standard layer, and the status that they give it."""

BITS = (
    "Binarize",
    "BinarizeAbsMean",
    "BinarizeChannelsLast",
    "BinarizeQuantized",
    "BinaryConvThreshold",
    "BinaryMaxPool",
    "QuantizeLevels",
)

LAYERS = (
    "BinaryConv",
    "BinaryConvThreshold",
    "BinaryConvResidual",
    "BinaryConvScaled",
    "BinaryConvLevels",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
)


def holds_bits(node: NodeProto, output: int) -> bool:
    """Whether output `output` of a node holds bits."""
    if node.domain != DOMAIN:
        return False
    return (output == 0 and node.op_type in BITS) or (output == 1 and node.op_type == "BinaryConvResidual")


def relative_tolerance(node: NodeProto, output: int, inputs: Mapping[str, NDArray[Any]]) -> float:
    """How far two implementations of an operator may be apart: 0 but for A of BinarizeAbsMean.

    A kernel is within min(C, C / 32 + 40) * 2^-24 of the exact mean, the function body rounds it once.
    """
    if node.op_type != "BinarizeAbsMean" or output == 0:
        return 0.0
    channels: int = inputs[node.input[0]].shape[1]
    return (min(channels, channels // 32 + 40) + 1) * 2.0**-24
