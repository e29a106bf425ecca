"""The layers and networks that are measured, and the engines' models of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.results import FLOAT, INT8, LARQ, OPENVINO, OURS, OURS_INT8

LAYERS = ["64@56", "128@28", "256@14", "512@7"]
TITLES = {
    "lenet5": "LeNet-5",
    "nin": "NIN",
    "alexnet": "AlexNet (227)",
    "birealnet18": "Bi-Real ResNet-18",
}

CHECKED_SAMPLES = 16
"""Minimum number of different inputs on which each engine's values are checked."""

CALIBRATION_SAMPLES = 32
"""Number of inputs for the calibration of the int8 models; they are not measured."""

LAYER_TOLERANCE = 1e-5
NETWORK_TOLERANCE = 1e-4
INT8_TOLERANCE = 0.25
"""Largest relative error of a correct sample: |y - reference| / |reference - its mean|.

For binary models it leaves room for float rounding only. int8 models are compared with their own float model, and
differ by their quantisation.
"""

NETWORK_SHARE = 0.25
"""A binary network is correct if this share of its samples is within the tolerance.

Another order of float sums flips a sign here and there, and one flipped sign can move a deep network's output by 20 %.
A correct engine still has samples without a flip; a wrong one has none.
"""

INT8_SHARE = 0.9
"""The same of an int8 network: a sample may leave the range that it was calibrated on, and be clipped."""


@dataclass(frozen=True)
class Candidate:
    """One engine's model of a workload.

    Attributes:
        engine: one of ENGINES.
        module: the module in peers/ that runs the model.
        model: the file that the module loads, or, for OpenVINO and Larq, the plan that it makes its file of.
        reference: the float ONNX file whose values in onnxruntime are the expected ones.
        tolerance: largest relative error of a correct sample.
        share: minimum share of samples within the tolerance.
        options: further arguments of the module's `load`.
    """

    engine: str
    module: str
    model: Path
    reference: Path
    tolerance: float
    share: float
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """A layer or a network: the engines' models of it, and its input ([samples, C, H, W] float32)."""

    title: str
    kind: str
    candidates: list[Candidate]
    inputs: NDArray[np.float32]

    def candidate(self, engine: str) -> Candidate:
        """The model of one of ENGINES."""
        return next(candidate for candidate in self.candidates if candidate.engine == engine)


def layer_workload(name: str, folder: Path) -> Workload:
    """A 3x3 layer "channels@size" with padding 1: sign and convolution with +-alpha filters, float in, float out."""
    import onnx
    import onnx_ir as ir
    from int8 import quantize
    from onnx import TensorProto, helper, numpy_helper

    from bnn_deploy.passes.pipeline import to_binary

    channels, size = map(int, name.split("@"))
    rng = np.random.default_rng(0)
    alpha = rng.uniform(0.01, 0.1, (channels, 1, 1, 1))
    weight = (rng.choice([-1.0, 1.0], (channels, channels, 3, 3)) * alpha).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    shape = ["batch", channels, size, size]

    def write(file: str, nodes: list[Any]) -> Path:
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, folder / file)
        return folder / file

    conv = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1}
    flat = write("conv.onnx", [helper.make_node("Conv", ["input", "weight", "bias"], ["y"], "conv", **conv)])
    signs = write(
        "sign_conv.onnx",
        [
            helper.make_node("Sign", ["input"], ["sign"], "sign"),
            helper.make_node("Conv", ["sign", "weight", "bias"], ["y"], "conv", **conv),
        ],
    )
    binary, *_ = to_binary(ir.load(signs))
    ir.save(binary, folder / "binary.onnx")

    inputs = rng.standard_normal((max(CHECKED_SAMPLES, 64), *shape[1:])).astype(np.float32)
    calibration = rng.standard_normal((CALIBRATION_SAMPLES, *shape[1:])).astype(np.float32)
    int8 = quantize(flat, ({"input": sample[None]} for sample in calibration), folder / "int8.onnx")
    candidates = [
        Candidate(OURS, "ort", folder / "binary.onnx", signs, LAYER_TOLERANCE, 1.0, {"kernels": True}),
        Candidate(FLOAT, "ort", flat, flat, LAYER_TOLERANCE, 1.0),
        Candidate(INT8, "ort", int8, flat, INT8_TOLERANCE, 1.0),
        *peer_candidates(signs, (channels, size, size), LAYER_TOLERANCE, 1.0, folder),
    ]
    return Workload(f"3x3, {name}x{size}", "layer", candidates, inputs)


def network_workload(name: str, folder: Path) -> Workload:
    """LeNet-5 and NIN are trained; others have seeded weights and BatchNorm calibrated on images."""
    import onnx
    from int8 import quantize

    from bnn_deploy.architectures import ARCHITECTURES
    from bnn_deploy.conversion import convert
    from support import networks

    module = networks.network(name, CALIBRATION_SAMPLES)
    shape = ARCHITECTURES[name].input_shape
    binary, flat = folder / "binary.onnx", folder / "float.onnx"
    convert(module, binary, float_output=flat)

    relu = onnx.load(flat)
    for node in relu.graph.node:
        if node.op_type == "Sign":
            node.op_type = "Relu"
    onnx.save(relu, folder / "relu.onnx")
    calibration = networks.inputs(name, CALIBRATION_SAMPLES).numpy()
    int8_edges = folder / "int8_edges.onnx"
    convert(module, int8_edges, calibration=calibration)
    samples = ({"input": sample[None]} for sample in calibration)
    int8 = quantize(folder / "relu.onnx", samples, folder / "int8.onnx")

    candidates = [
        Candidate(OURS, "ort", binary, flat, NETWORK_TOLERANCE, NETWORK_SHARE, {"kernels": True}),
        # Compared with the function bodies in its own file: this script does not measure the accuracy lost by 8 bits.
        Candidate(OURS_INT8, "ort", int8_edges, int8_edges, NETWORK_TOLERANCE, NETWORK_SHARE, {"kernels": True}),
        Candidate(FLOAT, "ort", flat, flat, NETWORK_TOLERANCE, NETWORK_SHARE),
        Candidate(INT8, "ort", int8, folder / "relu.onnx", INT8_TOLERANCE, INT8_SHARE),
        *peer_candidates(flat, shape, NETWORK_TOLERANCE, NETWORK_SHARE, folder),
    ]
    inputs = networks.inputs(name, max(CHECKED_SAMPLES, 64), first=CALIBRATION_SAMPLES).numpy()
    return Workload(TITLES.get(name, name), "network", candidates, inputs)


def peer_candidates(
    flat: Path, shape: tuple[int, ...], tolerance: float, share: float, folder: Path
) -> list[Candidate]:
    """The candidates for OpenVINO and Larq, with the plans that they build their graphs from."""
    import onnx
    from peers.plan import read_onnx, use_tensorflow_padding

    model = onnx.load(flat)
    plan = read_onnx(model, shape).save(folder / "openvino.json")
    larq_reference = flat
    if use_tensorflow_padding(model, shape):
        larq_reference = folder / "tensorflow_padding.onnx"
        onnx.save(model, larq_reference)
    larq_plan = read_onnx(model, shape).save(folder / "larq.json")
    return [
        Candidate(OPENVINO, "openvino", plan, flat, tolerance, share),
        Candidate(LARQ, "larq", larq_plan, larq_reference, tolerance, share),
    ]
