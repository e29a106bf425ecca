"""Reads Darknet's .weights files: float32 numbers in the order of the layers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, reading
from bnn_deploy.files import require_file
from bnn_deploy.source.darknet.cfg import Section


class WeightsFile:
    """A .weights file, read from the first layer to the last.

    Its header is int32 major, minor and revision, and the number of images that training has seen: uint64 from version
    0.2 on, else uint32. Then come the parameters, little-endian float32.

    Attributes:
        transposed: whether the weights of [connected] layers are stored as [inputs, outputs], as old versions did.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = os.fspath(path)
        require_file(path)
        with reading(path, "the weights cannot be read"):
            content = Path(path).read_bytes()
        version = np.frombuffer(content[:12], "<i4") if len(content) >= 12 else np.zeros(3, np.int32)
        major, minor = (int(number) for number in version[:2])
        header = 20 if 10 * major + minor >= 2 else 16
        if len(content) < header:
            raise InputError(
                f"{self._name}: it has {len(content)} bytes, less than the header of a Darknet .weights file"
            )
        self.transposed = major > 1000 or minor > 1000
        self._rest = len(content) % 4
        self._numbers = np.frombuffer(content, "<f4", (len(content) - header) // 4, header)
        self._position = 0
        self._last: Section | None = None
        self._fault = ""  # told at the end: in a file of another length, the numbers mean something else

    def take(self, section: Section, what: str, *shape: int) -> NDArray[np.float32]:
        """The next parameters, which are `what` of the layer of `section`.

        Raises:
            InputError: the file ends before.
        """
        count, left = int(np.prod(shape)), len(self._numbers) - self._position
        if left < count:
            raise InputError(
                f"{self._name}: it ends in layer {section.index} ([{section.kind}], {section.file}:{section.line}), "
                f"with {left} of the {count} numbers of its {what}: it belongs to another .cfg, or is truncated"
            )
        values = self._numbers[self._position : self._position + count]
        self._position += count
        self._last = section
        negative = "variance" in what and values.min() < 0
        fault = "a number below 0" if negative else "" if np.isfinite(values).all() else "NaN or infinity"
        if fault and not self._fault:
            self._fault = (
                f"the {what} of layer {section.index} ([{section.kind}], {section.file}:{section.line}) hold {fault}"
            )
        return values.reshape(shape).astype(np.float32)

    def require_end(self, cfg: Section) -> None:
        """Check that all parameters were taken, and are sound.

        Args:
            cfg: any section of the .cfg file.

        Raises:
            InputError: some are left, or hold what none can be.
        """
        left = 4 * (len(self._numbers) - self._position) + self._rest
        if left:
            last = self._last
            end = "none of its layers has weights"
            if last is not None:
                end = f"layer {last.index} ([{last.kind}], line {last.line}), the last one with weights, ends before"
            raise InputError(
                f"{self._name}: it has {left} bytes more than {cfg.file} needs: {end}; it belongs to another .cfg"
            )
        if self._fault:
            raise InputError(f"{self._name}: {self._fault}: the training diverged, or it belongs to another .cfg")
