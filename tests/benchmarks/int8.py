"""onnxruntime's static quantisation, for the int8 peers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

OPERATORS = [
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Add",
    "Relu",
    "Reshape",
]
"""Operators that are quantised: those with int8 kernels in onnxruntime, and ConvTranspose, which has none and runs in
float between its conversions. BatchNormalization has none either, and would run in float, too."""


def quantize(model: Path, calibration: Iterable[dict[str, NDArray[np.float32]]], output: Path) -> Path:
    """QDQ, U8 activations, S8 weights per output channel, min-max calibration.

    Args:
        model: a float ONNX file.
        calibration: inputs for it, by their names.
        output: the file that is written, and returned; a file `prepared.onnx` beside it is left.
    """

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One sample at a time."""

        def __init__(self) -> None:
            self.samples = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.samples, None)

    prepared = output.with_name("prepared.onnx")
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # as in convert: without VNNI, 8-bit weights saturate
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=OPERATORS,
    )
    return output
