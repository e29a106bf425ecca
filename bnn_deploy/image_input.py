"""Images of bytes as the input of a model: how they are normalised, and where a model says it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.provenance import IMAGE_KEY, Properties

Layout = Literal["nchw", "nhwc"]

FULL = np.float32(255)
"""The byte that stands for 1."""


@dataclass(frozen=True)
class ImageInput:
    """Images as cameras and decoders give them, in place of normalised floats.

    A byte q of channel c stands for (q / 255 - mean[c]) / std[c], each step in float32, as torchvision's ToTensor and
    Normalize compute it.

    Attributes:
        mean: what is subtracted, in units of the largest byte: one number, or one for each channel.
        std: what it is divided by, likewise; positive.
        layout: "nchw" for uint8 [N, C, H, W], "nhwc" for [N, H, W, C]; the other dimensions of other ranks alike.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one is not finite, or a std is not positive, or the layout is unknown.
        """
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            array = np.array(numbers, np.float32)
            if array.ndim != 1 or not array.size or not np.isfinite(array).all():
                raise InputError(f"{name} {listed(numbers)}: give one finite number, or one for each channel")
            if name == "std" and not (array > 0).all():
                raise InputError(f"std {listed(numbers)}: each must be above 0")
        if self.layout not in ("nchw", "nhwc"):
            raise InputError(f"layout {self.layout!r}: there are nchw and nhwc")

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network reads: float32 [N, C, H, W].

        Args:
            images: uint8, in this layout.
        """
        first = np.ascontiguousarray(np.moveaxis(images, -1, 1)) if self.layout == "nhwc" else images
        x: NDArray[np.float32] = first.astype(np.float32) / FULL
        column = (-1, *[1] * (x.ndim - 2))
        for operator, numbers in self.steps():
            operand = np.array(numbers, np.float32).reshape(column)
            x = x - operand if operator == "Sub" else x / operand
        return x

    def steps(self) -> list[tuple[str, tuple[float, ...]]]:
        """What follows the division by FULL: operators and their numbers; none for a mean of 0 and a std of 1."""
        steps = [("Sub", self.mean, 0.0), ("Div", self.std, 1.0)]
        return [(operator, numbers) for operator, numbers, neutral in steps if any(n != neutral for n in numbers)]

    def stored(self, sample: Sequence[Any]) -> tuple[Any, ...]:
        """The shape of an image in this layout, of one with its channels first; both without the batch."""
        return (*sample[1:], sample[0]) if self.layout == "nhwc" else tuple(sample)

    def channels_first(self, sample: Sequence[Any]) -> tuple[Any, ...]:
        """The other way round."""
        return (sample[-1], *sample[:-1]) if self.layout == "nhwc" else tuple(sample)

    def metadata(self) -> dict[str, str]:
        """Metadata of a model that takes such images."""
        return {IMAGE_KEY: json.dumps(asdict(self))}


def read_image_input(metadata: Properties) -> ImageInput | None:
    """The images that a model takes, by its metadata; None if it takes floats."""
    text = metadata.get(IMAGE_KEY)
    if text is None:
        return None
    found = json.loads(text)
    return ImageInput(tuple(found["mean"]), tuple(found["std"]), found["layout"])


def normalised_name(name: str) -> str:
    """The tensor that an input of floats becomes."""
    return f"{name}_normalised"


def listed(numbers: Sequence[float]) -> str:
    """Such as "0.485,0.456,0.406", as the options take them."""
    return ",".join(f"{number:g}" for number in numbers)
