"""Reads Darknet's .cfg files: sections of keys and values, each with its line."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from bnn_deploy.errors import InputError, one_line, reading
from bnn_deploy.files import require_file

_KINDS = {
    "network": "net",
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "soft": "softmax",
}
"""Darknet's short names of sections -> the usual ones."""


@dataclass(frozen=True)
class Section:
    """A section of a .cfg file.

    Attributes:
        file: the file's name, for errors.
        kind: the name between the brackets, "convolutional" for "conv" and the like.
        line: its line in the file, from 1.
        index: the number by which other sections refer to its layer: 0 is the first behind [net], which has -1.
        options: key -> value, without spaces, and its line.
    """

    file: str
    kind: str
    line: int
    index: int
    options: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it stands, for errors: "net.cfg:57: [convolutional], layer 5"."""
        return f"{self.file}:{self.line}: [{self.kind}]" + (f", layer {self.index}" if self.index >= 0 else "")

    def error(self, what: str, key: str | None = None) -> InputError:
        """An error that names the section, and the line of `key` if that is given and the section has it."""
        if key is None or key not in self.options:
            return InputError(f"{self.place}: {what}")
        value, line = self.options[key]
        given = f"{one_line(key, 60)}={one_line(value, 60)}"
        return InputError(f"{self.file}:{line}: {given} in [{self.kind}], layer {self.index}: {what}")

    def text(self, key: str, default: str) -> str:
        """The value of a key."""
        return self.options[key][0] if key in self.options else default

    def integers(self, key: str) -> list[int]:
        """The comma-separated integers of a key; none if the section has no such key.

        Raises:
            InputError: one is no integer.
        """
        numbers = self.numbers(key)
        if any(number != int(number) for number in numbers):
            raise self.error("it takes integers", key)
        return [int(number) for number in numbers]

    def integer(self, key: str, default: int, least: int) -> int:
        """The integer of a key.

        Raises:
            InputError: it is none, or below `least`.
        """
        values = self.integers(key) or [default]
        if len(values) != 1 or values[0] < least:
            raise self.error(f"it takes one integer from {least} up", key)
        return values[0]

    def numbers(self, key: str) -> list[float]:
        """The comma-separated numbers of a key, a comment behind them left out; none if the section has no such key.

        Raises:
            InputError: one is no finite number.
        """
        text = self.text(key, "").split("#")[0].split(";")[0].rstrip(",")
        try:
            values = [float(part) for part in text.split(",")] if key in self.options else []
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            raise self.error("it takes numbers", key)
        return values

    def number(self, key: str, default: float) -> float:
        """The number of a key.

        Raises:
            InputError: it is none.
        """
        values = self.numbers(key) or [default]
        if len(values) != 1:
            raise self.error("it takes one number", key)
        return values[0]

    def require_keys(self, read: Collection[str], ignored: Collection[str], off: Collection[str]) -> None:
        """Refuse keys that may change what the layer computes.

        Args:
            read: keys that the converter reads.
            ignored: keys of training, or of Darknet's own memory and speed.
            off: keys that are known, and must be 0.

        Raises:
            InputError: another key, or one of `off` that is not 0.
        """
        for key in self.options:
            if key in off:
                if self.number(key, 0) != 0:
                    raise self.error("it is not converted; only 0, which leaves it out, can be", key)
            elif key not in read and key not in ignored:
                known = ", ".join(sorted(read)) or "none"
                raise self.error(f"this key is not known; [{self.kind}] takes {known}; and keys of training", key)


def read_cfg(path: str | os.PathLike[str]) -> list[Section]:
    """Read a .cfg file: [net], and one section per layer.

    Raises:
        InputError: no such file, no text, a line that is none of a .cfg file, or no [net] at its beginning.
    """
    file = os.fspath(path)
    require_file(path)
    with reading(path, "not a Darknet .cfg file"):
        lines = Path(path).read_bytes().decode().splitlines()
    sections: list[Section] = []
    for number, raw in enumerate(lines, 1):
        line = "".join(raw.split())  # as Darknet does: spaces mean nothing
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            kind = line[1:].split("]")[0]
            sections.append(Section(file, _KINDS.get(kind, kind), number, len(sections) - 1))
            continue
        key, equals, value = line.partition("=")
        if not (equals and key and value) or not sections:
            raise InputError(
                f"{file}:{number}: {one_line(raw.strip(), 60)!r} is neither [section] nor key=value behind one: "
                "not a Darknet .cfg file, or a damaged one"
            )
        sections[-1].options.setdefault(key, (value, number))  # the first counts, as in Darknet
    if not sections or sections[0].kind != "net":
        where = sections[0].place if sections else file
        raise InputError(f"{where}: a Darknet .cfg file begins with [net]")
    return sections
