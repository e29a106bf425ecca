"""Bi-Real Net with 18 layers for ImageNet (3x224x224): Liu et al., ECCV 2018; published top-1 accuracy 56.4 %."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnn_deploy.architectures.blocks import Network
from bnn_deploy.training import filter_alpha, sign_ste


class BinaryConv3x3(nn.Module):
    """3x3 convolution with weights alpha * sign(W), alpha = mean |W| per filter, binarised in the forward pass.

    The gradient goes straight through to the latent weight where |W| <= 1.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.rand(outputs, inputs, 3, 3) * 0.002 - 0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] of ±1 -> [N, outputs, H', W'] float32."""
        weight = filter_alpha(self.weight).detach() * sign_ste(self.weight)
        return nn.functional.conv2d(x, weight, stride=self.stride, padding=1)


class BiRealBlock(nn.Module):
    """sign -> binary 3x3 convolution -> BatchNorm -> plus the real-valued shortcut (Bi-Real Net, section 3.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.binary_conv = BinaryConv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(2, stride), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride] float32."""
        y: Tensor = self.bn1(self.binary_conv(sign_ste(x))) + self.downsample(x)
        return y


class BiRealNet18(Network):
    """First convolution, downsampling convolutions and classifier float; sixteen binary 3x3 convolutions."""

    input_shape = (3, 224, 224)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(64, 64, 1)
        self.layer2 = self._stage(64, 128, 2)
        self.layer3 = self._stage(128, 256, 2)
        self.layer4 = self._stage(256, 512, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 1000)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BiRealBlock(inputs, outputs, stride), *(BiRealBlock(outputs, outputs, 1) for _ in range(3))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] float32 -> [N, 1000] float32 logits."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
