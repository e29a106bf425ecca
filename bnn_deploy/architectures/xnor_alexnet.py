"""XNOR-Net's AlexNet with K for ImageNet (3x227x227): Rastegari et al., ECCV 2016; published top-1 accuracy 44.2 %."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnn_deploy.architectures.blocks import Network
from bnn_deploy.training import filter_alpha, sign_ste


class XnorConv2d(nn.Module):
    """BatchNorm -> binary convolution with alpha and K (XNOR-Net, section 3.2): (sign(x) * sign(W)) K alpha.

    A is the mean of |x| over the channels; K (equation 11) is A filtered with a box of 1 / (k * k): an average
    pool that counts the padding. The weights are alpha * sign(W), alpha = mean |W| per filter, binarised in the forward
    pass; the gradient goes straight through to the latent weight where |W| <= 1.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, padding: int = 0) -> None:
        super().__init__()
        self.padding = padding
        self.bn = nn.BatchNorm2d(inputs, eps=1e-4)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel_size, kernel_size) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H', W'] float32."""
        x = self.bn(x)
        a = x.abs().mean(dim=1, keepdim=True)
        k = nn.functional.avg_pool2d(a, self.weight.shape[-1], stride=1, padding=self.padding)
        signs = sign_ste(self.weight)
        signs = torch.where(signs == 0, torch.ones_like(signs), signs)  # the paper's sign(0) is +1
        weight = filter_alpha(self.weight).detach() * signs
        return nn.functional.conv2d(sign_ste(x), weight, padding=self.padding) * k


class XnorAlexNet(Network):
    """First and last layer float; the fully connected layers are convolutions, so they have a K."""

    input_shape = (3, 227, 227)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            XnorConv2d(96, 256, 5, padding=2),
            nn.MaxPool2d(3, 2),
            XnorConv2d(256, 384, 3, padding=1),
            XnorConv2d(384, 384, 3, padding=1),
            XnorConv2d(384, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
            XnorConv2d(256, 4096, 6),
            XnorConv2d(4096, 4096, 1),
        )
        self.classifier = nn.Sequential(nn.BatchNorm1d(4096, eps=1e-3), nn.ReLU(), nn.Linear(4096, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 227, 227] float32 -> [N, 1000] float32 logits."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
