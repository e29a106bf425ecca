"""The models of `bnn_deploy.runtime.bound`, which come with the package because a board cannot make them.

    PYTHONPATH=tests python -m support.bound_models    # writes them

Their weights are one row, which onnxruntime repeats when it loads the model, so that the files stay small.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

import bnn_deploy
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.runtime import bound

FOLDER = Path(bnn_deploy.__file__).parent / "_lib"

OUTPUTS, KERNEL = 64, 5


def binary() -> onnx.ModelProto:
    """BinaryConvThreshold: bits to bits."""
    _, _, size, words = bound.BINARY_INPUT
    rng = np.random.default_rng(0)
    constants = {
        "row": rng.integers(0, 2**32, (1, KERNEL, KERNEL, words), np.uint32),
        "shape": np.array([OUTPUTS, KERNEL, KERNEL, words], np.int64),
        "threshold": np.zeros(OUTPUTS, np.int32),
        "pad_value": np.zeros(1, np.float32),
    }
    conv = helper.make_node(
        "BinaryConvThreshold",
        ["x", "w", "threshold", "pad_value"],
        ["y"],
        name="conv",
        domain=DOMAIN,
        channels=32 * words,
        kernel_shape=[KERNEL, KERNEL],
        strides=[1, 1],
        pads=[0] * 4,
        dilations=[1, 1],
        group=1,
    )
    made = size - KERNEL + 1
    macs = made**2 * OUTPUTS * KERNEL**2 * 32 * words
    return model(
        conv,
        constants,
        (TensorProto.UINT32, ["N", size, size, words]),
        (TensorProto.UINT32, ["N", made, made, OUTPUTS // 32]),
        macs,
    )


def floats() -> onnx.ModelProto:
    """MatMul of float32."""
    _, channels = bound.FLOAT_INPUT
    constants = {
        "row": np.random.default_rng(0).standard_normal((1, channels)).astype(np.float32),
        "shape": np.array([channels, channels], np.int64),
    }
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")
    return model(
        matmul, constants, (TensorProto.FLOAT, ["N", channels]), (TensorProto.FLOAT, ["N", channels]), channels**2
    )


def model(
    layer: NodeProto,
    constants: dict[str, NDArray[np.generic]],
    given: tuple[int, list[str | int]],
    made: tuple[int, list[str | int]],
    macs: int,
) -> onnx.ModelProto:
    expand = helper.make_node("Expand", ["row", "shape"], ["w"], name="repeat")
    graph = helper.make_graph(
        [expand, layer],
        "bound",
        [helper.make_tensor_value_info("x", *given)],
        [helper.make_tensor_value_info("y", *made)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    result = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="bnn-deploy")
    result.metadata_props.add(key="macs_per_sample", value=str(macs))
    return result


MODELS = {bound.BINARY_MODEL: binary, bound.FLOAT_MODEL: floats}
"""File name -> the function that makes it."""

if __name__ == "__main__":
    for name, make in MODELS.items():
        (FOLDER / name).write_bytes(make().SerializeToString())
