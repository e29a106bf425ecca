"""What onnxruntime learns from the library: shapes, and LibraryInfo."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from support.kernels import DOMAIN, ConvCase, library_info, make_model, make_session

# --- shapes and LibraryInfo -------------------------------------------------------------------


def test_shape_inference_keeps_the_symbolic_batch() -> None:
    case = ConvCase(40, 50, (3, 3), (8, 9), strides=(2, 1), pads=(1, 1, 1, 1))
    constants = {**case.constants(), "t": np.zeros(40, np.float32)}
    residual = ["bits", "W", "scale", "bias", "pad", "R", "float_threshold"]
    attributes = {
        "channels": 40,
        "kernel_shape": (3, 3),
        "strides": (2, 1),
        "pads": (1, 1, 1, 1),
        "dilations": (1, 1),
        "group": 1,
        "domain": DOMAIN,
    }
    pool = {
        "kernel_shape": (2, 2),
        "strides": (2, 2),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
        "ceil_mode": 0,
        "domain": DOMAIN,
    }
    nodes = [
        helper.make_node("Binarize", ["X", "t"], ["bits"], domain=DOMAIN),
        helper.make_node("BinaryConv", ["bits", "W", "scale", "bias", "pad"], ["Y"], **attributes),
        helper.make_node("BinaryConvThreshold", ["bits", "W", "threshold", "pad"], ["B"], **attributes),
        helper.make_node("BinaryMaxPool", ["B"], ["P"], **pool),
        helper.make_node("BinaryConvResidual", residual, ["RY", "RB"], **attributes),
        helper.make_node("BinaryConvResidual", residual, ["RY2"], **attributes),
        helper.make_node("BinaryConvResidual", residual, ["", "RB2"], **attributes),
    ]
    model = make_model(
        nodes,
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 40, 8, 9]),
            helper.make_tensor_value_info("R", TensorProto.FLOAT, ["batch", 50, 4, 9]),
        ],
        [helper.make_empty_tensor_value_info(name) for name in ("Y", "B", "P", "RY", "RB", "RY2", "RB2")],
        constants,
    )
    shapes = {output.name: output.shape for output in make_session(model, None).get_outputs()}
    assert shapes == {
        "Y": ["batch", 50, 4, 9],
        "B": ["batch", 4, 9, 2],
        "P": ["batch", 2, 4, 2],
        "RY": ["batch", 50, 4, 9],
        "RB": [],  # unknown: onnxruntime before 1.28 aborts if it is told of RB where a node has only RY
        "RY2": ["batch", 50, 4, 9],
        "RB2": [],
    }


def test_library_info() -> None:
    info = library_info()
    assert info["isas"][-1] == "scalar"
    assert info["selected"] == info["isas"][0]
    assert set(info["calls"]) == set(info["isas"])
    assert info["version"]
    for isa in info["isas"]:
        assert library_info(isa)["selected"] == isa
