"""A network over volumes: convolutions, pools and transposed convolutions with three spatial dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from bnn_deploy import convert, verify
from bnn_deploy.source.torch_export import export_float
from support.damage import Damage
from support.graphs import batch_norm, eighths, parse, weights

VOLUMES = """
a = Conv <pads=[1, 1, 1, 1, 1, 1]> (x, w0)
s = Sign(a)
b = Conv <pads=[1, 1, 1, 1, 1, 1], strides=[1, 2, 2]> (s, w1, o1)
n = BatchNormalization(b, g, bb, m, v)
p = MaxPool <kernel_shape=[2, 3, 3], strides=[2, 2, 2], pads=[0, 1, 1, 0, 1, 1]> (n)
t = Sign(p)
c = ConvTranspose <strides=[2, 2, 1]> (t, w2)
q = Add(c, c0)
u = Sign(q)
f = Flatten(u)
y = MatMul(f, w3)
"""


def volumes() -> ir.Model:
    norm = batch_norm(40)
    norm["bb"] = norm.pop("b") - np.float32(1.2)  # so that about half of the maxima are positive
    return parse(
        VOLUMES,
        ("N", 2, 4, 8, 6),
        w0=np.random.default_rng(1).standard_normal((40, 2, 3, 3, 3)).astype(np.float32),
        w1=weights(40, 40, 3, 3, 3, seed=1, alpha=2.0**-5),
        w2=weights(40, 34, 2, 2, 1, seed=2, alpha=2.0**-3),
        w3=weights(34 * 4 * 4 * 2, 5, seed=3, alpha=2.0**-5),
        o1=eighths(40),
        c0=np.full((34, 1, 1, 1), 0.1, np.float32),
        **norm,
    )


def flip_weight_bit(damage: Damage) -> None:
    def edit(words: np.ndarray) -> None:
        words[3, 0, 0, 0, 1] ^= 1 << 2

    damage.change(damage.node("c_phase_3").input[1], edit)


def move_pad(damage: Damage) -> None:
    """Move the window of the strided convolution by one slice."""
    pads = damage.attribute(damage.node("b"), "pads")
    pads[0], pads[3] = 2, 0


def test_it_is_equivalent_and_not_if_corrupted(tmp_path: Path) -> None:
    model, source = tmp_path / "m.onnx", tmp_path / "f.onnx"
    conversion = convert(volumes(), model, float_output=source, strict=True)
    assert [(layer.name, layer.becomes) for layer in conversion.layers if layer.status == "binary"] == [
        ("b", "BinaryConvThreshold"),
        ("c", "BinaryConvThreshold"),
        ("y", "BinaryConv"),
    ]
    result = verify(model, source, samples=8, reference_samples=1)
    assert result.passed, result.failures
    assert sum(layer.kind == "bits" for layer in result.layers) == 3
    for corrupt in (flip_weight_bit, move_pad):
        damage = Damage(onnx.load(model))
        corrupt(damage)
        onnx.save(damage.model, tmp_path / "wrong.onnx")
        assert not verify(tmp_path / "wrong.onnx", source, samples=8, reference_samples=0, isas=["scalar"]).passed


def test_a_conv3d_without_bias(tmp_path: Path) -> None:
    """PyTorch's exporter adds one of zeros, [O, 2]."""
    conv = nn.Conv3d(4, 6, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.where(conv.weight >= 0, 0.5, -0.5))
    exported = export_float(nn.Sequential(Sign(), conv).eval(), (4, 3, 3, 3)).model
    conversion = convert(exported, tmp_path / "m.onnx", float_output=tmp_path / "f.onnx")
    assert len(conversion.binary_layers) == 1
    assert verify(tmp_path / "m.onnx", tmp_path / "f.onnx", samples=4, reference_samples=0, isas=["scalar"]).passed


class Sign(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, 1.0, -1.0)
