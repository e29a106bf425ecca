"""The demo, end to end, with few timed runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bnn_deploy.cli import demo, main
from bnn_deploy.proof import verification
from bnn_deploy.runtime.session import library_info
from support.converted import Converted
from support.schemas import misfits

FILES = {"lenet5.onnx", "lenet5_float.onnx", "lenet5.pth.tar", "mnist_1000.npz"}


def test_the_demo_does_the_whole_job(tmp_path: Path, lenet5: Converted) -> None:
    folder = tmp_path / "a" / "demo"
    result = CliRunner().invoke(main, ["demo", "-o", str(folder), "--runs", "3"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines.count("PASSED") == 1
    short = {line.split("  ")[0]: line for line in lines[lines.index("In short") :]}
    assert short["equivalent"].endswith("yes: verify PASSED")
    assert "1,000 of 1,000 images" in short["same class"]
    assert short["accuracy"].split()[1] == short["accuracy"].split()[4]  # PyTorch's and the binary model's
    assert float(short["accuracy"].split()[1]) > 99
    for command in ("convert", "verify", "profile"):
        assert any(line.startswith(f"$ bnn-deploy {command} ") for line in lines)
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "lenet5.onnx").read_bytes() == lenet5.model.read_bytes()
    with np.load(folder / "mnist_1000.npz") as data:
        assert (data["input"].shape, data["input"].dtype, data["labels"].shape) == (
            (1000, 1, 28, 28),
            np.float32,
            (1000,),
        )
        # A damaged image or label would change the accuracy that is printed.
        assert len(np.unique(data["labels"])) == 10


def test_where_the_package_has_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_EMBEDDED", tmp_path / "none")
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "demo")])
    assert result.exit_code == 3
    assert "the package of a bundle has no network for the demo: give a SOURCE" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_the_demo_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few images: the other test has all of them."""
    few = functools.partial(verification.verify, samples=20, reference_samples=1, isas=library_info().isas[:1])
    monkeypatch.setattr(verification, "verify", few)
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path), "--runs", "2", "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout, parse_constant=lambda name: None)
    assert report["verification"]["passed"] is True and misfits(report) == []
    assert report["conversion"]["binary_layers"] == ["bin_conv2.conv", "bin_ip1.linear"]
    assert report["profile"]
    assert {path.name for path in tmp_path.iterdir()} == FILES


EXAMPLE = Path(__file__).parents[2] / "examples" / "nin"


def test_the_demo_of_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(verification.verify, samples=30, reference_samples=1, isas=library_info().isas[:1])
    monkeypatch.setattr(verification, "verify", few)
    arguments = ["demo", str(EXAMPLE / "nin.pth.tar"), "--arch", "nin", "--data", str(EXAMPLE / "cifar10_100.npz")]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path), "--runs", "2"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert f"$ bnn-deploy verify {tmp_path / 'nin.onnx'} --against {arguments[1]} --data {arguments[5]}" in lines
    assert "equivalent    yes: verify PASSED" in lines
    assert "same class    30 of 30 images, the source against the binary model" in lines
    assert {path.name for path in tmp_path.iterdir()} == {"nin.onnx", "nin_float.onnx"}


def test_no_file_of_the_demo_is_left_alone(tmp_path: Path) -> None:
    """The images cannot be written: the checkpoint is not, either."""
    (tmp_path / "mnist_1000.npz").mkdir()
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (3, f"error: {tmp_path / 'mnist_1000.npz'}: Is a directory\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mnist_1000.npz"]


def test_the_embedded_network_has_data_of_its_own() -> None:
    result = CliRunner().invoke(main, ["demo", "--data", "images.npz"])
    assert result.exit_code == 2
    assert "--arch and --data belong to a SOURCE" in result.stderr
