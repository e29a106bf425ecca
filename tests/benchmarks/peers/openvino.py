"""OpenVINO's binary form: FakeQuantize with two levels, 0 and 1, before opset1::BinaryConvolution; all else float.

Only outputs 0 and 1 make its CPU plugin pack bits; the operator's mode xnor-popcount takes them as -1 and +1. pad_value
0 adds nothing in the padding. BatchNorm before a sign is folded into FakeQuantize's thresholds, one per channel; the
plugin can then fuse FakeQuantize and scaling into the layer before them. The filters' bits go in least significant
first. Where the input channels are no multiple of 8, its binary convolution gives wrong values (2024.6, x86).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.runtime.opset1 as ops
from numpy.typing import NDArray

from peers.plan import Plan, Step, fold_affine_into_sign, load_plan


def versions() -> dict[str, str]:
    return {"openvino": openvino.get_version().split("-")[0], "numpy (OpenVINO's and Larq's process)": np.__version__}


def export(plan: Path, batch: int, output: Path) -> None:
    """Write a plan as OpenVINO's files, .xml and .bin, for a fixed batch."""
    model = build(fold_affine_into_sign(load_plan(plan)), batch)
    openvino.save_model(model, output, compress_to_fp16=False)


def load(model: Path, *, batch: int, threads: int) -> Request:
    """Read and compile what `export` wrote for this batch."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return Request(openvino.Core().compile_model(model, "CPU", settings))


class Request:
    """An infer request whose input and output tensors are used in place."""

    def __init__(self, compiled: Any) -> None:
        self.request = compiled.create_infer_request()
        # infer() of the Python class only prepares inputs, which are bound already, and copies the output.
        self.infer = super(type(self.request), self.request).infer

    def output(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.request.get_input_tensor().data[...] = x
        self.run()
        return np.array(self.request.get_output_tensor().data)

    def run(self) -> None:
        self.infer({}, share_outputs=True, decode_strings=False)


def build(plan: Plan, batch: int) -> Any:
    """The plan as an OpenVINO model."""
    source = ops.parameter([batch, *plan.shape], np.float32, "input")
    tensors: dict[str, Any] = {"input": source}
    for step in plan.steps:
        tensors[step.output] = _node(step, [tensors[name] for name in step.inputs], batch)
    return openvino.Model([tensors[plan.steps[-1].output]], [source], "network")


def _node(step: Step, inputs: list[Any], batch: int) -> Any:
    x, a, arrays = inputs[0], step.attributes, step.arrays
    if step.op == "conv":
        begin, end = a["pads"][:2], a["pads"][2:]
        if a["group"] != 1:
            raise ValueError(f"conv {step.output}: group {a['group']} is not covered")
        y = ops.convolution(x, ops.constant(arrays["weight"]), a["strides"], begin, end, [1, 1])
        return ops.add(y, _per_channel(arrays["bias"]))
    if step.op == "binary_conv":
        y = _binary_conv(x, step)
        return ops.add(ops.multiply(y, _per_channel(arrays["alpha"])), _per_channel(arrays["bias"]))
    if step.op == "sign":
        return _binarize(x, step)
    if step.op == "dense":
        flat = ops.reshape(x, ops.constant(np.array([batch, -1], np.int64)), False)
        y = ops.matmul(flat, ops.constant(arrays["weight"]), False, True)
        y = ops.add(y, ops.constant(arrays["bias"].reshape(1, -1)))
        return ops.reshape(y, ops.constant(np.array([batch, *step.shape], np.int64)), False)
    if step.op == "affine":
        return ops.add(ops.multiply(x, _per_channel(arrays["scale"])), _per_channel(arrays["shift"]))
    if step.op == "relu":
        return ops.relu(x)
    if step.op == "prelu":
        return ops.prelu(x, ops.constant(arrays["slope"]))
    if step.op == "max_pool":
        return ops.max_pool(x, a["strides"], a["pads"][:2], a["pads"][2:], a["kernel"], "floor")
    if step.op == "average_pool":
        return ops.avg_pool(x, a["strides"], a["pads"][:2], a["pads"][2:], a["kernel"], False, "floor")
    if step.op == "flatten":
        return ops.reshape(x, ops.constant(np.array([batch, *step.shape], np.int64)), False)
    if step.op == "add":
        return ops.add(x, inputs[1])
    raise ValueError(f"{step.op} {step.output}: no OpenVINO form for this step")


def _per_channel(values: NDArray[np.float32]) -> Any:
    return ops.constant(values.astype(np.float32).reshape(1, -1, 1, 1))


def _binarize(x: Any, step: Step) -> Any:
    """A FakeQuantize with the sign's bits. It tests x > limit, so for x >= threshold the limit is the next lower float.

    Its two limits are equal, but must be two constants, or FakeQuantize is not fused into the preceding layer.
    """
    threshold, below = step.arrays["threshold"].astype(np.float32), step.arrays["below"]
    limit = np.where(below, threshold, np.nextafter(threshold, np.float32(-np.inf)))
    low, high = _per_channel(limit), _per_channel(limit)
    return ops.fake_quantize(x, low, high, _per_channel(below), _per_channel(~below), 2)


def _binary_conv(x: Any, step: Step) -> Any:
    a, weight = step.attributes, step.arrays["weight"]
    packed = np.packbits(weight.reshape(-1) > 0, bitorder="little")
    filters = openvino.runtime.op.Constant(openvino.Tensor(packed, list(weight.shape), openvino.Type.u1))
    return ops.binary_convolution(x, filters, a["strides"], a["pads"][:2], a["pads"][2:], [1, 1], "xnor-popcount", 0.0)
