"""8-bit edges: the layers that stay float, quantised by onnxruntime's static quantisation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.files import temporary_folder
from bnn_deploy.passes.graph import constant, is_op, reads_abs_mean


def quantize_edges(model: ir.Model, calibration: Iterable[dict[str, NDArray[Any]]]) -> ir.Model:
    """Quantise the float Conv and Gemm layers of a binary model to 8 bits.

    Layers with binary weights and the filters of XNOR-Net's K stay as they are.

    Weights are int8 per output channel, of 7 bits (|w| <= 64), activations uint8 per tensor with ranges from
    `calibration`; the result holds QuantizeLinear and DequantizeLinear around each layer, which onnxruntime fuses.

    Args:
        model: a binary model, without the operators' functions.
        calibration: real inputs by name, one batch after the other; some hundred samples are enough.

    Returns:
        The quantised model.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.samples, None)

    # Binary weights (UnpackWeights) are no constants: 8 bits would make them larger again, and gain little.
    layers = [
        node.name
        for node in model.graph
        if is_op(node, "Conv", "Gemm") and constant(node.inputs[1]) is not None and not reads_abs_mean(node)
    ]
    if not layers:
        return model
    # quantize_static calls the scale of tensor t "t_scale", and takes what is called so for it.
    for name, value in list(model.graph.initializers.items()):
        if name.endswith("_scale") or name.endswith("_zero_point"):
            value.name = f"{name}_constant"
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a pre-processing that would inline the operators
    try:
        with temporary_folder() as folder:
            source, target = folder / "model.onnx", folder / "quantized.onnx"
            ir.save(model, source)
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm"],
                nodes_to_quantize=layers,
                per_channel=True,
                # 7 bits: x86 CPUs without VNNI add pairs of products uint8 * int8 in 16 bits, which saturate.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return ir.load(target)
    finally:
        logger.setLevel(level)
