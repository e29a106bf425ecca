"""Writing files without leaving half-written ones; sizes of model files."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path


def write_files(files: Mapping[str | os.PathLike[str], bytes]) -> None:
    """Write files, all of them or none: each under a temporary name in its own folder first; then all are renamed.

    Args:
        files: path -> content.

    Raises:
        OSError: a folder is not there or cannot be written, or the disk is full.
    """
    temporaries = {Path(path): Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}.tmp") for path in files}
    try:
        for temporary, content in zip(temporaries.values(), files.values(), strict=True):
            with temporary.open("xb") as file:
                file.write(content)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def model_bytes(path: str | os.PathLike[str]) -> int:
    """Size of an .onnx file together with the external data files that it names, in bytes.

    A file that keeps its weights in another one has, per tensor, an `external_data` entry ("location", file name). The
    entry is found by its encoding, because parsing the file would need the onnx package.
    """
    path = Path(path)
    content = path.read_bytes()
    # StringStringEntryProto: field 1 (key), length 8, "location"; field 2 (value), length in one byte, the file name.
    names = {
        content[found.end() : found.end() + found[1][0]]
        for found in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])", content)
    }
    files = [path.parent / os.fsdecode(name) for name in names if b"\0" not in name]
    return len(content) + sum(file.stat().st_size for file in files if file.is_file())
