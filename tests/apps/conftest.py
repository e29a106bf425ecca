"""The trained NIN as a model of bytes, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.image_input import ImageInput
from bnn_deploy.preprocessing import Preprocessing
from support.apps import NAMES
from support.networks import NIN, checkpoint


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It takes uint8 [N, 32, 32, 3], and pictures of any size become that."""
    folder = tmp_path_factory.mktemp("model")
    return convert(
        checkpoint("nin", folder),
        folder / "nin.onnx",
        arch="nin",
        image_input=ImageInput((0.5,), (0.5,), "nhwc"),
        preprocessing=Preprocessing(size=32, crop=32),
        classes=NAMES,
    ).output


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    """CIFAR-10 test images, uint8 [20, 32, 32, 3] of red, green, blue."""
    with np.load(NIN / "cifar10_100.npz") as data:
        return np.rint((np.moveaxis(data["input"][:20], 1, -1) * 0.5 + 0.5) * 255).astype(np.uint8)
