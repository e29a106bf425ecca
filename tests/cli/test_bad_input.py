"""Bad input through the command line: one line on stderr, the right exit code, no traceback, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bnn_deploy
from bnn_deploy.cli import main
from bnn_deploy.runtime import session
from bnn_deploy.runtime.session import library_info
from support.converted import Converted
from support.networks import random_network, write_checkpoint


def fails(arguments: list[Any], code: int, *texts: str, folder: Path | None = None) -> str:
    """Run a command that must fail; return its line."""
    before = None if folder is None else sorted(folder.rglob("*"))
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0] and "internal error" not in lines[0]
    for text in texts:
        assert text in lines[0]
    if folder is not None:
        assert sorted(folder.rglob("*")) == before, "something was written"
    return lines[0]


def convert(folder: Path, checkpoint: Path, arch: str, *more: str) -> list[Any]:
    files = ["-o", folder / "out.onnx", "--float", folder / "float.onnx", "--web", folder / "web.onnx"]
    return ["convert", checkpoint, "--arch", arch, *files, *more]


# convert


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def not_a_checkpoint(path: Path, source: Path) -> None:
    path.write_text("This is no checkpoint.\n")


def truncated(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:200_000])


def code_in_it(path: Path, source: Path) -> None:
    torch.save(
        {"state_dict": torch.load(source, weights_only=True)["state_dict"], "x": Exploit(path.parent / "it ran")}, path
    )


def missing_key(path: Path, source: Path) -> None:
    state = torch.load(source, weights_only=True)["state_dict"]
    del state["bin_conv2.bn.running_var"]
    torch.save({"state_dict": state}, path)


def zero_filter(path: Path, source: Path) -> None:
    state = torch.load(source, weights_only=True)["state_dict"]
    state["bin_conv2.conv.weight"][17] = 0.5
    torch.save({"state_dict": state}, path)


def not_finite(path: Path, source: Path) -> None:
    state = torch.load(source, weights_only=True)["state_dict"]
    state["ip2.weight"][0, 0] = torch.nan
    torch.save({"state_dict": state}, path)


CHECKPOINTS: dict[str, tuple[Any, list[str]]] = {
    "not a checkpoint": (not_a_checkpoint, ["c.pth.tar: not a PyTorch checkpoint"]),
    "empty": (lambda path, source: path.touch(), ["c.pth.tar: not a PyTorch checkpoint"]),
    "missing": (lambda path, source: None, ["c.pth.tar: no such file"]),
    "truncated": (truncated, ["c.pth.tar: truncated or damaged"]),
    "code in it": (code_in_it, ["refused, because loading it would run code", "posix.mkdir", "save the weights alone"]),
    "missing key": (missing_key, ["its keys do not fit LeNet5: 1 missing: bin_conv2.bn.running_var"]),
    "all-zero filter": (zero_filter, ["Conv 'bin_conv2.conv': filter 17 is all zeros"]),
    "not finite": (not_finite, ["ip2.weight holds NaN or infinity"]),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_convert_bad_checkpoints(case: str, lenet5: Converted, tmp_path: Path) -> None:
    make, texts = CHECKPOINTS[case]
    make(tmp_path / "c.pth.tar", lenet5.checkpoint)
    fails(convert(tmp_path, tmp_path / "c.pth.tar", "lenet5"), 2, *texts, folder=tmp_path)


def test_convert_unknown_architecture(lenet5: Converted, tmp_path: Path) -> None:
    fails(
        convert(tmp_path, lenet5.checkpoint, "vgg"),
        2,
        "unknown architecture 'vgg': choose lenet5, nin, alexnet",
        folder=tmp_path,
    )


def test_convert_the_wrong_architecture(nin: Converted, tmp_path: Path) -> None:
    line = fails(
        convert(tmp_path, nin.checkpoint, "lenet5"),
        2,
        "its keys do not fit LeNet5",
        "missing: conv1.weight",
        folder=tmp_path,
    )
    assert "unexpected: xnor.0.weight" in line
    assert len(line) < 800


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('first\\nsecond')", "failed: RuntimeError: first second"),
        ("import sys\nsys.exit('bye')", "ended the program (SystemExit: bye)"),
        ("def f(:\n  pass", "failed: SyntaxError"),
        ("class Net: pass", "not a torch.nn.Module"),
        (
            "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        raise KeyError('width')",
            "KeyError: 'width'",
        ),
        (
            "import torch\nclass Net(torch.nn.Embedding):\n    def __init__(self):\n        super().__init__(2, 4)\n"
            "        self.bias = torch.nn.Parameter(torch.zeros(2))",
            "has no attribute input_shape",
        ),
    ],
)
def test_convert_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "net_bad.py").write_text(text)
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "c")
    before = sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in str(p))
    fails(convert(tmp_path, tmp_path / "c", f"{tmp_path}/net_bad.py:Net"), 2, "--", message)
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)) == before


@pytest.mark.parametrize("option", ["-o", "--float", "--web"])
def test_convert_into_a_folder_that_is_not_there(lenet5: Converted, tmp_path: Path, option: str) -> None:
    arguments = convert(tmp_path, lenet5.checkpoint, "lenet5")
    arguments[arguments.index(option) + 1] = tmp_path / "no" / "x.onnx"
    fails(arguments, 2, f"the folder {tmp_path}/no does not exist", folder=tmp_path)


@pytest.mark.parametrize("shape", ["", "3,a", "0,28,28", "1,28"])
def test_convert_bad_input_shapes(lenet5: Converted, tmp_path: Path, shape: str) -> None:
    message = "does not run on an input of shape [2, 1, 28]" if shape == "1,28" else "give one sample's shape as C,H,W"
    fails(convert(tmp_path, lenet5.checkpoint, "lenet5", "--input-shape", shape), 2, message, folder=tmp_path)


def test_convert_strict(tmp_path: Path) -> None:
    (tmp_path / "net_strict.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    input_shape = (4, 8, 8)\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)\n"
        "    def forward(self, x):\n        x = torch.sign(self.a(torch.sign(x)) - 0.1)\n"
        "        return self.b(nn.functional.pad(x, (1, 1, 1, 1), value=0.5))\n"
    )
    modules = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3), "b": nn.Conv2d(4, 4, 3)})
    torch.save(modules.state_dict(), tmp_path / "c")
    arguments = convert(
        tmp_path, tmp_path / "c", f"{tmp_path}/net_strict.py:Net", "--strict", "--weights", "xnor-centred"
    )
    fails(arguments, 1, "--strict: 1 layer whose input is a sign or has few levels stays float: Conv 'b'")
    assert not list(tmp_path.glob("*.onnx"))


# verify


def verify(model: Path, against: Path, *more: Any) -> list[Any]:
    return ["verify", model, "--against", against, "--samples", 1, "--reference-samples", 1, *more]


def test_verify_files_that_are_no_models(lenet5: Converted, tmp_path: Path) -> None:
    fails(
        verify(lenet5.float_model, lenet5.checkpoint),
        2,
        "but not one that bnn-deploy converted: it has no operator of the domain bnn_deploy",
    )
    half = tmp_path / "half.onnx"
    half.write_bytes(lenet5.model.read_bytes()[:60_000])
    fails(verify(half, lenet5.checkpoint), 2, "half.onnx: not a valid ONNX file, or a truncated one")
    half.write_bytes(b"")
    fails(verify(half, lenet5.checkpoint), 2, "half.onnx: not a valid ONNX file, or a truncated one")
    half.write_text("no model")
    fails(verify(half, lenet5.checkpoint), 2, "half.onnx: not a valid ONNX file, or a truncated one")
    fails(verify(tmp_path / "none.onnx", lenet5.checkpoint), 2, "none.onnx: no such file")
    fails(verify(lenet5.model, tmp_path / "none.onnx"), 2, "none.onnx: no such file")
    fails(verify(lenet5.checkpoint, lenet5.checkpoint), 2, "a file of PyTorch, not an ONNX model")


def test_verify_against_what_the_model_does_not_come_from(lenet5: Converted, nin: Converted, tmp_path: Path) -> None:
    message = "it is not what this model was converted from"
    fails(verify(lenet5.model, nin.float_model), 2, message)
    fails(verify(lenet5.model, lenet5.model), 2, "it is converted already")
    fails(verify(lenet5.model, nin.checkpoint), 2, "its keys do not fit LeNet5")
    fails(verify(nin.model, lenet5.checkpoint, "--arch", "lenet5"), 2)
    # The same architecture, trained otherwise, is no bad input: the check is made, and fails.
    other = write_checkpoint(random_network("lenet5", seed=5, samples=16), tmp_path / "other.pth.tar")
    result = CliRunner().invoke(main, [str(a) for a in verify(lenet5.model, other, "--isa", library_info().isas[0])])
    assert (result.exit_code, result.stderr, result.stdout.splitlines()[-1]) == (1, "", "FAILED")


BAD_DATA: dict[str, tuple[Any, list[str]]] = {
    "shape": (
        lambda p: np.save(p, np.zeros((2, 1, 32, 32), np.float32)),
        ["the inputs have shape [2, 1, 32, 32]; the model needs ['N', 1, 28, 28]"],
    ),
    "dtype": (
        lambda p: np.save(p, np.zeros((2, 1, 28, 28), np.int64)),
        ["the inputs are int64; the network needs float32"],
    ),
    "arrays": (
        lambda p: np.savez(p, a=np.zeros(1), b=np.zeros(1)),
        ["which array holds the inputs? It has a, b; call it 'input'"],
    ),
    "labels": (
        lambda p: np.savez(p, input=np.zeros((2, 1, 28, 28), np.float32), labels=np.zeros(3)),
        ["the labels have shape [3]; 2 inputs need [2]"],
    ),
    "no array file": (lambda p: p.write(b"text"), ["not a .npy or .npz file of plain arrays"]),
    "pickle": (
        lambda p: np.save(p, np.array([Exploit(Path(p.name + " ran"))]), allow_pickle=True),
        ["not a .npy or .npz file of plain arrays"],
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_verify_bad_data(case: str, lenet5: Converted, tmp_path: Path) -> None:
    make, texts = BAD_DATA[case]
    with (tmp_path / "x.npz").open("wb") as file:
        make(file)
    fails(verify(lenet5.model, lenet5.float_model, "--data", tmp_path / "x.npz"), 2, "x.npz", *texts, folder=tmp_path)


def test_verify_missing_data(lenet5: Converted, tmp_path: Path) -> None:
    fails(verify(lenet5.model, lenet5.float_model, "--data", tmp_path / "x.npz"), 2, "x.npz: no such file")


def test_verify_needs_an_architecture(tmp_path: Path, lenet5: Converted) -> None:
    import onnx

    model = onnx.load(lenet5.model)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "m.onnx")
    fails(verify(tmp_path / "m.onnx", lenet5.checkpoint), 2, "or FILE.py:NAME")


# The machine.


def test_onnxruntime_too_old(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.18.1")
    for arguments in (verify(lenet5.model, lenet5.float_model), ["profile", lenet5.model]):
        fails(arguments, 3, "onnxruntime 1.18.1 is too old: run 'pip install \"onnxruntime>=1.19\"'")


def test_library_missing(lenet5: Converted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session.resources, "files", lambda name: _Nowhere(tmp_path))
    for arguments in (verify(lenet5.model, lenet5.float_model), ["profile", lenet5.model]):
        fails(arguments, 3, "the operator library", "is missing: reinstall bnn-deploy")


class _Nowhere:
    """Package resources of an installation without the library; library_info.onnx is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> _Nowhere:
        return self

    def read_bytes(self) -> bytes:
        return b""


@pytest.mark.parametrize("how", ["option", "environment"])
def test_unknown_isa(how: str, lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("BNN_DEPLOY_ISA", "mmx")
    arguments = verify(lenet5.model, lenet5.float_model, *(["--isa", "mmx"] if how == "option" else []))
    fails(arguments, 3, "BNN_DEPLOY_ISA = 'mmx'", *library_info("scalar").isas)


def test_usage_errors_have_exit_code_2(lenet5: Converted) -> None:
    for arguments in (["verify", str(lenet5.model)], ["convert"], ["nonsense"], ["verify", "--samples", "0"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing on stdout, one line on stderr, the exit code of the process; with --debug, the traceback before it."""
    (tmp_path / "c.pth.tar").write_text("no checkpoint")
    code = "from bnn_deploy.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", "c.pth.tar", "--arch", "lenet5", "-o", "m.onnx"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(bnn_deploy.__file__).parents[1]), *sys.path])}
    for debug in (False, True):
        done = subprocess.run(
            command + ["--debug"] * debug, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("error: c.pth.tar: not a PyTorch checkpoint")
        assert (len(lines) == 1) != debug
        assert ("Traceback" in done.stderr) == debug
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth.tar"]
