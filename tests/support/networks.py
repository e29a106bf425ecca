"""Checkpoints for tests: trained ones where they exist, else seeded weights with BatchNorm calibrated on real images.

With default BatchNorm statistics most signs of a random network are constant, and a corrupted layer goes unnoticed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import bnn_deploy
from bnn_deploy.architectures import ARCHITECTURES, Network
from bnn_deploy.source.checkpoint import load_module
from bnn_deploy.training import WeightBinarizer

DEMO_DATA = Path(bnn_deploy.__file__).parent / "demo_data"
NIN = Path(__file__).parents[2] / "examples" / "nin"
TRAINED = {"lenet5": DEMO_DATA / "lenet5.pth.tar", "nin": NIN / "nin.pth.tar"}
"""The checkpoints of the trained architectures."""


def mnist() -> tuple[Tensor, Tensor]:
    """The embedded test images, normalised as in training, [1000, 1, 28, 28] float32, and their labels [1000]."""
    with np.load(DEMO_DATA / "mnist_1000.npz") as data:
        images, labels = data["images"].astype(np.float32), data["labels"].astype(np.int64)
    return (torch.from_numpy(images) / 255 - 0.1307) / 0.3081, torch.from_numpy(labels)


def images(shape: tuple[int, ...], count: int, first: int = 0) -> Tensor:
    """Real images of a network's input shape [..., H, W]: MNIST digits, enlarged, a different digit in each channel."""
    digits, _ = mnist()
    channels = math.prod(shape[:-2])
    index = (torch.arange(count * channels) + first * channels) % len(digits)
    stacked = digits[index, 0].reshape(count, channels, 28, 28)
    if shape[-2:] != (28, 28):
        stacked = nn.functional.interpolate(stacked, size=shape[-2:], mode="bilinear")
    return stacked.reshape(count, *shape).contiguous()


def inputs(arch: str, count: int, first: int = 0) -> Tensor:
    """Images [count, C, H, W] float32 for the network `arch`, beginning with image `first`."""
    if arch != "nin":
        return images(ARCHITECTURES[arch].input_shape, count, first)
    with np.load(NIN / "cifar10_100.npz") as data:
        cifar = torch.from_numpy(data["input"])
    return cifar[(torch.arange(count) + first) % len(cifar)]


def calibrate(model: nn.Module, weights: list[nn.Parameter], data: Tensor, seed: int) -> None:
    """Set random gammas and betas, then take BatchNorm statistics from `data`, with binarised weights."""
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        if norm.affine:
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.3, generator=generator)
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad(), WeightBinarizer(weights):
        for batch in data.split(16):
            model(batch)
    model.eval()


def random_network(arch: str, seed: int = 0, samples: int = 64) -> Network:
    """A network of the recipe with calibrated BatchNorm."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[arch]()
    calibrate(model, model.binary_weights(), images(model.input_shape, samples), seed)
    return model


def network(arch: str, samples: int = 64) -> nn.Module:
    """The trained network where it exists, else a random one calibrated on `samples` images."""
    return load_module(TRAINED[arch], arch) if arch in TRAINED else random_network(arch, samples=samples)


def checkpoint(arch: str, folder: Path, samples: int = 64) -> Path:
    """The checkpoint of `network`; a random one is written into `folder`."""
    if arch in TRAINED:
        return TRAINED[arch]
    return write_checkpoint(random_network(arch, samples=samples), folder / f"{arch}.pth.tar")


def write_checkpoint(model: nn.Module, path: Path) -> Path:
    """Save in the recipe's format."""
    torch.save({"best_acc": 0.0, "state_dict": model.state_dict()}, path)
    return path


class Signed(nn.Module):
    """A layer that reads the signs of the network's own input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(torch.sign(x))
        return result
