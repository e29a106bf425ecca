""".npy and .npz files, without their content."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from bnn_deploy.data.rows import Lazy, Rows, stored
from bnn_deploy.errors import InputError, reading

_NEITHER = "not a .npy or .npz file of plain arrays"


def open_arrays(path: Path) -> dict[str, Rows]:
    """The arrays of an .npz file by name; the array of an .npy file has the name ''.

    Raises:
        InputError: not a file of plain arrays. Reading their rows raises it, too, if the file is damaged there.
    """
    with reading(path, _NEITHER):
        file = path.open("rb")
        if file.read(4) not in _ZIP:
            return {"": _guarded(_array(file, os.fstat(file.fileno()).st_size), path)}
        file.close()
        archive = zipfile.ZipFile(path)
        arrays: dict[str, Rows] = {}
        for entry in archive.infolist():
            name, member = entry.filename.removesuffix(".npy"), archive.open(entry)
            if member.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:  # numpy.savez writes no other
                raise InputError(f"{path}: its entry '{name}' is no array")
            arrays[name] = _guarded(_array(member, entry.file_size), path)
        return arrays


_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""How archives begin, and how empty ones do."""


def _array(file: IO[bytes], size: int) -> Rows:
    """The array of an .npy file of so many bytes."""
    file.seek(0)
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format holds no plain arrays")
    shape, by_columns, dtype = _HEADERS[version](file)
    start = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds objects")
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        raise ValueError(f"the shape {shape} is none")
    if (needed := int(np.prod(shape, dtype=object)) * dtype.itemsize) > size - start:
        raise EOFError(f"it has {size - start} bytes of data, the shape {shape} needs {needed}")
    if shape and not by_columns:
        return stored(file, start, shape, dtype)
    # A number alone has no rows, and those of an array in Fortran's order lie across the file: both as a whole.
    whole = stored(file, start, (1, *shape[::-1]), dtype)[0:1][0]
    return np.asarray(whole.T)


_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def _guarded(rows: Rows, path: Path) -> Rows:
    """The rows, with whatever reading them raises about the file as an InputError."""
    if isinstance(rows, np.ndarray):
        return rows

    def read(start: int, stop: int) -> Any:
        with reading(path, _NEITHER):
            return rows[start:stop]

    return Lazy(rows.shape, rows.dtype, read)
