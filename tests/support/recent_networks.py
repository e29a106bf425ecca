"""Small networks in the idioms of later papers: transformers, point clouds, detectors, ternary and multi-base weights.

Each is written as its authors' repositories are: latent weights that forward() binarises, straight-through tricks left
in the graph. BatchNorm is calibrated, so that a wrong layer changes the output: see networks.py.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ste_sign(x: Tensor) -> Tensor:
    """Sign, with the clamp's gradient."""
    clipped = torch.clamp(x, -1, 1)
    return torch.sign(x).detach() - clipped.detach() + clipped


def scaled_sign(weight: Tensor) -> Tensor:
    """mean|W| * sign(W) of each filter."""
    dims = tuple(range(1, weight.ndim))
    return weight.abs().mean(dims, keepdim=True) * torch.sign(weight)


class SignConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(ste_sign(x), scaled_sign(self.weight), self.bias, self.stride, self.padding)


class SignLinear(nn.Linear):
    """BiBERT's: the weights are centred as a whole, and have one scale."""

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean()
        return F.linear(torch.sign(x), torch.sign(centred) * self.weight.abs().mean(), self.bias)


# --- transformers ---------------------------------------------------------------------------------------------------


class BiBert(nn.Module):
    """Bi-Attention: signs of Q and K, a map of 0 and 1 in place of softmax, signs of V (Qin et al., ICLR 2022)."""

    input_shape = (8, 32)

    def __init__(self, channels: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (SignLinear(channels, channels) for _ in range(4))
        self.up, self.down = SignLinear(channels, 2 * channels), SignLinear(2 * channels, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 5)

    def split(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        return x.view(n, t, self.heads, c // self.heads).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        scores = torch.sign(q) @ torch.sign(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        attention = (scores >= 0).float()
        y = (attention @ torch.sign(v)).permute(0, 2, 1, 3).flatten(2)
        x = self.norm1(x + self.o(y))
        x = self.norm2(x + self.down(self.up(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Elastic(nn.Module):
    """BiT's elastic binarisation: a learned scale and offset, to ±1 or to 0 and 1 (Liu et al., NeurIPS 2022)."""

    def __init__(self, positive: bool) -> None:
        super().__init__()
        self.positive = positive
        self.alpha = nn.Parameter(torch.tensor(0.1 if positive else 0.7))
        self.beta = nn.Parameter(torch.tensor(0.02))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.beta) / self.alpha
        bits = torch.round(torch.clamp(x, 0, 1)) if self.positive else torch.sign(x)
        return bits * self.alpha


class BiT(nn.Module):
    """Softmax attention whose map is rounded to 0 and alpha, and a ReLU network of 0 and alpha."""

    input_shape = (8, 32)

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(channels, channels) / 6) for _ in range(6))
        self.elastic = nn.ModuleList(Elastic(name == "map" or name == "relu") for name in self.places)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 5)

    places = ("in", "q", "k", "v", "map", "out", "up", "relu")

    def linear(self, i: int, x: Tensor) -> Tensor:
        weight = self.weights[i]
        return F.linear(x, torch.sign(weight - weight.mean()) * weight.abs().mean())

    def forward(self, x: Tensor) -> Tensor:
        step = dict(zip(self.places, self.elastic, strict=True))
        tokens = step["in"](x)
        q, k, v = (self.linear(i, tokens) for i in range(3))
        scores = step["q"](q) @ step["k"](k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        y = step["map"](scores.softmax(-1)) @ step["v"](v)
        x = self.norm1(x + self.linear(3, step["out"](y)))
        hidden = step["relu"](F.relu(self.linear(4, step["up"](x))))
        logits: Tensor = self.head(self.norm2(x + self.linear(5, hidden)).mean(1))
        return logits


class Mixer(nn.Module):
    """An MLP-Mixer block: binary linear layers over tokens, then over channels, BatchNorm in front of each."""

    input_shape = (3, 16, 16)

    def __init__(self, channels: int = 32, tokens: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(3))
        self.mix = nn.ModuleList([SignLinear(tokens, 32), SignLinear(32, tokens)])
        self.mlp = nn.ModuleList([SignLinear(channels, 64), SignLinear(64, channels)])
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)  # [N, C, T]
        x = x + self.mix[1](F.gelu(self.mix[0](self.norms[0](x))) - 0.1)
        y = self.norms[1](x).transpose(1, 2)  # [N, T, C]
        x = x + self.mlp[1](F.gelu(self.mlp[0](y)) - 0.1).transpose(1, 2)
        logits: Tensor = self.head(self.norms[2](x).mean(2))
        return logits


class SignGRU(nn.Module):
    """A GRU whose inputs and states are binarised in front of both matrices, unrolled over four steps."""

    input_shape = (4, 32)

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.channels = channels
        self.x, self.h = SignLinear(channels, 3 * channels), SignLinear(channels, 3 * channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = 0.1 * x[:, 0]
        for t in range(x.shape[1]):
            xr, xz, xn = self.x(x[:, t]).chunk(3, 1)
            hr, hz, hn = self.h(state - 0.05).chunk(3, 1)
            reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            state = (1 - update) * torch.tanh(xn + reset * hn) + update * state
        logits: Tensor = self.head(state)
        return logits


# --- other shapes of data -------------------------------------------------------------------------------------------


class BiPointNet(nn.Module):
    """Shared layers over points as 1-D convolutions, a maximum over points, linear layers (Qin et al., ICLR 2021)."""

    input_shape = (3, 64)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(o, i, 1) / 6) for i, o in [(32, 64), (64, 128)])
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(1) + 0.5) for _ in range(2))
        self.bns = nn.ModuleList([nn.BatchNorm1d(64), nn.BatchNorm1d(128)])
        self.fc1, self.bn3 = SignLinear(128, 64), nn.BatchNorm1d(64)
        self.fc2 = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x))
        for weight, scale, bn in zip(self.weights, self.scales, self.bns, strict=True):
            x = bn(F.conv1d(torch.sign(x), torch.sign(weight)) * scale)  # the layer-wise scale recovery
        x = x.max(2).values - 0.5
        logits: Tensor = self.fc2(self.bn3(self.fc1(x)))
        return logits


class SignUNet(nn.Module):
    """An encoder and a decoder of binary transposed convolutions, with skips that are concatenated."""

    input_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.down1, self.bn1 = SignConv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.down2, self.bn2 = SignConv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64)
        self.up2, self.bn3 = nn.Parameter(torch.randn(64, 32, 4, 4) / 6), nn.BatchNorm2d(32)
        self.mid, self.bn4 = SignConv2d(64, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.up1, self.bn5 = nn.Parameter(torch.randn(32, 16, 3, 3) / 6), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn0(self.stem(x))
        b = self.bn1(self.down1(a))
        c = self.bn2(self.down2(b))
        d = self.bn3(F.conv_transpose2d(torch.sign(c), torch.sign(self.up2) * 0.05, stride=2, padding=1))
        e = self.bn4(self.mid(torch.cat([b, d], 1)))
        f = self.bn5(F.conv_transpose2d(torch.sign(e), torch.sign(self.up1) * 0.05, None, 2, 1, 1))
        masks: Tensor = self.last(torch.cat([a, f], 1))
        return masks


class SignDense(nn.Module):
    """A dense block: each layer reads all features so far; the transition shuffles channels and pools."""

    input_shape = (3, 16, 16)

    def __init__(self, growth: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.bns = nn.ModuleList(nn.BatchNorm2d(32 + i * growth) for i in range(3))
        self.convs = nn.ModuleList(SignConv2d(32 + i * growth, growth, 3, padding=1) for i in range(3))
        self.bn, self.transition = nn.BatchNorm2d(32 + 3 * growth), SignConv2d(32 + 3 * growth, 48, 1)
        self.fc = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for bn, conv in zip(self.bns, self.convs, strict=True):
            x = torch.cat([x, conv(bn(x))], 1)
        n, c, h, w = x.shape
        x = self.bn(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        logits: Tensor = self.fc(F.avg_pool2d(self.transition(x), 2).mean((2, 3)))
        return logits


class Sign3d(nn.Module):
    """A video network: 3-D convolutions, strided, and a max pool."""

    input_shape = (2, 8, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv3d(2, 16, 3, padding=1), nn.BatchNorm3d(16)
        self.w1, self.bn1 = nn.Parameter(torch.randn(32, 16, 3, 3, 3) / 6), nn.BatchNorm3d(32)
        self.w2, self.bn2 = nn.Parameter(torch.randn(32, 32, 3, 3, 3) / 6), nn.BatchNorm3d(32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.bn0(self.stem(x)), (1, 2, 2))
        x = F.max_pool3d(F.conv3d(ste_sign(x), scaled_sign(self.w1), None, 1, 1), 2)
        x = F.conv3d(ste_sign(self.bn1(x)), scaled_sign(self.w2), None, (2, 1, 1), 1)
        logits: Tensor = self.fc(self.bn2(x).mean((2, 3, 4)))
        return logits


class Detector(nn.Module):
    """Two heads at two scales over one binary backbone: class scores and boxes."""

    input_shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.bn1 = SignConv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = SignConv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64)
        self.side, self.bn3 = SignConv2d(96, 32, 1), nn.BatchNorm2d(32)
        self.coarse, self.fine = nn.Conv2d(64, 9, 1), nn.Conv2d(32, 9, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.bn1(self.conv1(self.bn0(self.stem(x))))
        b = self.bn2(self.conv2(F.leaky_relu(a, 0.1)))
        up = F.interpolate(b, scale_factor=2.0, mode="nearest")
        c = self.bn3(self.side(torch.cat([a, up], 1)))
        return self.coarse(F.leaky_relu(b, 0.1)), self.fine(F.leaky_relu(c, 0.1))


# --- values other than ±1 -------------------------------------------------------------------------------------------


class AdaBinConv2d(nn.Conv2d):
    """Two values around a centre, of activations and of each filter (Tu et al., ECCV 2022)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.distance, self.centre = nn.Parameter(torch.tensor(0.9)), nn.Parameter(torch.tensor(0.15))

    def forward(self, x: Tensor) -> Tensor:
        x = self.distance * (ste_sign((x - self.centre) / self.distance) + self.centre)
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = ((self.weight - mean) ** 2).mean((1, 2, 3), keepdim=True).sqrt()
        weight = torch.sign((self.weight - mean) / deviation) * deviation + mean
        return F.conv2d(x, weight, None, self.stride, self.padding)


class TernaryConv2d(nn.Conv2d):
    """Weights -negative, 0 and +positive of a threshold at 0.7 mean|W|; TWN has one of both scales, TTQ learns two."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, trained: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.trained = trained
        self.positive, self.negative = nn.Parameter(torch.tensor(0.11)), nn.Parameter(torch.tensor(0.07))

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.abs()
        threshold = 0.7 * size.mean((1, 2, 3), keepdim=True)
        above, below = (self.weight > threshold).float(), (self.weight < -threshold).float()
        if self.trained:
            weight = self.positive * above - self.negative * below
        else:
            kept = above + below
            weight = (above - below) * (size * kept).sum((1, 2, 3), keepdim=True) / kept.sum((1, 2, 3), keepdim=True)
        return F.conv2d(ste_sign(x), weight, None, self.stride, self.padding)


class AbcConv2d(nn.Conv2d):
    """Three bases of the weights, sign(W - mean + u * std), and two of the activations (Lin et al., NIPS 2017)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.alphas = nn.Parameter(torch.tensor([0.05, 0.03, 0.02]))
        self.betas, self.shifts = nn.Parameter(torch.tensor([0.6, 0.4])), nn.Parameter(torch.tensor([0.2, 0.7]))

    def forward(self, x: Tensor) -> Tensor:
        centred, spread = self.weight - self.weight.mean(), self.weight.std()
        weight = sum(self.alphas[i] * torch.sign(centred + u * spread) for i, u in enumerate((-1.0, 0.0, 1.0)))
        total = torch.zeros(())
        for i in range(2):
            bits = torch.sign(torch.clamp(x + self.shifts[i], 0, 1) - 0.5)
            total = total + self.betas[i] * F.conv2d(bits, weight, None, self.stride, self.padding)
        return total


class LqConv2d(nn.Conv2d):
    """Two-bit activations on a learned basis, weights of one (Zhang et al., ECCV 2018): levels 0, v1, v2, v1 + v2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.basis = nn.Parameter(torch.tensor([0.45, 0.8]))

    def forward(self, x: Tensor) -> Tensor:
        v1, v2 = self.basis[0], self.basis[1]
        levels = torch.stack([0 * v1, v1, v2, v1 + v2])
        y = torch.zeros_like(x)
        for low, high in itertools.pairwise(levels):
            y = torch.where(x >= (low + high) / 2, high, y)
        return F.conv2d(y, scaled_sign(self.weight), None, self.stride, self.padding)


class FracConv2d(nn.Conv2d):
    """FracBNN's precision gate: one bit everywhere, two where the first sum is large (Zhang et al., FPGA 2021)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.threshold = nn.Parameter(torch.zeros(1, outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        step = 2.0 / 3.0
        x = torch.round((torch.clamp(x, -1, 1) + 1) / step) * step - 1
        weight = ste_sign(self.weight)
        coarse = F.conv2d(ste_sign(x), weight, None, self.stride, self.padding) * 2 / 3
        fine = F.conv2d(x, weight, None, self.stride, self.padding)
        mask = (torch.sigmoid(5 * (coarse - self.threshold)) > 0.5).float()
        return (1 - mask) * coarse + mask * fine


class XnorPlusConv2d(nn.Conv2d):
    """XNOR-Net++: the output times the product of a vector per channel, per row and per column (BMVC 2019)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, size: int = 16) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        out = size // stride
        self.alpha, self.beta, self.gamma = (
            nn.Parameter(torch.rand(shape) * 0.2 + 0.4) for shape in [(outputs, 1, 1), (1, out, 1), (1, 1, out)]
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(ste_sign(x), torch.sign(self.weight), None, self.stride, self.padding)
        return y * (self.alpha * self.beta * self.gamma)


class GatedConv2d(nn.Conv2d):
    """Real-to-Binary: a gate per channel, computed from the real input, scales the output (ICLR 2020)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.squeeze, self.excite = nn.Linear(inputs, 8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        return F.conv2d(ste_sign(x), scaled_sign(self.weight), None, self.stride, self.padding) * gate


class Residual(nn.Module):
    """A real stem, two residual convolutions of a kind, a strided one, and a real classifier."""

    input_shape = (3, 16, 16)

    def __init__(self, conv: type[nn.Conv2d], **options: object) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.convs = nn.ModuleList(conv(48, 48, 3, **options) for _ in range(2))
        self.bns = nn.ModuleList(nn.BatchNorm2d(48) for _ in range(2))
        self.down, self.bn3 = conv(48, 64, 3, 2, **options), nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x))
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = x + bn(conv(x))
        logits: Tensor = self.fc(self.bn3(self.down(x)).mean((2, 3)))
        return logits
