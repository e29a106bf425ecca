"""Make brevitas_*.onnx, bitorch_*.onnx and their .npz here, as these libraries and PyTorch's two exporters write them.

Needs brevitas 0.13, bitorch 0.4 and torch 2.13; the files are kept here, so that the tests do not need the libraries.
An .npz has some inputs [N, C, H, W] and what PyTorch made of them.

    python make_torch.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitorch.layers
import brevitas.nn as qnn
import numpy as np
import onnx
import torch
from brevitas.export import export_qonnx
from brevitas.quant import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst
from torch import Tensor, nn

HERE = Path(__file__).parent


class Brevitas(nn.Module):
    """Binary weights, and activations that `activation` makes."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        binary: dict[str, Any] = {"bias": False, "weight_quant": SignedBinaryWeightPerTensorConst}
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            activation(),
            qnn.QuantConv2d(24, 24, 3, padding=1, **binary),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(24),
            activation(),
            qnn.QuantConv2d(24, 40, 3, stride=2, padding=1, **binary),
            nn.BatchNorm2d(40),
            activation(),
        )
        self.classifier = qnn.QuantLinear(40 * 9, 10, **binary)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Bitorch(nn.Module):
    """One-padding, which is what bitorch pads with, and a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        signs: dict[str, Any] = {"bias": False, "input_quantization": "sign", "weight_quantization": "sign"}
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            bitorch.layers.QConv2d(24, 24, 3, padding=1, **signs),
            nn.BatchNorm2d(24),
            nn.MaxPool2d(2),
            bitorch.layers.QConv2d(24, 40, 3, stride=2, padding=1, **signs),
            nn.BatchNorm2d(40),
        )
        self.classifier = nn.Sequential(
            bitorch.layers.QLinear(40 * 9, 16, **signs), nn.BatchNorm1d(16), nn.Linear(16, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def calibrate(model: nn.Module, inputs: Tensor) -> None:
    """BatchNorm statistics of data, random gammas (some of them negative) and betas."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.momentum = None
            norm.weight.data.uniform_(0.5, 1.5)
            norm.weight.data[::5] *= -1
            norm.bias.data.normal_(0, 0.3)
    model.train()
    for _ in range(3):
        model(inputs)
    model.eval()


def to_qonnx(model: nn.Module, inputs: Tensor, path: Path) -> None:
    export_qonnx(model, args=inputs[:1], export_path=str(path))


def with_dynamo(model: nn.Module, inputs: Tensor, path: Path) -> None:
    batch = torch.export.Dim("N")
    torch.onnx.export(model, (inputs[:2],), path, dynamo=True, external_data=False, dynamic_shapes=({0: batch},))


def with_torchscript(model: nn.Module, inputs: Tensor, path: Path) -> None:
    torch.onnx.export(model, (inputs[:2],), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N"}})


def strip(path: Path) -> None:
    """Take out what the exporter says of the machine that it ran on, and put all tensors into the one file."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    onnx.save(model, path)
    path.with_suffix(".onnx.data").unlink(missing_ok=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor, Path], None]]] = {
    "brevitas_bipolar": (lambda: Brevitas(lambda: qnn.QuantIdentity(SignedBinaryActPerTensorConst)), to_qonnx),
    "brevitas_2_bits": (lambda: Brevitas(lambda: qnn.QuantReLU(bit_width=2)), to_qonnx),
    "bitorch_dynamo": (Bitorch, with_dynamo),
    "bitorch_torchscript": (Bitorch, with_torchscript),
}


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 3, 12, 12)
    for name, (make, export) in MODELS.items():
        model = make()
        calibrate(model, inputs)
        export(model, inputs, HERE / f"{name}.onnx")
        strip(HERE / f"{name}.onnx")
        np.savez_compressed(HERE / f"{name}.npz", x=inputs[:4].numpy(), output=model(inputs[:4]).numpy())


if __name__ == "__main__":
    main()
