"""Samples of which a part at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Rows(Protocol):
    """Samples [N, ...]; a numpy array is such."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...]."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of their numbers."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        """Some of them, one after the other."""
        ...


class Lazy:
    """Rows that a function reads.

    Attributes:
        shape: [N, ...].
        dtype: the type of their numbers.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, read: Callable[[int, int], NDArray[Any]]) -> None:
        """For a function from the index of the first row, and that behind the last, to the rows."""
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, step = part.indices(len(self))
        assert step == 1
        return self._read(start, max(start, stop))


def stored(file: IO[bytes], start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Lazy:
    """Rows that lie in a file one after the other from the byte `start` on; going back in a compressed file is slow."""
    size = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize

    def read(first: int, stop: int) -> NDArray[Any]:
        file.seek(start + first * size)
        content = memoryview(bytearray((stop - first) * size))
        done = 0
        while done < len(content):
            count = file.readinto(content[done:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"it ends in sample {first + done // size} of {shape[0]}")
            done += count
        return np.frombuffer(content, dtype).reshape(stop - first, *shape[1:])

    return Lazy(shape, dtype, read)


def chosen(rows: Rows, indices: NDArray[np.intp]) -> Rows:
    """The rows with these indices, which are in order."""
    if isinstance(rows, np.ndarray):
        return rows[indices]

    def read(start: int, stop: int) -> NDArray[Any]:
        wanted = indices[start:stop]
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        parts = [rows[run[0] : run[-1] + 1] for run in runs if len(run)]
        return np.concatenate(parts) if parts else rows[0:0]

    return Lazy((len(indices), *rows.shape[1:]), rows.dtype, read)


def mapped(rows: Rows, shape: tuple[int, ...], dtype: Any, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Rows:
    """The rows after a function of any number of them, whose results have this shape [N, ...] and type."""
    return Lazy(shape, dtype, lambda start, stop: function(rows[start:stop]))
