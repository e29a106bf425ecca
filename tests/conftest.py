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


def _converted(arch: str, checkpoint: Path, folder: Path, images: int) -> Converted:
    import networks

    from bnn_deploy.architectures import ARCHITECTURES
    from bnn_deploy.conversion import convert

    conversion = convert(checkpoint, folder / f"{arch}.onnx", arch=arch, float_output=folder / f"{arch}_float.onnx")
    return Converted(
        checkpoint, conversion, networks.images(ARCHITECTURES[arch].input_shape, images, first=500).numpy()
    )


def _random(arch: str, folder: Path, calibration: int, images: int) -> Converted:
    import networks

    network = networks.random_network(arch, samples=calibration)
    return _converted(arch, networks.write_checkpoint(network, folder / f"{arch}.pth.tar"), folder, images)


@pytest.fixture(scope="session")
def lenet5(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The trained LeNet-5 of the demo. Only to be read: tests that change a file copy it."""
    import networks

    return _converted("lenet5", networks.DEMO_DATA / "lenet5.pth.tar", tmp_path_factory.mktemp("lenet5"), 32)


@pytest.fixture(scope="session")
def nin(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A NIN with seeded weights and calibrated BatchNorm. Only to be read."""
    return _random("nin", tmp_path_factory.mktemp("nin"), 32, 8)


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """An AlexNet with seeded weights and calibrated BatchNorm. Only to be read."""
    return _random("alexnet", tmp_path_factory.mktemp("alexnet"), 8, 2)
