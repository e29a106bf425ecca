"""What is given where a model is expected, and is none, is named by every command; onnxruntime's own format, too."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from bnn_deploy.errors import InputError
from bnn_deploy.file_kind import not_onnx, other_kind
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import load_session

Write = Callable[[Path], Any]

TORCH = "a file of PyTorch, not an ONNX model: bnn-deploy convert makes a model of it"


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.onnx", b"")


FILES: dict[str, tuple[Write, str]] = {
    "zip": (archive, "a ZIP archive, not a model; unpack it, and give the model in it"),
    "gz": (lambda path: path.write_bytes(gzip.compress(b"x")), "a compressed file, not a model; unpack it"),
    "npz": (lambda path: np.savez(path.open("wb"), x=np.zeros(3)), "a NumPy archive, not a model"),
    "pth": (lambda path: torch.save({"x": torch.zeros(3)}, path), TORCH),
    "tar": (lambda path: torch.save({"x": torch.zeros(3)}, path, _use_new_zipfile_serialization=False), TORCH),
    "pt": (lambda path: torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(path)), TORCH),
    "tflite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(99)), "a TensorFlow Lite model; convert it"),
    "h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file, as Keras writes"),
}


@pytest.mark.parametrize("suffix", FILES)
def test_every_command_names_it(suffix: str, tmp_path: Path) -> None:
    write, line = FILES[suffix]
    path = tmp_path / f"m.{suffix}"
    write(path)
    for command in (inspect_model, load_session, lambda model: verify(model, model)):
        with pytest.raises(InputError) as caught:
            command(path)
        assert str(caught.value).startswith(f"{path}: {line}")


def test_onnxruntimes_own_format(tmp_path: Path) -> None:
    """onnxruntime takes it, so what is wrong with a damaged one is what onnxruntime says."""
    path = tmp_path / "m.ort"
    path.write_bytes(b"\x1c\0\0\0ORTM" + bytes(99))
    for command in (inspect_model, lambda model: verify(model, model)):
        with pytest.raises(InputError, match=r"m\.ort: a model in onnxruntime's own format; give the \.onnx file"):
            command(path)
    with pytest.raises(InputError, match=r"m\.ort: onnxruntime cannot load it: .*ORT format"):
        load_session(path)


def test_what_may_be_a_model_is_not_named(tmp_path: Path) -> None:
    """A saved_model.pb is TensorFlow's; other names say nothing."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]))
    onnx.save(model, tmp_path / "m.pb")
    (tmp_path / "text").write_text("hello")
    torch.save({"x": torch.zeros(3)}, tmp_path / "m.pth")
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    assert [not_onnx(tmp_path / name) for name in ("m.pb", "text", "none")] == [None] * 3
    assert other_kind(tmp_path / "m.pth") is None  # a checkpoint
    assert (not_onnx(tmp_path / "saved_model.pb") or "").startswith("a TensorFlow SavedModel; convert it to ONNX first")
