"""What a file is that is not what a command reads, told by its content."""

from __future__ import annotations

import zipfile
from pathlib import Path

from bnn_deploy.errors import option

ORT_FORMAT = "a model in onnxruntime's own format; give the .onnx file that it was made of"
"""What such a file is where an ONNX file is wanted; onnxruntime itself takes it."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x93NUMPY", "a NumPy array, not a model"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes; export the model to ONNX, for example with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it to ONNX first, for example with tf2onnx"),
    (4, b"ORTM", ORT_FORMAT),
    (0, b"\x1f\x8b", "a compressed file, not a model; unpack it, and give the model in it"),
)
"""Bytes at an offset, and what the file is that holds them."""

_SAVED_MODEL = "a TensorFlow SavedModel; convert it to ONNX first, for example with tf2onnx"

_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""The start of a checkpoint of PyTorch before 1.6; later ones are ZIP archives."""


def other_kind(path: Path) -> str | None:
    """What a file is that is neither ONNX nor a checkpoint, and what to do; None if its content does not say."""
    try:
        return _other_kind(path)
    except Exception:  # whatever the reader of a damaged archive raises; who reads on says what is wrong
        return None


def not_onnx(path: Path) -> str | None:
    """What a file is that is no ONNX model, and what to do; None if its content does not say."""
    try:
        if _is_torch(path):
            return "a file of PyTorch, not an ONNX model: bnn-deploy convert makes a model of it"
    except Exception:
        return None
    return other_kind(path)


def _other_kind(path: Path) -> str | None:
    start = _start(path)
    for offset, magic, what in _MAGIC:
        if start[offset:].startswith(magic):
            return what
    if path.name == "saved_model.pb":
        return _SAVED_MODEL
    if not zipfile.is_zipfile(path):
        return None
    names = _names(path)
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive, not a model"
    if any(name.endswith("archive_format") for name in names):
        runs = f"{option('arch', 'exported-program')} runs it, if you trust it"
        return f"a program of torch.export, not a checkpoint: {runs}"
    if any("/code/" in name for name in names):
        return f"a TorchScript program, not a checkpoint: {option('arch', 'torchscript')} runs it, if you trust it"
    if not any(name.endswith("data.pkl") for name in names):
        return "a ZIP archive, not a model; unpack it, and give the model in it"
    return None


def _is_torch(path: Path) -> bool:
    """Whether PyTorch wrote it: a checkpoint or a program."""
    if _start(path).startswith(_TORCH_MAGIC):
        return True
    return zipfile.is_zipfile(path) and any(name.endswith(("data.pkl", "archive_format")) for name in _names(path))


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
