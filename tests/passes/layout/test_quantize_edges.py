"""The 8-bit weights of quantize_edges; whole networks with 8-bit edges are verified elsewhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.layout.quantize_edges import quantize_edges
from support.graphs import parse

TEXT = "r = Relu(x)\ny = Conv(r, w)"


def quantized_weights(w: np.ndarray) -> np.ndarray:
    """The int8 weights of a model of one convolution behind a ReLU."""
    shape = ("N", 32, 6, 6)
    calibration = np.random.default_rng(0).standard_normal((4, *shape[1:])).astype(np.float32)
    model: ir.Model = quantize_edges(parse(TEXT, shape, w=w), [{"x": calibration[i : i + 1]} for i in range(4)])
    layer = next(node for node in model.graph if node.op_type == "Conv")
    producer = None if layer.inputs[1] is None else layer.inputs[1].producer()
    assert producer is not None and producer.op_type == "DequantizeLinear"
    integers = constant(producer.inputs[0])
    assert integers is not None and integers.dtype == np.int8
    return integers


def test_weights_have_seven_bits() -> None:
    """Two products uint8 * int8 fit into 16 bits then, in which x86 CPUs without VNNI add them: 2 * 255 * 64 < 2^15."""
    w = np.random.default_rng(1).standard_normal((4, 32, 3, 3)).astype(np.float32)
    integers = quantized_weights(w).astype(int)
    assert 2 * 255 * np.abs(integers).max() < 2**15
    # All of these bits are used: each filter's largest weight is the largest integer.
    assert (np.abs(integers).reshape(4, -1).max(axis=1) >= 63).all()
