"""Every long command: signals at any step, a disk without room, a folder that cannot be written, two at one output."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from bnn_deploy.cli import COMMANDS, main
from bnn_deploy.conversion import convert
from support.command_lines import EXPORT, Files

CASES = list(Files(Path(), Path()).commands)
WRITING = [case for case in CASES if not case.startswith(("verify", "profile"))]


@pytest.fixture
def files(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    (tmp_path / "out").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Files(given, tmp_path / "out")


def nothing_temporary(files: Files) -> bool:
    return not any((files.out.parent / "temporary").iterdir()) and not list(files.out.glob(".*"))


def test_every_command_but_the_short_ones_is_here() -> None:
    """And `run`, which runs others."""
    elsewhere = {"inspect", "deploy", "fleet", "run", "info", "completion", "library-path", "cmake-dir"}
    assert {case.split()[0] for case in CASES} == COMMANDS.keys() - elsewhere


def at_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Call act(n) at the n-th step that a command says it is at, from 1 on."""
    count = 0

    @contextmanager
    def progress(measuring: bool = False) -> Iterator[Callable[[str], None]]:
        def step(text: str) -> None:
            nonlocal count
            count += 1
            act(count)

        yield step

    for module, _ in COMMANDS.values():
        if hasattr(importlib.import_module(module), "progress"):
            monkeypatch.setattr(f"{module}.progress", progress)


def run(files: Files, case: str) -> Result:
    return CliRunner().invoke(main, [str(word) for word in files.commands[case]])


@pytest.mark.parametrize(
    ("number", "code", "text"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("case", CASES)
def test_a_signal_at_any_step(
    case: str, number: int, code: int, text: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and no file but those that are whole: none, but for the demo's converted models."""
    steps = 0

    def counted(step: int) -> None:
        nonlocal steps
        steps = step

    with monkeypatch.context() as patch:
        at_step(patch, counted)
        assert run(files, case).exit_code == 0
    assert steps > 1
    for at in {1, 1 + steps // 2, steps} if number == signal.SIGINT else {1 + steps // 2}:
        for path in files.out.iterdir():
            path.unlink()
        with monkeypatch.context() as patch:
            at_step(patch, lambda step, at=at: signal.raise_signal(number) if step == at else None)
            result = run(files, case)
        assert (result.exit_code, result.stderr) == (code, f"error: {text}\n"), f"at step {at} of {steps}"
        left = list(files.out.iterdir())
        for path in left:
            onnx.checker.check_model(onnx.load(path))
        assert case == "demo" or left == []
        assert nothing_temporary(files)


def without_room(files: Files, case: str, most: int) -> subprocess.CompletedProcess[str]:
    """Run a command in a process whose files have at most so many bytes, which fails as a full disk does."""
    code = "from bnn_deploy.cli import main\nmain(prog_name='bnn-deploy')"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, files.commands[case])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(files.out.parent / "temporary")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        check=False,
    )


@pytest.mark.parametrize(("case", "most"), [*((case, 100) for case in WRITING), ("profile", 100), ("profile", 8_000)])
def test_a_disk_without_room(case: str, most: int, files: Files) -> None:
    """Nothing is left, and the line names a file, or the folder of those that a profile needs for a while."""
    done = without_room(files, case, most)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3 and line.endswith(": File too large" if most == 100 else "is the disk full?"), line
    assert line.startswith(f"error: {files.out.parent}/"), line
    (files.out.parent / "temporary" / ".ses").unlink(missing_ok=True)  # onnxruntime's own
    assert list(files.out.iterdir()) == [] and nothing_temporary(files)


@pytest.mark.parametrize("case", WRITING)
def test_a_folder_that_cannot_be_written(case: str, given: Path) -> None:
    """Nobody writes into /sys, root neither."""
    result = run(Files(given, Path("/sys/none") if case == "demo" else Path("/sys")), case)
    lines = result.stderr.splitlines()
    assert result.exit_code in (2, 3) and lines[-1].startswith("error: /sys/"), result.stderr
    assert "cannot be written" in lines[-1] or lines[-1].endswith((": Permission denied", ": Operation not permitted"))
    assert len(lines) == 1


def test_two_at_one_output(tmp_path: Path) -> None:
    """The file is that of one of them, whole."""
    other = EXPORT.with_name("larq_heaviside.onnx")
    whole = set()
    for source in (EXPORT, other):
        convert(source, tmp_path / "alone.onnx")
        whole.add((tmp_path / "alone.onnx").read_bytes())
    (tmp_path / "alone.onnx").unlink()
    code = "from bnn_deploy.cli import main\nmain(prog_name='bnn-deploy')"
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", code, "convert", str(source), "-o", str(tmp_path / "m.onnx")],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for source in (EXPORT, other)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    assert (tmp_path / "m.onnx").read_bytes() in whole and len(whole) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
