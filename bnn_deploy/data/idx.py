"""MNIST's IDX files, also compressed by gzip: train-images-idx3-ubyte.gz, with train-labels-idx1-ubyte.gz beside it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.data.rows import Lazy, Rows, stored
from bnn_deploy.errors import reading

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_GZIP = b"\x1f\x8b"


def is_idx(path: Path) -> bool:
    """Whether a file begins as an IDX file does."""
    try:
        with _open(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _TYPES and head[3] > 0


def open_idx(path: Path) -> Rows:
    """The array of an IDX file.

    Raises:
        InputError: it is damaged; reading the rows raises it, too.
    """
    with reading(path, _DAMAGED):
        file = _open(path)
        _, _, kind, rank = file.read(4)
        sizes = file.read(4 * rank)
        if len(sizes) < 4 * rank:
            raise EOFError("it ends in its header")
        shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * rank, 4))
        rows = stored(file, 4 + 4 * rank, shape, np.dtype(_TYPES[kind]))

    def read(start: int, stop: int) -> NDArray[Any]:
        with reading(path, _DAMAGED):
            return rows[start:stop]

    return Lazy(shape, rows.dtype, read)


_DAMAGED = "a damaged IDX file"


def labels_beside(path: Path) -> Path | None:
    """The file of labels that belongs to one of images by its name, in the same folder; None if there is none."""
    name = path.name.removesuffix(".gz")
    own = name.replace("images", "labels").replace("idx3", "idx1")
    found = (path.with_name(own + suffix) for suffix in ("", ".gz"))
    return next((file for file in found if own != name and file.is_file()), None)


def _open(path: Path) -> IO[bytes]:
    file = path.open("rb")
    compressed = file.read(2) == _GZIP
    file.seek(0)
    return gzip.open(file) if compressed else file  # type: ignore[return-value]
