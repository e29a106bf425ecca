"""A small VGG for CIFAR-10 (3x32x32) with 1-bit weights and 2-bit activations, as in DoReFa-Net.

Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bnn_deploy.architectures.blocks import Network


class QuantizeSTE(torch.autograd.Function):
    """Round [0, 1] to multiples of 1 / (2^k - 1) (DoReFa-Net, equation 5), with the straight-through estimator."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, bits: int) -> Tensor:
        """Any shape -> the same shape."""
        highest = 2**bits - 1
        quantized: Tensor = torch.round(x * highest) / highest
        return quantized

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient through."""
        return grad_outputs[0], None


class ScaledSignSTE(torch.autograd.Function):
    """mean |W| over the layer, times sign(W) with sign(0) = +1, and the straight-through estimator."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor) -> Tensor:
        """[O, I, ...] -> the same shape."""
        return torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        """Pass the gradient through."""
        return grad_outputs[0]


def quantize_activations(x: Tensor, bits: int) -> Tensor:
    """Clip to [0, 1], then round to 2^bits levels. Any shape, float32."""
    result: Tensor = QuantizeSTE.apply(x.clamp(0, 1), bits)  # type: ignore[no-untyped-call]
    return result


class DoReFaConv2d(nn.Conv2d):
    """A 3x3 convolution whose weights are binarised in every forward pass."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W] float32."""
        weight: Tensor = ScaledSignSTE.apply(self.weight)  # type: ignore[no-untyped-call]
        return functional.conv2d(x, weight, padding=1)


class DoReFaLinear(nn.Linear):
    """A linear layer whose weights are binarised in every forward pass."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] -> [N, outputs] float32."""
        return functional.linear(x, ScaledSignSTE.apply(self.weight))  # type: ignore[no-untyped-call]


class DoReFaVGG(Network):
    """First and last layer float; conv -> (MaxPool) -> BatchNorm -> quantise in between. Input in about [-1, 1]."""

    input_shape = (3, 32, 32)
    bits = 2

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 64, 128, 128, 256, 256]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.convs = nn.ModuleList(DoReFaConv2d(widths[i], widths[i + 1]) for i in range(len(widths) - 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.linear = DoReFaLinear(widths[-1] * 4 * 4, 512)
        self.norm = nn.BatchNorm1d(512)
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] float32 -> [N, 10] float32 logits."""
        x = quantize_activations(self.norms[0](self.conv1(x)), self.bits)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms[1:], strict=True)):
            x = conv(x)
            if i % 2 == 0:
                x = functional.max_pool2d(x, 2)
            x = quantize_activations(norm(x), self.bits)
        x = self.norm(self.linear(x.flatten(1))).clamp(0, 1)
        result: Tensor = self.classifier(x)
        return result
