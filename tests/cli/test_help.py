"""The help of each command: it needs no extra, and its example works."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.cli import COMMANDS
from bnn_deploy.proof import verification
from bnn_deploy.proof.verification import verify
from support import python
from support.bundles import WHEEL, fake_wheel, invoke, unpack
from support.deployment import REPORT

NOT_RUN = {
    "deploy": "it needs a board; tests/board/deployment has one behind a real ssh server",
    "completion": "a shell evaluates it; test_completion.py does so in real shells",
}
"""Command -> why its example is not run here."""


def example(name: str) -> list[str]:
    """The words of a command's example."""
    result = invoke(name, "--help")
    assert result.exit_code == 0
    (line,) = re.findall(r"^  Example.*:\n    (.*bnn-deploy .*)$", result.output, re.MULTILINE)
    return shlex.split(line)


def test_help_needs_no_extra() -> None:
    """In a process where the packages of the extra `convert` cannot be imported."""
    code = (
        "sys.modules.update({name: None for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'safetensors')})\n"
        "from bnn_deploy.cli import COMMANDS, main\n"
        "for name in COMMANDS: print(main([name, '--help'], prog_name='bnn-deploy', standalone_mode=False))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(python.command(code), capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"Usage: bnn-deploy {name} " in done.stdout for name in COMMANDS)


def test_the_examples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few of the demo's images."""

    def few(*arguments: Any, **options: Any) -> Any:
        return verify(*arguments, **(options | {"samples": 10, "reference_samples": 1, "isas": ["scalar"]}))

    monkeypatch.setattr(verification, "verify", few)
    monkeypatch.setattr("bnn_deploy.cli.verify.verify", few)
    monkeypatch.chdir(tmp_path)
    for name in ["demo", *(name for name in COMMANDS if name != "demo" and name not in NOT_RUN)]:
        words = example(name)
        assert words[:2] == ["bnn-deploy", name]
        if name == "bundle":
            fake_wheel(Path("dist") / WHEEL.replace("x86_64", "aarch64"), 183)
        if name == "run":
            Path("bnn-deploy.toml").write_text('source = "lenet5.pth.tar"\narch = "lenet5"\nmodel = "lenet5.onnx"\n')
        if name == "fleet":
            Path("reports").mkdir()
            Path("reports", "pi.json").write_text(json.dumps(REPORT))
        if name == "run-bundle":
            unpack(Path("lenet5.tar.gz"), Path())
        result = invoke(*words[1:])
        assert result.exit_code == 0, (name, result.output)
        Path("bnn-deploy.toml").unlink(missing_ok=True)  # other commands would read it, too
        if name == "demo":
            monkeypatch.chdir("bnn-deploy-demo")


def test_an_example_that_does_not_work_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*example("inspect")[1:]).exit_code == 2  # there is no lenet5.onnx here


def test_the_examples_that_are_not_run_are_there() -> None:
    assert all(example(name) for name in NOT_RUN)
