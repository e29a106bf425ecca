"""From the wheel to the report, with nothing replaced."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bnn_deploy.board import bundle as bundles
from bnn_deploy.board.deployment import deploy
from bnn_deploy.errors import SetupError
from support.converted import Converted
from support.deployment import MACHINE, cut_at, run
from support.ssh_server import HOST, SshServer, wait_for


@pytest.fixture(scope="module")
def lenet5_bundle(tmp_path_factory: pytest.TempPathFactory, lenet5: Converted, all_wheels: Path) -> Path:
    """An offline bundle of the trained LeNet-5 for this machine."""
    path = tmp_path_factory.mktemp("bundle") / "lenet5.tar.gz"
    manifest = bundles.write_bundle(lenet5.model, path, target=MACHINE, samples=8, wheels=all_wheels)
    assert manifest.offline
    return path


def test_lenet5_from_the_wheel_to_the_report(board: SshServer, lenet5_bundle: Path, tmp_path: Path) -> None:
    """All of it, with nothing replaced: install into a virtual environment, verify, profile, report; then once more."""
    board.tool("python3", f'exec "{sys.executable}" "$@"')
    report = tmp_path / "report.json"
    result = run(HOST, lenet5_bundle, "--runs", "20", "--report", report)
    assert result.exit_code == 0, result.output
    steps = [line for line in result.stderr.splitlines() if line.startswith("[")]
    assert [step[:5] for step in steps] == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
    assert "installing bnn-deploy from the bundle" in steps[3]
    values = json.loads(report.read_text())
    assert values["passed"] is True
    assert values["profile"]["runs"] == 20
    assert values["profile"]["isa"] is not None
    # The board's environment has no torch and no onnx: what verified there is the golden file.
    environment = next(board.home.glob("bnn-deploy/lenet5-*/venv/lib/python3*/site-packages"))
    assert {"onnxruntime", "numpy", "bnn_deploy"} <= {path.name for path in environment.iterdir()}
    assert not {"torch", "onnx"} & {path.name for path in environment.iterdir()}
    again = run(HOST, lenet5_bundle, "--runs", "20", "--report", report)
    assert again.exit_code == 0, again.output
    assert "the complete bundle is on the board already" in again.stderr
    assert "the virtual environment is there" in again.stderr
    assert "-" not in [line.split()[-1] for line in again.stdout.splitlines() if line.startswith(("median", "peak"))]


@pytest.mark.parametrize("step", ["[3/5]", "[4/5]"])
def test_lost_in_the_middle_of_the_installation(
    board: SshServer, lenet5_bundle: Path, tmp_path: Path, step: str
) -> None:
    board.tool("python3", f'exec "{sys.executable}" "$@"')
    report = tmp_path / "report.json"
    with pytest.raises(SetupError, match=r"the connection was lost while run\.sh ran"):
        deploy(HOST, lenet5_bundle, report=report, output=cut_at(board, step))
    wait_for(lambda: not board.left_over(), "run.sh has been stopped")
    assert not any("venv" in path for path in board.tree())
    assert any(path.endswith("/run.sh") for path in board.tree())
    assert not report.exists()
