"""`bnn-deploy verify --golden`, also where neither onnx nor torch is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bnn_deploy.cli import main
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.record import read_golden
from support import python
from support.converted import Converted
from support.damage import damaged, flip_weight_bit
from support.golden_files import ISAS, rewrite


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    result = invoke("verify", lenet5.model, "--golden", goldens(lenet5, 32))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[-1] == "PASSED"
    (row,) = (line.split() for line in lines if line.startswith("bin_conv2.conv"))
    assert row == ["bin_conv2.conv", "bits", "of", "integers", "102,400", "-", "0", "ok"]
    (row,) = (line.split() for line in lines if line.startswith(f"kernels, {ISAS[-1]}"))
    assert row[2:5] == ["32", "32", "0"]
    result = invoke("verify", lenet5.model, "--golden", goldens(lenet5, 32), "--isa", ISAS[-1], "--json")
    report = json.loads(result.stdout)
    assert (report["passed"], report["isas"], report["samples"]) == (True, ISAS[-1:], 32)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_fails_with_exit_code_1(
    lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path, as_json: bool
) -> None:
    model = damaged(lenet5, flip_weight_bit, "bin_conv2.conv", tmp_path / "damaged.onnx")
    path = rewrite(tmp_path / "golden.npz", read_golden(goldens(lenet5, 32)), model)
    result = invoke("verify", model, "--golden", path, *(["--json"] if as_json else []))
    assert (result.exit_code, result.stderr) == (1, "")
    if as_json:
        report = json.loads(result.stdout)
        assert report["passed"] is False
        assert report["failures"][0].startswith("layer 'bin_conv2.conv'")
    else:
        lines = result.stdout.splitlines()
        assert lines[-1] == "FAILED"
        assert any(line.startswith("FAILED: layer 'bin_conv2.conv'") for line in lines)


def test_against_and_golden_exclude_each_other() -> None:
    for arguments, message in (
        (["--golden", "g.npz", "--against", "m.pth"], "--against and --golden exclude each other"),
        (["--golden", "g.npz", "--data", "x.npz"], "--data and --golden exclude each other"),
        (["--golden", "g.npz", "--reference-samples", "8"], "--reference-samples and --golden exclude each other"),
    ):
        result = invoke("verify", "model.onnx", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_board_has_neither_onnx_nor_torch(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    """In a process where importing them fails, the check gives the same result."""
    code = (
        "blocked = ('onnx', 'onnx_ir', 'onnxscript', 'torch', 'google.protobuf')\n"
        "sys.modules.update({name: None for name in blocked})\n"
        "from bnn_deploy.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [*python.command(code), "verify", lenet5.model, "--golden", goldens(lenet5, 32), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    here = check_golden(lenet5.model, goldens(lenet5, 32))
    assert json.loads(done.stdout) == json.loads(json.dumps(here.to_json()))
