"""Small networks whose signs are moved on their way to the binary layers: dense, shuffled and U-shaped ones.

In each of them a tensor is binarised once, and its signs are concatenated, split, shuffled or enlarged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.author_networks import BinConv2d, LegacySign


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1."""
    result: Tensor = LegacySign.apply(x)  # type: ignore[no-untyped-call]
    return result


class SignConv2d(BinConv2d):
    """A BinConv2d whose input is ±1 already, so that forward() takes the sign of its weights alone."""

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, alpha * sign(self.weight), self.bias, self.stride, self.padding, groups=self.groups)


class DenseNet(nn.Module):
    """Two dense blocks: every layer reads the signs of all layers before it; between them, 1x1 layer and pool."""

    input_shape = (3, 8, 8)

    def __init__(self, width: int = 32, growth: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            inputs = [width + growth * i for i in range(layers)]
            convs = [SignConv2d(count, growth, 3, padding=1, bias=False) for count in inputs]
            self.blocks.append(nn.ModuleList(convs))
            self.blocks.append(nn.ModuleList([nn.BatchNorm2d(growth) for _ in inputs]))
        self.between, self.shrunk = SignConv2d(width + growth * layers, width, 1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width + growth * layers, 10)

    def forward(self, x: Tensor) -> Tensor:
        signs = sign(self.norm(self.stem(x)))
        for i in (0, 2):
            for conv, norm in zip(self.blocks[i], self.blocks[i + 1], strict=True):  # type: ignore[arg-type]
                signs = torch.cat([signs, sign(norm(conv(signs)))], dim=1)
            if i == 0:
                signs = sign(self.shrunk(F.max_pool2d(self.between(signs), 2)))
        logits: Tensor = self.fc(signs.mean((2, 3)))
        return logits


class ShuffleNet(nn.Module):
    """Units of ShuffleNet v2: half of the signs passes by, the other goes through layers, and both are shuffled."""

    input_shape = (3, 8, 8)

    def __init__(self, half: int = 32, units: int = 2) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 2 * half, 3, padding=1, bias=False), nn.BatchNorm2d(2 * half)
        self.mixes = nn.ModuleList([SignConv2d(half, half, 1, bias=False) for _ in range(units)])
        self.convs = nn.ModuleList([SignConv2d(half, half, 3, padding=1, groups=4, bias=False) for _ in range(units)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(half) for _ in range(2 * units)])
        self.last, self.fc = SignConv2d(2 * half, 48, 1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        signs = sign(self.norm(self.stem(x)))
        for i, (mix, conv) in enumerate(zip(self.mixes, self.convs, strict=True)):
            left, right = signs.chunk(2, dim=1)
            right = sign(self.norms[2 * i](mix(right)))
            right = sign(self.norms[2 * i + 1](conv(right)))
            both = torch.cat([left, right], dim=1)
            n, c, h, w = both.shape
            signs = both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        logits: Tensor = self.fc(torch.relu(self.last(signs)).mean((2, 3)))
        return logits


class UNet(nn.Module):
    """Down by a MaxPool, up by a nearest Resize, and by a pixel shuffle; the signs of each level are concatenated."""

    input_shape = (3, 8, 8)

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down1 = SignConv2d(width, 2 * width, 3, padding=1, bias=False)
        self.down2 = SignConv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.up1 = SignConv2d(6 * width, 2 * width, 3, padding=1, bias=False)
        self.up2 = SignConv2d(width + width // 2, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(count * width) for count in (1, 2, 4, 2, 1)])
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        full = sign(self.norms[0](self.stem(x)))
        half = sign(self.norms[1](self.down1(F.max_pool2d(full, 2))))
        quarter = sign(self.norms[2](self.down2(F.max_pool2d(half, 2))))
        up = F.interpolate(quarter, scale_factor=2, mode="nearest")
        up = sign(self.norms[3](self.up1(torch.cat([up, half], dim=1))))
        up = torch.cat([F.pixel_shuffle(up, 2), full], dim=1)
        pixels: Tensor = self.head(self.norms[4](self.up2(up)))
        return pixels
