"""The converted networks of conftest.py's fixtures. ARM64 has no torch, so functions import it themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnn_deploy.proof.results import Verification

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bnn_deploy.conversion import Conversion


@dataclass(frozen=True)
class Converted:
    """A checkpoint and its conversion.

    Attributes:
        checkpoint: the checkpoint file.
        conversion: the result of `convert`, with the files of both models.
        images: [N, C, H, W] float32, not used for the BatchNorm statistics.
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


def convert_network(arch: str, folder: Path, images: int, calibration: int = 0) -> Converted:
    """Convert the checkpoint of `networks.checkpoint`.

    Args:
        arch: a built-in architecture.
        folder: gets the models, and the checkpoint of an untrained network.
        images: number of images in the result.
        calibration: number of images for the BatchNorm statistics of an untrained network.
    """
    from bnn_deploy.conversion import convert
    from support import networks

    checkpoint = networks.checkpoint(arch, folder, calibration)
    conversion = convert(checkpoint, folder / f"{arch}.onnx", arch=arch, float_output=folder / f"{arch}_float.onnx")
    return Converted(checkpoint, conversion, networks.inputs(arch, images, first=500).numpy())


def check(converted: Converted, against: Any, samples: int, **options: Any) -> Verification:
    """Verify a conversion on its first images."""
    from bnn_deploy.proof.verification import verify

    return verify(converted.model, against, data=converted.images[:samples], **({"reference_samples": 1} | options))
