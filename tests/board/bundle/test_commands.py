"""`bnn-deploy bundle` and `bnn-deploy run-bundle`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bnn_deploy.board.archive import check_bundle
from bnn_deploy.board.manifest import FOLDER, GOLDEN, MODEL
from bnn_deploy.json_form import json_form
from bnn_deploy.proof.golden.check import GoldenVerification
from bnn_deploy.proof.golden.record import read_golden
from support.bundles import invoke, unpack
from support.converted import Converted


def test_the_command(lenet5: Converted, wheels: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.tar.gz"
    arguments = ["bundle", lenet5.model, "--target", "x86_64", "-o", output, "--samples", "2", "--wheels", wheels]
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    manifest = check_bundle(output)
    assert f"({output.stat().st_size:,} bytes)" in lines[1]
    assert any(line.startswith(f"{MODEL} ") and manifest.files[MODEL].sha256[:16] in line for line in lines)
    assert lines[-1] == f"On the board: tar -xzf b.tar.gz && sh {FOLDER}/run.sh"
    report = json.loads(invoke(*arguments, "--json").stdout)
    assert (report["bundle"], report["bytes"]) == (str(output), output.stat().st_size)
    assert report["manifest"] == json_form(manifest)


def test_the_command_writes_nothing_when_it_fails(
    lenet5: Converted, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "b.tar.gz"

    def fails(code: int, message: str, *changes: str | Path) -> None:
        options = {"--target": "x86_64", "-o": output, "--wheels": wheels, "--samples": "1"}
        options |= dict(zip(changes[::2], changes[1::2], strict=True))
        result = invoke("bundle", lenet5.model, *(part for option in options.items() for part in option))
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
        assert list(tmp_path.iterdir()) == []

    fails(2, "holds no bnn_deploy", "--target", "aarch64")
    fails(2, "'riscv64' is not one of", "--target", "riscv64")
    fails(2, "no such file", "--data", tmp_path / "none.npz")
    fails(2, "does not exist", "-o", tmp_path / "none" / "b.tar.gz")
    failed = GoldenVerification("", "", 1, 0, [], 0, {}, errors=["layer 'x' is wrong"])
    monkeypatch.setattr("bnn_deploy.proof.golden.check.check_golden", lambda *a, **k: failed)
    fails(1, "no bundle was written, this machine itself does not give its results again: layer 'x' is wrong")


def test_the_float_model_is_measured_beside_it(lenet5: Converted, wheels: Path, tmp_path: Path) -> None:
    output, report_file = tmp_path / "b.tar.gz", tmp_path / "report.json"
    options = ("--target", "x86_64", "-o", output, "--samples", "2", "--wheels", wheels)
    result = invoke("bundle", lenet5.model, *options, "--float", tmp_path / "none.onnx")
    assert (result.exit_code, output.exists()) == (2, False)
    assert "none.onnx: no such file" in result.stderr
    assert invoke("bundle", lenet5.model, *options, "--float", lenet5.float_model).exit_code == 0
    folder = unpack(output, tmp_path)
    assert (folder / "float.onnx").read_bytes() == lenet5.float_model.read_bytes()
    assert invoke("run-bundle", folder, "--report", report_file, "--runs", "3").exit_code == 0
    measured = json.loads(report_file.read_text())["profile"]
    (compared,) = measured["compare"]
    assert compared["timing"]["median_ms"] > 0
    assert measured["speedup"] == compared["timing"]["speedup"]


def test_a_float_model_alone_is_refused(lenet5: Converted, wheels: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.tar.gz"
    result = invoke("bundle", lenet5.float_model, "--target", "x86_64", "-o", output, "--wheels", wheels)
    assert result.exit_code == 2
    assert "not one that bnn-deploy converted" in result.stderr


def test_run_bundle(bundle: Path, tmp_path: Path) -> None:
    folder = unpack(bundle, tmp_path)
    report_file = tmp_path / "report.json"
    result = invoke("run-bundle", folder, "--report", report_file, "--runs", "3", "--threads", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines.index("PASSED") < next(i for i, line in enumerate(lines) if line.startswith("ISA that ran"))
    report = json.loads(report_file.read_text())
    assert (report["passed"], report["model"], report["target"]) == (True, "lenet5.onnx", "x86_64")
    assert report["manifest_sha256"] == check_bundle(bundle).sha256
    assert (report["golden"]["passed"], report["golden"]["samples"]) == (True, 2)
    assert (report["profile"]["runs"], report["profile"]["threads"]) == (3, 1)
    assert report["profile"]["compare"] == []
    assert sorted(report["versions"]) == ["bnn_deploy", "numpy", "onnxruntime", "python"]


def test_run_bundle_fails(bundle: Path, tmp_path: Path) -> None:
    """The golden results of other inputs: exit code 1, a report that says so, and no profile."""
    from bnn_deploy.proof.golden.record import write_golden

    folder = unpack(bundle, tmp_path)
    golden = read_golden(folder / GOLDEN)
    arrays = {name: array[::-1] for name, array in golden.inputs.arrays.items()}
    inputs = dataclasses.replace(golden.inputs, arrays=arrays)
    write_golden(dataclasses.replace(golden, inputs=inputs), folder / GOLDEN)
    result = invoke("run-bundle", folder, "--report", tmp_path / "report.json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines()[-1] == "FAILED"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["passed"], report["profile"]) == (False, None)
    assert report["golden"]["failures"][0].startswith("layer 'conv1'")


def test_run_bundle_elsewhere(tmp_path: Path) -> None:
    result = invoke("run-bundle", tmp_path, "--report", tmp_path / "report.json")
    assert result.exit_code == 2
    assert "manifest.json: no such file; give the folder of an unpacked bundle" in result.stderr
    assert list(tmp_path.iterdir()) == []
