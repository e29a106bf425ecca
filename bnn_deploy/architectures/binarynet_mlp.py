"""BinaryNet for MNIST (1x28x28): Courbariaux et al., 2016 (arXiv:1602.02830); published error 0.96 %."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bnn_deploy.architectures.binarynet_layers import SignLinear
from bnn_deploy.architectures.blocks import Network


class BinaryNetMLP(Network):
    """Three hidden layers of ±1 weights, each followed by BatchNorm and hard tanh, and an output layer.

    The first layer's input is the picture, which is real.

    Args:
        width: units of a hidden layer.
    """

    input_shape = (1, 28, 28)

    def __init__(self, width: int = 4096) -> None:
        super().__init__()
        self.fc1 = SignLinear(28 * 28, width, binary_input=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.fc2 = SignLinear(width, width)
        self.bn2 = nn.BatchNorm1d(width)
        self.fc3 = SignLinear(width, width)
        self.bn3 = nn.BatchNorm1d(width)
        self.fc4 = SignLinear(width, 10)
        self.bn4 = nn.BatchNorm1d(10)

    @classmethod
    def for_state_dict(cls, state_dict: dict[str, Any]) -> BinaryNetMLP:
        """The first layer's weight says how wide the network is."""
        weight = state_dict.get("fc1.weight")
        return cls() if weight is None else cls(len(weight))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] float32 -> [N, 10] float32 scores."""
        x = nn.functional.hardtanh(self.bn1(self.fc1(x.flatten(1))))
        x = nn.functional.hardtanh(self.bn2(self.fc2(x)))
        x = nn.functional.hardtanh(self.bn3(self.fc3(x)))
        scores: Tensor = self.bn4(self.fc4(x))
        return scores
