"""What a file is that is neither ONNX nor a PyTorch checkpoint, told by its content."""

from __future__ import annotations

import zipfile
from pathlib import Path

from bnn_deploy.errors import option

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x93NUMPY", "a NumPy array, not a model"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes; export the model to ONNX, for example with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it to ONNX first, for example with tf2onnx"),
    (4, b"ORTM", "a model in onnxruntime's own format; give the .onnx file that it was made of"),
)
"""Bytes at an offset, and what the file is that holds them."""


def other_kind(path: Path) -> str | None:
    """What a file is that is no model of ours, and what to do; None if its content does not say."""
    try:
        return _other_kind(path)
    except Exception:  # whatever the reader of a damaged archive raises; who reads on says what is wrong
        return None


def _other_kind(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(16)
    for offset, magic, what in _MAGIC:
        if start[offset:].startswith(magic):
            return what
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive, not a model"
    if any(name.endswith("archive_format") for name in names):
        runs = f"{option('arch', 'exported-program')} runs it, if you trust it"
        return f"a program of torch.export, not a checkpoint: {runs}"
    if any("/code/" in name for name in names):
        return f"a TorchScript program, not a checkpoint: {option('arch', 'torchscript')} runs it, if you trust it"
    return None
