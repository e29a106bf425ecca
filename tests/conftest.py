"""Fixtures that several test files share. ARM64 runs some of them without torch: it is imported where needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bnn_deploy.conversion import Conversion


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with a fixed seed, anew for each test."""
    return np.random.default_rng(20161016)


@pytest.fixture
def seeded_torch() -> None:
    """Fix torch's global seed, which module initialisation, dropout and torch.randn draw from."""
    import torch

    torch.manual_seed(20161016)


@dataclass(frozen=True)
class Converted:
    """A checkpoint and what became of it.

    Attributes:
        checkpoint: its file.
        conversion: what `convert` did; it has the files of both models.
        images: [N, C, H, W] float32, which the BatchNorm statistics were not taken from.
    """

    checkpoint: Path
    conversion: Conversion
    images: NDArray[np.float32]

    @property
    def model(self) -> Path:
        """The converted model."""
        return self.conversion.output

    @property
    def float_model(self) -> Path:
        """The float ONNX model."""
        assert self.conversion.float_output is not None
        return self.conversion.float_output


def _converted(arch: str, factory: pytest.TempPathFactory, images: int, calibration: int = 0) -> Converted:
    import networks

    from bnn_deploy.conversion import convert

    folder = factory.mktemp(arch)
    checkpoint = networks.checkpoint(arch, folder, calibration)
    conversion = convert(checkpoint, folder / f"{arch}.onnx", arch=arch, float_output=folder / f"{arch}_float.onnx")
    return Converted(checkpoint, conversion, networks.inputs(arch, images, first=500).numpy())


@pytest.fixture(scope="session")
def lenet5(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The trained LeNet-5 of the demo. Only to be read: tests that change a file copy it."""
    return _converted("lenet5", tmp_path_factory, 32)


@pytest.fixture(scope="session")
def nin(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The NIN that was trained on CIFAR-10. Only to be read."""
    return _converted("nin", tmp_path_factory, 8)


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """An AlexNet with seeded weights and calibrated BatchNorm. Only to be read."""
    return _converted("alexnet", tmp_path_factory, 2, calibration=8)
