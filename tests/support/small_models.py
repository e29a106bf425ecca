"""Small ONNX models for the tests of profiling, inspection and the command line, built by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bnn_deploy.operators import bits, bodies
from bnn_deploy.operators.contract import DOMAIN, OPSET

CONV = {"channels": 20, "kernel_shape": [5, 5], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
POOL = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0}


def random_bits(*shape: int) -> NDArray[np.uint32]:
    """Weights [O, kernel..., C] as bits [O, kernel..., ceil(C/32)]."""
    return bits.pack_bits(np.random.default_rng(1).standard_normal(shape) > 0)


def binary_node(op_type: str, inputs: Sequence[str], output: str, name: str, **attributes: object) -> NodeProto:
    node = helper.make_node(op_type, inputs, [output], name=name, domain=DOMAIN, **attributes)
    node.metadata_props.add(key="bnn_deploy.source", value=f"float_{output}")
    return node


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    constants: dict[str, NDArray[np.generic]],
    shape: Sequence[int | str | None],
    output: tuple[str, int, Sequence[int | str | None]],
    functions: bool = True,
) -> Path:
    """Write a model with the input x float32 `shape`."""
    used = [node.op_type for node in nodes]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(*output)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=[ir.to_proto(function) for function in bodies.functions(used)] if functions else [],
        ir_version=10,
        producer_name="tests",
        producer_version="1",
    )
    onnx.save(model, path)
    return path


def save_binary(path: Path, batch: int | str | None = "N", **conv: object) -> Path:
    """LeNet-5's shape: Conv, MaxPool, Binarize, BinaryConvThreshold, BinaryMaxPool, BinaryConv, Flatten, Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1"),
        helper.make_node("MaxPool", ["c1"], ["p1"], name="pool1", kernel_shape=[2, 2], strides=[2, 2]),
        binary_node("Binarize", ["p1", "t1"], "b1", "sign1"),
        binary_node("BinaryConvThreshold", ["b1", "w2", "t2", "zero"], "b2", "conv2", **(CONV | conv)),
        binary_node("BinaryMaxPool", ["b2"], "b3", "pool2", **POOL),
        binary_node("BinaryConv", ["b3", "w3", "s3", "s3", "zero"], "y3", "ip1", **(CONV | IP1)),
        helper.make_node("Flatten", ["y3"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w4"], ["y"], name="ip2", transB=1),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((20, 1, 5, 5)).astype(np.float32),
        "t1": np.zeros(20, np.float32),
        "w2": random_bits(50, 5, 5, 20),
        "t2": np.zeros(50, np.int32),
        "w3": random_bits(500, 4, 4, 50),
        "s3": np.ones(500, np.float32),
        "w4": rng.standard_normal((10, 500)).astype(np.float32),
        "zero": np.zeros(1, np.float32),
    }
    return save(path, nodes, constants, [batch, 1, 28, 28], ("y", TensorProto.FLOAT, [batch, 10]))


IP1 = {"channels": 50, "kernel_shape": [4, 4]}


def save_float(path: Path, batch: int | str | None = "N", channels: int = 1, hidden: int = 20) -> Path:
    """Conv, Relu, Flatten, MatMul; nothing binary."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Flatten", ["r1"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w2"], ["y"], name="fc"),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((hidden, channels, 5, 5)).astype(np.float32),
        "w2": rng.standard_normal((hidden * 24 * 24, 10)).astype(np.float32),
    }
    return save(path, nodes, constants, [batch, channels, 28, 28], ("y", TensorProto.FLOAT, [batch, 10]), False)
