"""Small networks as authors write them, each in the dialect of one public system.

BatchNorm is calibrated, so that a wrong layer changes the output: see networks.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_deploy.operators.contract import OPSET
from support.graphs import Array, parse

FIRST, LAST = "Transpose <perm=[0,3,1,2]>", "Transpose <perm=[0,2,3,1]>"
"""NHWC to NCHW, and NCHW to NHWC."""


# --- an own class, as in many repositories -------------------------------------------------------------------------


class LegacySign(torch.autograd.Function):
    """+1 where x >= 0, else -1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() <= 1).float()


class BinConv2d(nn.Conv2d):
    """Latent weights, binarised in forward() with alpha per filter."""

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = alpha * LegacySign.apply(self.weight)  # type: ignore[no-untyped-call]
        return F.conv2d(LegacySign.apply(x), weight, self.bias, self.stride, self.padding)  # type: ignore[no-untyped-call]


class OwnNet(nn.Module):
    """Pre-activation blocks with PReLU, a strided one, and a float classifier."""

    input_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            BinConv2d(32, 48, 3, padding=1),
            nn.PReLU(48),
            nn.BatchNorm2d(48),
            BinConv2d(48, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.MaxPool2d(2),
            BinConv2d(64, 64, 1),
            nn.BatchNorm2d(64),
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


# --- bitorch --------------------------------------------------------------------------------------------------------


def bitorch_sign(x: Tensor) -> Tensor:
    """bitorch's Sign: sign(0) is +1."""
    sign = torch.sign(x)
    return torch.where(sign == 0, torch.ones_like(sign), sign)


class QConv2d(nn.Conv2d):
    """bitorch's QConv2d: padding with -1, sign of input and weight, no alpha."""

    def forward(self, x: Tensor) -> Tensor:
        (pad, _), weight = self.padding, bitorch_sign(self.weight)  # type: ignore[misc]
        return F.conv2d(F.pad(bitorch_sign(x), (pad,) * 4, value=-1.0), weight, None, self.stride)


class QLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(bitorch_sign(x), bitorch_sign(self.weight), self.bias)


class BitorchNet(nn.Module):
    """bitorch's example for MNIST, with a residual block."""

    input_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 5, stride=2), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = QConv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = QConv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.fc1, self.bn4 = QLinear(64 * 6 * 6, 100), nn.BatchNorm1d(100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x)) + x
        x = self.bn3(self.conv3(x))
        logits: Tensor = self.fc2(self.bn4(self.fc1(x.flatten(1))))
        return logits


# --- Larq, through tf2onnx -------------------------------------------------------------------------------------------


def ste_sign(data: str, result: str) -> str:
    """Larq's ste_sign in ONNX text."""
    return f"{result}_a = Sign({data})\n{result}_b = Add({result}_a, tenth)\n{result} = Sign({result}_b)"


def larq(latent: bool = False) -> ir.Model:
    """A small Larq network, channels last, as tf2onnx writes it before its optimisation.

    Four binary layers: SAME padding at stride 2, padding with ones, a residual, and one on an input flattened in the
    order H, W, C. BatchNorm is Mul and Add.

    Args:
        latent: store the real-valued training weights instead of their signs.
    """
    rng = np.random.default_rng(0)

    def quantized(*shape: int) -> Array:
        array = rng.normal(size=shape).astype(np.float32)
        return array if latent else np.sign(array)

    text = f"""
        t0 = {FIRST} (x)
        c0 = Conv <pads=[1,1,1,1]> (t0, w0)
        n0 = {LAST} (c0)
        m0 = Mul(n0, g0)
        a0 = Add(m0, b0)
        {ste_sign("a0", "s0")}
        t1 = {FIRST} (s0)
        c1 = Conv <pads=[0,0,1,1], strides=[2,2]> (t1, w1)
        n1 = {LAST} (c1)
        m1 = Mul(n1, g1)
        a1 = Add(m1, b1)
        {ste_sign("a1", "s1")}
        p1 = Pad(s1, pads, one)
        t2 = {FIRST} (p1)
        c2 = Conv (t2, w2)
        n2 = {LAST} (c2)
        r2 = Add(n2, a1)
        m2 = Mul(r2, g2)
        a2 = Add(m2, b2)
        f = Reshape(a2, shape)
        {ste_sign("f", "s2")}
        d0 = MatMul(s2, w3)
        d1 = Mul(d0, g3)
        d2 = Add(d1, b3)
        {ste_sign("d2", "s3")}
        y = MatMul(s3, w4)"""
    values = {
        "w0": rng.normal(size=(32, 3, 3, 3)).astype(np.float32),
        "w1": quantized(32, 32, 3, 3),
        "w2": quantized(32, 32, 3, 3),
        "w3": quantized(9 * 32, 16),
        "w4": quantized(16, 5),
        "tenth": np.float32(0.1),
        "one": np.float32(1),
        "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0]),
        "shape": np.array([-1, 9 * 32]),
    }
    for i, (channels, spread) in enumerate([(32, 5), (32, 14), (32, 17), (16, 17)]):
        values[f"g{i}"] = (rng.choice([-1, 1], channels) * rng.uniform(0.5, 1.5, channels) / spread).astype(np.float32)
        values[f"b{i}"] = rng.normal(0, 0.3, channels).astype(np.float32)
    return parse(text, ("N", 6, 6, 3), **values)


# --- Brevitas, as QONNX ----------------------------------------------------------------------------------------------


def brevitas() -> onnx.ModelProto:
    """A small Brevitas network: scaled BipolarQuant of weights and activations, with BatchNorm in between."""
    rng = np.random.default_rng(1)
    body = """
        w0q = qonnx.custom_op.general.BipolarQuant(w0, scale0)
        c0 = Conv <pads=[1,1,1,1]> (x, w0q)
        n0 = BatchNormalization(c0, g0, b0, m0, v0)
        s0 = qonnx.custom_op.general.BipolarQuant(n0, half)
        w1q = qonnx.custom_op.general.BipolarQuant(w1, scale1)
        c1 = Conv <pads=[1,1,1,1]> (s0, w1q)
        p1 = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c1)
        n1 = BatchNormalization(p1, g1, b1, m1, v1)
        s1 = qonnx.custom_op.general.BipolarQuant(n1, half)
        w2q = qonnx.custom_op.general.BipolarQuant(w2, scale2)
        c2 = Conv (s1, w2q)
        n2 = BatchNormalization(c2, g2, b2, m2, v2)
        f = Flatten(n2)
        s2 = qonnx.custom_op.general.BipolarQuant(f, half)
        w3q = qonnx.custom_op.general.BipolarQuant(w3, scale0)
        w3t = Transpose <perm=[1,0]> (w3q)
        d = MatMul(s2, w3t)
        y = Add(d, bias)"""
    values: dict[str, Array] = {
        "half": np.float32(0.5),
        "bias": rng.normal(size=10).astype(np.float32),
        "scale0": np.float32(0.1),
        "scale1": np.float32(0.07),
        "scale2": rng.uniform(0.05, 0.2, (40, 1, 1, 1)).astype(np.float32),
        "w0": rng.normal(size=(32, 3, 3, 3)).astype(np.float32),
        "w1": rng.normal(size=(40, 32, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(40, 40, 3, 3)).astype(np.float32),
        "w3": rng.normal(size=(10, 40 * 4)).astype(np.float32),
    }
    # Statistics as after training: `spread` estimates the standard deviation of a layer's sums.
    for i, (channels, spread) in enumerate([(32, 0.5), (40, 0.07 * 0.5 * 17), (40, 0.1 * 0.5 * 19)]):
        values |= {
            f"g{i}": (rng.choice([-1, 1], channels) * rng.uniform(0.5, 1.5, channels)).astype(np.float32),
            f"b{i}": rng.normal(0, 0.3, channels).astype(np.float32),
            f"m{i}": (rng.normal(0, 0.3, channels) * spread).astype(np.float32),
            f"v{i}": np.full(channels, spread**2, np.float32),
        }
    text = "\n".join(line for line in body.splitlines() if line.strip())
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {OPSET}, "qonnx.custom_op.general": 1]> '
        f"main (float[N,3,8,8] x) => (float[N,10] y) {{\n{text}\n}}"
    )
    for name, array in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model
