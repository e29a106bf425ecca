"""The report on the networks that come along."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from bnn_deploy.architectures.birealnet18 import BiRealBlock
from bnn_deploy.conversion import convert
from bnn_deploy.quantities import TIMES
from support.converted import Converted
from support.networks import mnist


def test_lenet5(lenet5: Converted) -> None:
    first, conv, linear, last = lenet5.conversion.layers
    assert [layer.name for layer in (first, conv, linear, last)] == ["conv1", "bin_conv2.conv", "bin_ip1.linear", "ip2"]
    assert [layer.status for layer in (first, conv, linear, last)] == ["float", "binary", "binary", "float"]
    assert [layer.shape for layer in (first, conv, linear, last)] == [
        f"5{TIMES}5 1→20",
        f"5{TIMES}5 20→50",
        "800→500",
        "500→10",
    ]
    assert first.advice is not None and "first layers stay float" in first.advice
    assert last.advice is not None and "last layers stay float" in last.advice
    assert first.weights == last.weights == "constant, real-valued"
    assert first.activation is None and first.scale is None
    for layer in (conv, linear):
        assert (layer.activation, layer.sign_of_zero, layer.converted_sign_of_zero) == ("Sign(x)", 0, 1)
        assert (layer.weights, layer.zeros, layer.latent_zeros) == ("latent, binarised by xnor-centred", 0, 0)
        assert layer.scale is not None and 0 < layer.scale[0] < layer.scale[1] < 1
        assert layer.padding == "none"
    assert conv.binarisation == ("BatchNorm", "ReLU", "MaxPool", "BatchNorm")
    assert conv.fused == ("bias", "ReLU", "MaxPool", "BatchNorm", "sign")
    assert (conv.becomes, linear.becomes) == ("BinaryConvThreshold", "BinaryConv")
    assert linear.fused == ("bias",) and linear.binarisation == ()
    assert lenet5.conversion.binary_layers == tuple(x.name for x in lenet5.conversion.layers if x.status == "binary")


def test_nin(nin: Converted) -> None:
    layers = {layer.name: layer for layer in nin.conversion.layers}
    assert len(layers) == 9
    assert [name for name, layer in layers.items() if layer.status == "float"] == ["xnor.0", "xnor.13"]
    assert [name for name, layer in layers.items() if layer.padding == "zero"] == [
        "xnor.0",
        "xnor.6.conv",
        "xnor.10.conv",
    ]
    assert layers["xnor.6.conv"].pads == (2, 2, 2, 2)
    assert layers["xnor.13"].fused == ("BatchNorm",), "a BatchNorm in front of a float layer goes into its weights"
    assert layers["xnor.4.conv"].fused == ("bias", "ReLU", "MaxPool", "BatchNorm", "sign")


class BiReal(nn.Module):
    """Two blocks of Bi-Real Net between float layers."""

    input_shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, bias=False)
        self.blocks = nn.Sequential(BiRealBlock(32, 32, 1), BiRealBlock(32, 64, 2))
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.first(x))
        return self.last(x.mean((2, 3)))


def test_bi_real_blocks(tmp_path: Path, seeded_torch: None) -> None:
    result = convert(BiReal().eval(), tmp_path / "m.onnx")
    layers = {layer.name: layer for layer in result.layers}
    assert len(layers) == 5
    one, two = layers["blocks.0.binary_conv"], layers["blocks.1.binary_conv"]
    assert (one.becomes, two.becomes) == ("BinaryConvResidual", "BinaryConv")
    assert one.fused == ("BatchNorm", "residual Add", "sign")
    assert two.fused == ("BatchNorm",)
    assert two.shape == f"3{TIMES}3 32→64 s2"
    assert one.weights == "mean|W| * Sign(W), folded"
    assert one.scale is not None and one.scale[0] < one.scale[1] < 0.001
    downsample = layers["blocks.1.downsample.1"]
    assert downsample.reason == "its input is real-valued: the output of AveragePool, not of a sign"
    assert downsample.advice is not None and "put a sign in front of it" in downsample.advice
    assert not any(layer.binary_in_training for layer in result.layers)


def test_eight_bit_edges(lenet5: Converted, tmp_path: Path) -> None:
    result = convert(lenet5.checkpoint, tmp_path / "m.onnx", arch="lenet5", calibration=mnist()[0][:8].numpy())
    assert [layer.status for layer in result.layers] == ["int8", "binary", "binary", "int8"]
    assert result.layers[0].advice == "nothing: it is stored in 8 bits"
    same = [layer.reason for layer in result.layers] == [layer.reason for layer in lenet5.conversion.layers]
    assert same
