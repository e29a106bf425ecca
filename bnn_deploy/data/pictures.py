"""Images before they are a network's input: files, or arrays of bytes; and how they become that input."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.data.rows import Lazy, Rows
from bnn_deploy.errors import InputError, SetupError, reading
from bnn_deploy.image_input import listed
from bnn_deploy.installation import install_command
from bnn_deploy.preprocessing import MAX_SIDE, Preprocessing, Size

if TYPE_CHECKING:
    from PIL import Image


class Pictures(Protocol):
    """Images of any sizes."""

    def __len__(self) -> int:
        """Their number."""
        ...

    def name(self, index: int) -> str:
        """What to call one in errors and reports: its file in the folder; "" if it has no name."""
        ...

    def open(self, index: int, channels: int | None = None) -> Image.Image | NDArray[np.uint8]:
        """One of them.

        Args:
            index: which one.
            channels: 1 for grey, 3 for RGB; None for those of the array, or of a file RGB.

        Returns:
            A Pillow image, or uint8 [H, W, channels].
        """
        ...


class ArrayPictures:
    """Images in an array of bytes, [N, H, W], [N, H, W, C] or [N, C, H, W], of 1 or 3 channels."""

    def __init__(self, rows: Rows, origin: str) -> None:
        """For the array, and the name of its file.

        Raises:
            InputError: it does not look like images.
        """
        self._rows, self._origin = rows, origin
        channels = [axis for axis in (3, 1) if len(rows.shape) == 4 and rows.shape[axis] in (1, 3)]
        if rows.dtype != np.uint8 or (len(rows.shape) != 3 and not channels):
            raise InputError(
                f"{origin}: {rows.dtype} {list(rows.shape)} are no images: those are uint8 [N, H, W], [N, H, W, C] or "
                "[N, C, H, W] of 1 or 3 channels"
            )
        self._axis = channels[0] if channels else None

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """None of them has a name."""
        return ""

    def open(self, index: int, channels: int | None = None) -> NDArray[np.uint8]:
        """See Pictures."""
        image: NDArray[np.uint8] = self._rows[index : index + 1][0]
        image = image[..., np.newaxis] if self._axis is None else np.moveaxis(image, self._axis - 1, -1)
        if channels is not None and channels != image.shape[2]:
            raise InputError(f"{self._origin}: its images have {image.shape[2]} channels; the model needs {channels}")
        return image


class FloatPictures:
    """Normalised images in an array of floats, [N, H, W], [N, H, W, C] or [N, C, H, W], to be looked at.

    How they were normalised is not known: each is stretched from its smallest number, black, to its largest, white.
    """

    def __init__(self, rows: Rows) -> None:
        """For such an array."""
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """None of them has a name."""
        return ""

    def open(self, index: int, channels: int | None = None) -> NDArray[np.uint8]:
        """See Pictures."""
        floats = self._rows[index : index + 1].astype(np.float64)
        low, high = floats.min(), floats.max()
        stretched = (floats - low) * (255 / (high - low) if high > low else 0)
        return ArrayPictures(stretched.round().astype(np.uint8), "").open(0)


EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision.datasets.folder.IMG_EXTENSIONS: the files of a folder that are images."""


class FilePictures:
    """Images in files."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        """For files by their paths in a folder."""
        self._folder, self._files = folder, files

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """Its path in the folder."""
        return self._files[index]

    def open(self, index: int, channels: int | None = None) -> Image.Image:
        """See Pictures."""
        path = self._folder / self._files[index]
        return _decoded(path, path, channels)


FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of those that EXTENSIONS are for. It knows others, of which some start programs."""


class EncodedPicture:
    """An image in the content of its file, of which nobody says what it is: one of FORMATS."""

    def __init__(self, content: bytes) -> None:
        """For the content."""
        self._content = content

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        """It has none."""
        return ""

    def open(self, index: int, channels: int | None = None) -> Image.Image:
        """See Pictures."""
        return _decoded(_Unnamed(self._content), "image", channels, FORMATS)


class _Unnamed(io.BytesIO):
    """A file in memory, which Pillow's messages name."""

    def __repr__(self) -> str:
        return "in what was given"


def _decoded(
    file: Path | io.BytesIO, name: str | os.PathLike[str], channels: int | None, formats: Sequence[str] | None = None
) -> Image.Image:
    """The image in a file, as Pictures.open gives it; `name` is for errors, `formats` what it may be."""
    pillow = require_pillow()
    with reading(name, "not an image that Pillow can read"), pillow.open(file, formats=formats) as image:
        # By way of RGB, as ImageFolder and Grayscale: the own way of others, such as YCbCr, rounds otherwise.
        coloured: Image.Image = image.convert("RGB")
        return coloured.convert("L") if channels == 1 else coloured


def open_folder(folder: Path) -> tuple[FilePictures, NDArray[np.intp] | None, tuple[str, ...]]:
    """A folder of images, by the rules of torchvision's ImageFolder: one sub-folder per class, sorted by name.

    Returns:
        The images; the class of each; the classes' names. Without sub-folders, the images of the folder itself, without
        classes.

    Raises:
        InputError: there is no image, in a class or at all.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes or ["."]):
        before = len(files)
        walk = sorted(os.walk(folder / name, followlinks=True))
        for root, _, found in walk:
            paths = (Path(root, file).relative_to(folder) for file in sorted(found))
            files += [path.as_posix() for path in paths if path.name.lower().endswith(EXTENSIONS)]
        if len(files) == before:
            of = f"of its sub-folder '{name}', a class, " if classes else ""
            raise InputError(f"{folder}: no file {of}is an image ({', '.join(EXTENSIONS)})")
        labels += [label] * (len(files) - before)
    return FilePictures(folder, files), np.array(labels, np.intp) if classes else None, tuple(classes)


def prepared(pictures: Pictures, steps: Preprocessing, shape: Sequence[Any], dtype: str, origin: str) -> Rows:
    """Images as a model's input.

    Args:
        pictures: the images.
        steps: what becomes of them; for a model that takes bytes, its mean and std are the model's own business.
        shape: of the input, with the batch: [N, C, H, W], [N, H, W, C], [N, H, W] or [N, C * H * W]; sizes may be open.
        dtype: of the input: bytes stay bytes, floats are normalised.
        origin: the images' file or folder, for errors.

    Raises:
        InputError: the input is none of images; or it is of floats, and neither mean nor std is known. Reading the
            rows raises it, too: an image cannot be read, or does not become that input.
    """
    normalise = None if dtype == "uint8" else steps.normalisation()
    if dtype != "uint8" and normalise is None:
        raise InputError(
            f"{origin}: the model takes {dtype}, and nothing says how these images are normalised: give the mean and "
            "std of its training (0 and 1 leave x / 255)"
        )
    first = _read(pictures, 0, steps, None, origin)
    channels, axis = _channels(shape, first.shape, origin)
    if normalise is not None:
        if any(len(numbers) not in (1, channels) for numbers in (normalise.mean, normalise.std)):
            raise InputError(
                f"{origin}: mean {listed(normalise.mean)} and std {listed(normalise.std)}: give one number, or one for "
                f"each of {channels} channels"
            )
        normalise = replace(normalise, layout="nhwc")

    def read(start: int, stop: int) -> NDArray[Any]:
        images = [_read(pictures, index, steps, channels, origin) for index in range(start, stop)]
        for index, image in enumerate(images, start):
            if image.shape[:2] != first.shape[:2]:
                raise InputError(
                    f"{_which(pictures, index, origin)}: its size is {_size(image)}, that of the first one "
                    f"{_size(first)}: give size and crop"
                )
        last = np.stack(images) if images else np.zeros((0, *first.shape[:2], channels), np.uint8)
        batch = np.moveaxis(last, -1, 1) if normalise is None else normalise.normalise(last)
        batch = batch if axis is None else np.moveaxis(batch, 1, axis)
        return np.ascontiguousarray(batch).reshape(len(batch), *row)

    height, width = first.shape[:2]
    row = {4: (channels, height, width), 3: (height, width), 2: (channels * height * width,)}[len(shape)]
    row = (height, width, channels) if axis == 3 else row
    if any(isinstance(want, int) and want != size for want, size in zip(shape[1:], row, strict=True)):
        raise InputError(
            f"{origin}: its images become {list(row)}, and the model takes {list(shape[1:])}: give size and crop, such "
            "as size 256 and crop 224"
        )
    return Lazy((len(pictures), *row), "uint8" if normalise is None else dtype, read)


def _channels(shape: Sequence[Any], first: Sequence[int], origin: str) -> tuple[int, int | None]:
    """The channels of an input, and its axis of channels, 1 or 3; None without one.

    Args:
        shape: of the input, with the batch.
        first: [H, W, C] of the first image.
        origin: for errors.

    Raises:
        InputError: it is no input of images.
    """
    axis = next((axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in (1, 3)), None)
    if axis is not None:
        return int(shape[axis]), axis
    if len(shape) == 3:
        return 1, None
    if len(shape) == 2:
        return 1 if shape[1] == first[0] * first[1] else 3, None
    raise InputError(
        f"{origin}: holds images, and the model's input is {['N', *shape[1:]]}: that takes none of 1 or 3 channels"
    )


def _read(pictures: Pictures, index: int, steps: Preprocessing, channels: int | None, origin: str) -> NDArray[np.uint8]:
    """One image, resized and cropped: uint8 [H, W, C]."""
    image = pictures.open(index, channels)
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
    size = steps.resized(height, width)
    if min(size) < 1 or max(size) > MAX_SIDE:
        raise InputError(f"{_which(pictures, index, origin)}: {width}x{height} pixels cannot be resized to {size}")
    if size != (height, width):
        image = _as_pillow(image).resize(size[::-1], require_pillow().Resampling.BILINEAR)
    array: NDArray[np.uint8] = np.asarray(image)
    array = array[..., np.newaxis] if array.ndim == 2 else array
    return array if steps.crop is None else center_crop(array, steps.crop)


def center_crop(image: NDArray[np.uint8], crop: Size) -> NDArray[np.uint8]:
    """Cut out the middle of [H, W, C] as torchvision's CenterCrop does.

    A smaller image gets a black border first, the odd pixel below and right. Python rounds halves to the even number,
    and so is torchvision's offset.
    """
    wanted = (crop, crop) if isinstance(crop, int) else crop
    missing = [max(0, want - have) for want, have in zip(wanted, image.shape, strict=False)]
    if any(missing):
        image = np.pad(image, [*((less // 2, (less + 1) // 2) for less in missing), (0, 0)])
    top, left = (round((have - want) / 2) for want, have in zip(wanted, image.shape, strict=False))
    return image[top : top + wanted[0], left : left + wanted[1]]


def _which(pictures: Pictures, index: int, origin: str) -> str:
    name = pictures.name(index)
    return f"{origin}/{name}" if name else f"{origin}: sample {index}"


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def require_pillow() -> Any:
    """Pillow's module Image.

    Raises:
        SetupError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise SetupError(f"images are read with Pillow, which is not installed: {install_command('images')}") from None
    return Image


def png(image: Image.Image | NDArray[np.uint8], side: int) -> bytes:
    """A PNG file of an image that is no larger than a square of `side` pixels, and not enlarged."""
    small = _as_pillow(image).copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _as_pillow(image: Image.Image | NDArray[np.uint8]) -> Image.Image:
    if not isinstance(image, np.ndarray):
        return image
    made: Image.Image = require_pillow().fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return made


def has_pillow() -> bool:
    """Whether Pillow is installed."""
    return importlib.util.find_spec("PIL") is not None
