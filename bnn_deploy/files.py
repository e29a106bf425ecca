"""Writing files so that no half-written one is ever left."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, or nothing: under a temporary name in the same folder first, which is then renamed.

    Raises:
        OSError: the folder is not there or cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
