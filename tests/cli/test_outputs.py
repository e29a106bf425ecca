"""What commands write, when they fail late, and over what was there."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from bnn_deploy.cli import main
from bnn_deploy.errors import InputError
from refusals import network


def convert(folder: Path, *more: Any) -> Result:
    onnx.save(network(), folder / "source.onnx")
    return CliRunner().invoke(main, ["convert", str(folder / "source.onnx"), *map(str, more)])


def test_convert_keeps_devices_and_links(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("report.json")
    result = convert(tmp_path, "-o", "/dev/null", "--float", tmp_path / "f.onnx", "--report", tmp_path / "link.json")
    assert result.exit_code == 0, result.output
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert (tmp_path / "link.json").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"source.onnx", "f.onnx", "link.json", "report.json"}


def test_what_fails_after_the_conversion_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is given last: `convert` counts what it made before it writes it."""

    def fail(path: Path, content: bytes | None = None) -> None:
        raise InputError(f"{path}: no")

    monkeypatch.setattr("bnn_deploy.inspection.inspect_model", fail)
    result = convert(tmp_path, "-o", tmp_path / "m.onnx", "--float", tmp_path / "f.onnx")
    assert (result.exit_code, result.stderr) == (2, f"error: {tmp_path}/f.onnx: no\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    result = convert(tmp_path, "-o", "/dev/full", "--float", tmp_path / "f.onnx")
    assert (result.exit_code, result.stderr) == (3, "error: /dev/full: No space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]
