"""BinaryNet for CIFAR-10 (3x32x32): Courbariaux et al., 2016 (arXiv:1602.02830); published error 10.15 %."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bnn_deploy.architectures.binarynet_layers import SignConv2d, SignLinear
from bnn_deploy.architectures.blocks import Network


class BinaryNetVGG(Network):
    """128C3-128C3-MP2-256C3-256C3-MP2-512C3-512C3-MP2-1024FC-1024FC-10, each followed by BatchNorm and hard tanh.

    All weights are ±1; the first layer's input is the picture, which is real. The keys, and the order of max-pooling
    and BatchNorm, are those of the authors' PyTorch version.

    Args:
        width: filters of the first layer.
    """

    input_shape = (3, 32, 32)

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width, 2 * width, 4 * width):
            for last, count in ((False, inputs), (True, outputs)):
                layers.append(SignConv2d(count, outputs, binary_input=count != 3))
                layers += [nn.MaxPool2d(2)] if last else []
                layers += [nn.BatchNorm2d(outputs), nn.Hardtanh(inplace=True)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        hidden = 8 * width
        self.classifier = nn.Sequential(
            SignLinear(4 * width * 4 * 4, hidden),
            nn.BatchNorm1d(hidden),
            nn.Hardtanh(inplace=True),
            SignLinear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.Hardtanh(inplace=True),
            SignLinear(hidden, 10),
            nn.BatchNorm1d(10, affine=False),
            nn.LogSoftmax(dim=1),
        )

    @classmethod
    def for_state_dict(cls, state_dict: dict[str, Any]) -> BinaryNetVGG:
        """The first layer's weight says how wide the network is."""
        weight = state_dict.get("features.0.weight")
        return cls() if weight is None else cls(len(weight))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] float32 -> [N, 10] float32 log-probabilities."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
