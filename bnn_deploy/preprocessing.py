"""How images become the input of a network: the part of its training's transforms that inference repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from bnn_deploy.errors import InputError
from bnn_deploy.image_input import ImageInput
from bnn_deploy.provenance import PREPROCESSING_KEY

Size = int | tuple[int, int]
"""The shorter side in pixels, or (height, width)."""


MAX_SIDE = 65_500
"""The largest side of an image in pixels: what a JPEG file can hold."""


@dataclass(frozen=True)
class Preprocessing:
    """torchvision's Compose([Resize(size), CenterCrop(crop), ToTensor(), Normalize(mean, std)]), in this order.

    Attributes:
        size: Resize: an int is the length of the shorter side, and the other keeps the aspect ratio; (height, width) is
            exact. Bilinear and antialiased, as torchvision resizes Pillow's images. None leaves images as large as they
            are.
        crop: CenterCrop: an int is the side of a square; what is outside of a smaller image is black. None crops
            nothing.
        mean: Normalize, in units of the largest byte: one number, or one for each channel; None if it is not known.
        std: likewise; positive.
    """

    size: Size | None = None
    crop: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: a size is not positive, or as in ImageInput.
        """
        for name in ("size", "crop"):
            value = getattr(self, name)
            for length in value if isinstance(value, tuple) else () if value is None else (value,):
                if not 1 <= length <= MAX_SIDE:
                    raise InputError(f"{name} {length}: give a number of pixels from 1 to {MAX_SIDE:,}")
        self.normalisation()

    def normalisation(self) -> ImageInput | None:
        """How bytes are normalised, for channels first; None if neither mean nor std is known."""
        if self.mean is None and self.std is None:
            return None
        return ImageInput((0.0,) if self.mean is None else self.mean, (1.0,) if self.std is None else self.std)

    def over(self, other: Preprocessing | None) -> Preprocessing:
        """This one, with what it leaves out as in another one."""
        if other is None:
            return self
        own = {name: value for name, value in vars(self).items() if value is not None}
        return replace(other, **own)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of an image after Resize."""
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        long = int(self.size * max(height, width) / min(height, width))
        return (self.size, long) if height <= width else (long, self.size)

    def metadata(self) -> dict[str, str]:
        """Metadata of a model whose input is made so."""
        return {PREPROCESSING_KEY: json.dumps(asdict(self))}


def read_preprocessing(metadata: Mapping[str, str]) -> Preprocessing | None:
    """The preprocessing that a model's metadata records; None if it records none.

    Raises:
        InputError: it is no such record.
    """
    text = metadata.get(PREPROCESSING_KEY)
    if text is None:
        return None
    try:
        found = json.loads(text)
        return Preprocessing(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"its metadata {PREPROCESSING_KEY} is no preprocessing: convert the model again") from error
