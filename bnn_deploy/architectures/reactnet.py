"""ReActNet-A for ImageNet (3x224x224): Liu et al., ECCV 2020 (arXiv:2003.03488); published top-1 accuracy 69.4 %."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnn_deploy.architectures.blocks import Network
from bnn_deploy.training import filter_alpha, sign_ste


class Shift(nn.Module):
    """x + b, one learned b per channel: the threshold of RSign, and the shifts of RPReLU (equations 1 and 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return x + self.bias.expand_as(x)


class BinaryConv(nn.Module):
    """Convolution with weights alpha * sign(W), alpha = mean |W| per filter. The padding is zeros."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel_size, kernel_size) * 0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] of ±1 -> [N, outputs, H', W'] float32."""
        alpha = filter_alpha(self.weight).detach()
        clipped = self.weight.clamp(-1, 1)
        # The gradient goes straight through to the clipped weight.
        weight = (alpha * self.weight.sign()).detach() - clipped.detach() + clipped
        return nn.functional.conv2d(x, weight, stride=self.stride, padding=self.padding)


class RPReLU(nn.Module):
    """PReLU with a learned shift before it and another behind it (equation 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.prelu, self.behind = Shift(channels), nn.PReLU(channels), Shift(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        y: Tensor = self.behind(self.prelu(self.before(x)))
        return y


class ReActBlock(nn.Module):
    """A 3x3 and a 1x1 binary convolution, each with RSign before it, a shortcut around it and RPReLU behind it.

    At stride 2 the first shortcut is an average pool. Two 1x1 convolutions of the same input, concatenated, double the
    channels (figure 4).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs not in (inputs, 2 * inputs):
            raise ValueError(f"a block of {inputs} channels can make {inputs} or {2 * inputs}, not {outputs}")
        self.sign1 = Shift(inputs)
        self.conv3x3 = BinaryConv(inputs, inputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.shortcut = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()
        self.act1 = RPReLU(inputs)
        self.sign2 = Shift(inputs)
        copies = outputs // inputs
        self.conv1x1 = nn.ModuleList(BinaryConv(inputs, inputs, 1) for _ in range(copies))
        self.bn2 = nn.ModuleList(nn.BatchNorm2d(inputs) for _ in range(copies))
        self.act2 = RPReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride] float32."""
        x = self.act1(self.bn1(self.conv3x3(sign_ste(self.sign1(x)))) + self.shortcut(x))
        bits = sign_ste(self.sign2(x))
        parts = [norm(conv(bits)) + x for conv, norm in zip(self.conv1x1, self.bn2, strict=True)]
        y: Tensor = self.act2(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return y


class ReActNet(Network):
    """First convolution and classifier float; stages of blocks, each of which doubles the channels in its first block.

    Args:
        width: channels of the first convolution.
        stages: blocks in each stage; all but the first stage halve the map.
    """

    input_shape = (3, 224, 224)

    def __init__(self, width: int = 32, stages: Sequence[int] = (1, 2, 2, 6, 2)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        for stage, count in enumerate(stages):
            blocks.append(ReActBlock(width, 2 * width, 1 if stage == 0 else 2))
            width *= 2
            blocks += [ReActBlock(width, width, 1) for _ in range(count - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 1000)

    @classmethod
    def for_state_dict(cls, state_dict: dict[str, Any]) -> ReActNet:
        """The first convolution says how wide the network is; a block with two 1x1 convolutions starts a stage."""
        weight = state_dict.get("conv1.weight")
        if weight is None:
            return cls()
        stages: list[int] = []
        while f"blocks.{sum(stages)}.conv1x1.0.weight" in state_dict:
            block = sum(stages)
            if f"blocks.{block}.conv1x1.1.weight" in state_dict:
                stages.append(1)
            elif stages:
                stages[-1] += 1
            else:
                break
        return cls(len(weight), tuple(stages))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] float32 -> [N, 1000] float32 logits."""
        x = self.blocks(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
