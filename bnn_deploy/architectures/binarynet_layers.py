"""BinaryNet's layers: signs of weights and inputs, without an alpha. Courbariaux et al., 2016 (arXiv:1602.02830)."""

from __future__ import annotations

from torch import Tensor, nn

from bnn_deploy.training import sign_ste


class SignConv2d(nn.Conv2d):
    """Conv2d with weights sign(W), on the signs of its input unless `binary_input` is off. The padding is zeros.

    The weight is latent, as in BinaryNet's checkpoints, and is binarised in every forward pass.
    """

    def __init__(self, inputs: int, outputs: int, binary_input: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.binary_input = binary_input

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W] float32."""
        x = sign_ste(x) if self.binary_input else x
        return nn.functional.conv2d(x, sign_ste(self.weight), self.bias, padding=1)


class SignLinear(nn.Linear):
    """Linear with weights sign(W), on the signs of its input unless `binary_input` is off."""

    def __init__(self, inputs: int, outputs: int, binary_input: bool = True) -> None:
        super().__init__(inputs, outputs)
        self.binary_input = binary_input

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] -> [N, outputs] float32."""
        x = sign_ste(x) if self.binary_input else x
        return nn.functional.linear(x, sign_ste(self.weight), self.bias)
