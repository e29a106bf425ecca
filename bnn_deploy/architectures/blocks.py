"""The building block of the XNOR-Net-PyTorch recipe, with its state-dict keys."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from bnn_deploy.training import sign_ste

MIN_GAMMA = 0.01
"""The recipe clamps every affine BatchNorm weight to at least this, in every forward pass."""


class BinConv2d(nn.Module):
    """BatchNorm -> sign -> (Dropout in training) -> Conv2d -> ReLU. Keys: `bn.*`, `conv.*`.

    The convolution's weight is latent: it is binarised by `training.WeightBinarizer` while training and by the
    converter for inference. The padding is zeros, added after the sign.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, padding: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs, eps=1e-4)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H', W'] float32."""
        return torch.relu(self.conv(self.dropout(sign_ste(self.bn(x)))))


class BinLinear(nn.Module):
    """BatchNorm -> sign -> (Dropout in training) -> Linear -> ReLU. Keys: `bn.*`, `linear.*`.

    Args:
        inputs: features of the linear layer.
        outputs: features out.
        channels: if the block follows a convolution and its BatchNorm is over that convolution's channels, before
            flattening, their number; None for a BatchNorm over the flat features.
        dropout: probability, in training only.
    """

    def __init__(self, inputs: int, outputs: int, channels: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(inputs, eps=1e-4) if channels is None else nn.BatchNorm2d(channels, eps=1e-4)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs], or [N, channels, H, W] with channels * H * W = inputs -> [N, outputs] float32."""
        return torch.relu(self.linear(self.dropout(sign_ste(self.bn(x))).flatten(1)))


def clamp_gamma(module: nn.Module) -> None:
    """Clamp every affine BatchNorm weight below `module` to at least MIN_GAMMA, in place."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and child.weight is not None:
            child.weight.data.clamp_(min=MIN_GAMMA)


class Network(nn.Module):
    """Base of the networks that can be chosen by name."""

    input_shape: tuple[int, ...]
    """One sample, without the batch dimension: (C, H, W)."""

    @classmethod
    def for_state_dict(cls, state_dict: dict[str, Any]) -> Network:
        """Build the variant that `state_dict` was saved from; most architectures have a single variant."""
        return cls()

    def binary_weights(self) -> list[nn.Parameter]:
        """The latent weights that `training.WeightBinarizer` binarises; empty if forward() binarises them itself."""
        return []


class RecipeNetwork(Network):
    """Base of the recipe's networks: gamma is clamped in each training step, by eval() and after loading a checkpoint.

    The recipe clamps in every forward pass, so a checkpoint may hold gammas that its own forward pass never uses. Here
    an evaluating forward pass changes nothing, which keeps it fit for export.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(lambda module, _: clamp_gamma(module))  # type: ignore[no-untyped-call]

    def binary_weights(self) -> list[nn.Parameter]:
        """The latent weights that the recipe binarises: the weights of all blocks, in order."""
        weights: list[nn.Parameter] = []
        for module in self.modules():
            if isinstance(module, BinConv2d | BinLinear):
                layer: nn.Conv2d | nn.Linear = module.conv if isinstance(module, BinConv2d) else module.linear
                weights.append(cast(nn.Parameter, layer.weight))
        return weights

    def train(self, mode: bool = True) -> RecipeNetwork:
        """Switch between training and evaluation; clamp gamma, since an optimiser step may follow the last clamp."""
        clamp_gamma(self)
        return super().train(mode)

    def body(self, x: Tensor) -> Tensor:
        """The forward pass without the clamping of gamma: [N, *input_shape] float32 -> [N, classes] float32."""
        raise TypeError(f"{type(self).__name__} does not define body()")

    def forward(self, x: Tensor) -> Tensor:
        """[N, *input_shape] float32 -> [N, classes] float32 logits."""
        if self.training:
            clamp_gamma(self)
        return self.body(x)
