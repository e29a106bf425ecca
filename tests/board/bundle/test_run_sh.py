"""run.sh, with a Python that only says that it did something, on a machine where something is missing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.board.manifest import CHECKSUMS, GOLDEN, MANIFEST, MODEL, REQUIREMENTS, RUN, SERVICE
from support.bundles import WHEEL, change, unpack

TOOLS = ("sh", "sha256sum", "cut", "grep", "sed", "dirname", "uname", "rm", "cat", "mkdir", "setsid", "flock", "sleep")

FAKE_PYTHON = r"""#!/bin/sh
# Called as python3, and as what it puts into the environment: python and bnn-deploy.
say() { printf '%s\n' "$*" >>"$LOG"; }
case "${0##*/} $1 $2" in
    *"-c import struct"*) printf '%s\n' "${FAKE_VERSION:-3.11 64}" ;;
    *"-c import venv"*) exit "${FAKE_NO_VENV:-0}" ;;
    *"-m venv")
        say "venv"
        mkdir -p "$3/bin"
        if [ "${FAKE_HANG:-}" = venv ]; then
            # A child that goes on writing into the folder, as ensurepip would.
            (while :; do mkdir -p "$3/lib"; : >"$3/lib/$$"; sleep 0.02; done) &
            printf '%s\n' $! >>"$CHILDREN"
            sleep 60
        fi
        [ "${FAKE_FAIL:-}" != venv ] || exit 1
        cp "$0" "$3/bin/python"
        cp "$0" "$3/bin/bnn-deploy"
        ;;
    "python -m pip")
        say "pip $*"
        [ -z "${FAKE_SAYS:-}" ] || printf '%s\n' "$FAKE_SAYS" >&2
        [ "${FAKE_HANG:-}" != pip ] || sleep 60
        [ "${FAKE_FAIL:-}" != pip ]
        ;;
    "bnn-deploy "*)
        say "run $*"
        : >report.json
        exit "${FAKE_EXIT:-0}"
        ;;
esac
"""


@dataclasses.dataclass
class Board:
    """A machine that has only what is in `bin`, and an unpacked bundle."""

    folder: Path
    bin: Path

    @property
    def log(self) -> list[str]:
        path = self.bin / "log"
        return path.read_text().splitlines() if path.exists() else []

    def script(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        def as_in_a_terminal() -> None:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)

        return subprocess.Popen(
            ["/bin/sh", str(self.folder / "run.sh"), *arguments],
            env={"PATH": str(self.bin), "LOG": str(self.bin / "log"), "CHILDREN": str(self.bin / "children")}
            | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=as_in_a_terminal,
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code and what it said."""
        process = self.start(*arguments, **variables)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def wait_for(self, line: str) -> None:
        """Until the fake Python has said so."""
        deadline = time.monotonic() + 30
        while not any(entry.startswith(line) for entry in self.log):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def board(bundle: Path, tmp_path: Path) -> Board:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for tool in (*TOOLS, "cp"):
        path = shutil.which(tool)
        assert path is not None
        (bin_folder / tool).symlink_to(path)
    result = Board(unpack(bundle, tmp_path / "a folder"), bin_folder)
    result.script("uname", "#!/bin/sh\necho x86_64\n")
    result.script("python3", FAKE_PYTHON)
    return result


def test_run_sh(board: Board) -> None:
    code, errors = board.run("--threads", "3", "--runs", "7")
    assert (code, errors.splitlines()) == (
        0,
        [
            "[1/5] checking the files",
            "[2/5] looking at this machine",
            "[3/5] making a virtual environment with Python 3.11",
            "[4/5] installing bnn-deploy; what it needs comes from the network",
            "[5/5] verifying and profiling",
            "wrote report.json",
        ],
    )
    assert board.log == [
        "venv",
        "pip -m pip install --quiet --disable-pip-version-check --no-input --find-links wheels "
        f"--only-binary :all: --requirement requirements.txt wheels/{WHEEL}",
        "run run-bundle . --report report.json --threads 3 --runs 7",
    ]


def test_run_sh_again_uses_the_environment(board: Board) -> None:
    assert board.run()[0] == 0
    code, errors = board.run()
    assert code == 0
    assert "[3/5] the virtual environment is there" in errors
    assert [line.split()[0] for line in board.log] == ["venv", "pip", "run", "run"]
    # Another Python, another bundle, or an environment that does not run: it is made anew.
    board.run(FAKE_VERSION="3.13 64")
    assert [line.split()[0] for line in board.log[4:]] == ["venv", "pip", "run"]
    board.run(FAKE_VERSION="3.13 64")
    (board.folder / "venv" / "bin" / "python").unlink()
    board.run(FAKE_VERSION="3.13 64")
    assert [line.split()[0] for line in board.log[7:]] == ["run", "venv", "pip", "run"]
    (board.folder / "venv" / "complete").unlink()
    (board.folder / "venv" / "leftover").touch()
    board.run(FAKE_VERSION="3.13 64")
    assert [line.split()[0] for line in board.log[11:]] == ["venv", "pip", "run"]
    assert not (board.folder / "venv" / "leftover").exists()


@pytest.mark.parametrize("code", [1, 2, 3])
def test_run_sh_has_the_exit_code_of_the_check(board: Board, code: int) -> None:
    assert board.run(FAKE_EXIT=str(code))[0] == code
    assert (board.folder / "venv" / "complete").exists()


def test_run_sh_options(board: Board) -> None:
    for arguments, message in (
        (["--threads"], "usage: sh run.sh"),
        (["--threads", "0"], "--threads is '0': it must be a number from 1 on"),
        (["--runs", "1; evil"], "--runs is '1; evil': it must be a number"),
        (["--evil", "1"], "unknown option '--evil'"),
        (["-h"], "usage: sh run.sh"),
    ):
        code, errors = board.run(*arguments)
        assert code == 2
        assert message in errors
    assert board.log == []


TAMPERING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "model": (lambda folder: change(folder / MODEL), "model.onnx: FAILED"),
    "versions": (lambda folder: change(folder / REQUIREMENTS, 5), "requirements.txt: FAILED"),
    "golden file": (lambda folder: change(folder / GOLDEN), "golden.npz: FAILED"),
    "wheel": (lambda folder: change(folder / "wheels" / WHEEL, 50), f"wheels/{WHEEL}: FAILED"),
    "manifest": (lambda folder: change(folder / MANIFEST, 100), "manifest.json: FAILED"),
    "comment in run.sh": (lambda folder: change(folder / RUN, 20), "run.sh: FAILED"),
    "a file gone": (lambda folder: (folder / MODEL).unlink(), "model.onnx: FAILED open or read"),
    "checksums gone": (lambda folder: (folder / CHECKSUMS).unlink(), "SHA256SUMS"),
    "checksums empty": (lambda folder: (folder / CHECKSUMS).write_text(""), "SHA256SUMS"),
    "checksums damaged": (lambda folder: change(folder / CHECKSUMS, 64), "improperly formatted"),
    "an added wheel": (
        lambda folder: (folder / "wheels" / "numpy-99-py3-none-any.whl").touch(),
        "wheels/numpy-99-py3-none-any.whl is not in SHA256SUMS",
    ),
    "an added service": (lambda folder: (folder / SERVICE).touch(), f"{SERVICE} is not in SHA256SUMS"),
    "an added wheel that looks like a pattern": (
        lambda folder: (folder / "wheels" / f"b{'.' * (len(WHEEL) - 5)}.whl").touch(),
        ".whl is not in SHA256SUMS",
    ),
    "a line less": (
        lambda folder: (folder / CHECKSUMS).write_text(
            "".join(line for line in (folder / CHECKSUMS).read_text().splitlines(True) if MODEL not in line)
        ),
        "model.onnx is not in SHA256SUMS",
    ),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_run_sh_checks_before_anything_runs(board: Board, case: str) -> None:
    edit, message = TAMPERING[case]
    edit(board.folder)
    before = sorted(path.name for path in board.folder.rglob("*"))
    code, errors = board.run()
    assert code == 2
    assert message in errors
    assert "nothing was run" in errors.splitlines()[-1]
    assert board.log == []
    assert sorted(path.name for path in board.folder.rglob("*")) == before


def nothing(board: Board) -> dict[str, str]:
    return {}


def without(*tools: str) -> Callable[[Board], dict[str, str]]:
    def remove(board: Board) -> dict[str, str]:
        for tool in tools:
            (board.bin / tool).unlink()
        return {}

    return remove


def machine(name: str) -> Callable[[Board], dict[str, str]]:
    def rename(board: Board) -> dict[str, str]:
        board.script("uname", f"#!/bin/sh\necho {name}\n")
        return {}

    return rename


PIP_SAYS = """\
ERROR: Could not find a version that satisfies the requirement onnxruntime==1.31.1 (from bnn-deploy) (from versions: {})
ERROR: No matching distribution found for onnxruntime==1.31.1"""


MISSING: dict[str, tuple[Callable[[Board], dict[str, str]], str]] = {
    "python": (without("python3"), "python3 is missing: sudo apt install python3 python3-venv"),
    "named python": (lambda b: {"PYTHON": "python3.12"}, "python3.12 is missing: sudo apt install"),
    "python 3.9": (lambda b: {"FAKE_VERSION": "3.9 64"}, "python3 is Python 3.9: 3.10 or newer is needed"),
    "python 2": (lambda b: {"FAKE_VERSION": "2.7 64"}, "python3 is Python 2.7: 3.10 or newer is needed"),
    "32-bit python": (lambda b: {"FAKE_VERSION": "3.11 32"}, "python3 is a 32-bit program: install a 64-bit system"),
    "venv": (lambda b: {"FAKE_NO_VENV": "1"}, "the module venv of python3 is missing: sudo apt install python3-venv"),
    "a python that runs": (
        lambda b: b.script("python3", "#!/bin/sh\nexit 1\n") or {},  # type: ignore[func-returns-value]
        "python3 does not run",
    ),
    "the right machine": (
        machine("aarch64"),
        "this machine is aarch64, the bundle is for x86_64: make one with --target aarch64",
    ),
    "another machine": (machine("armv7l"), "this machine is armv7l, the bundle is for x86_64"),
    "sha256sum": (without("sha256sum"), "sha256sum is missing: sudo apt install coreutils"),
    "disk": (lambda b: {"FAKE_FAIL": "venv"}, "the virtual environment cannot be made here"),
    "network": (
        lambda b: {"FAKE_FAIL": "pip"},
        "the installation failed: see above; without a network, make the bundle",
    ),
    "network, as pip says it": (
        lambda b: {"FAKE_FAIL": "pip", "FAKE_SAYS": PIP_SAYS.format("none")},
        "the installation failed: see above; without a network, make the bundle",
    ),
    "a wheel for this Python": (
        lambda b: {"FAKE_FAIL": "pip", "FAKE_SAYS": PIP_SAYS.format("1.19.0, 1.20.0")},
        "pip finds no wheel of onnxruntime==1.31.1 for Python 3.11 on x86_64, and with this version the golden results "
        "were made: update the system, or make the bundle where a version is installed that has one",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_run_sh_says_what_is_missing(board: Board, case: str) -> None:
    edit, message = MISSING[case]
    code, errors = board.run(**edit(board))
    assert code == 3
    assert errors.splitlines()[-1].startswith(f"error: {message}")
    assert not (board.folder / "venv").exists()
    assert not any(line.startswith("run") for line in board.log)


@pytest.mark.parametrize("version", ["3.10 64", "3.12 64", "3.13 64", "3.20 64"])
def test_run_sh_takes_newer_pythons(board: Board, version: str) -> None:
    assert board.run(FAKE_VERSION=version)[0] == 0


@pytest.mark.parametrize("tools", [("setsid",), ("flock",), ("setsid", "flock")])
def test_run_sh_without_tools_that_it_can_do_without(board: Board, tools: tuple[str, ...]) -> None:
    without(*tools)(board)
    assert board.run()[0] == 0


@pytest.mark.parametrize("step", ["venv", "pip"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_interrupted_run_sh_leaves_no_environment(board: Board, step: str, number: int, code: int) -> None:
    process = board.start(FAKE_HANG=step)
    board.wait_for(step)
    if step == "venv":
        while not (board.folder / "venv" / "lib").exists():
            time.sleep(0.01)
    process.send_signal(number)
    start = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == code
    assert time.monotonic() - start < 10
    time.sleep(0.1)  # a child that were still writing would make the folder again
    assert not (board.folder / "venv").exists()
    for child in (board.bin / "children").read_text().split() if step == "venv" else []:
        assert not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text()
    assert board.run()[0] == 0


def test_run_sh_whose_reader_went_away(board: Board) -> None:
    """The connection that it ran over is lost: what it says next ends it."""
    process = board.start(FAKE_HANG="venv")
    board.wait_for("venv")
    assert process.stderr is not None and process.stdout is not None
    process.stderr.close()
    process.stdout.close()
    for child in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split():
        os.killpg(int(child), signal.SIGTERM)  # the step ends, and run.sh wants to say so
    assert process.wait(30) == 141
    assert not (board.folder / "venv").exists()


def test_killed_run_sh_is_begun_anew(board: Board) -> None:
    """Nothing can be cleaned up after SIGKILL; the environment that it leaves is not taken for a complete one."""
    process = board.start(FAKE_HANG="venv")
    while not (board.folder / "venv" / "lib").exists():
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    process.wait(30)
    assert (board.folder / "venv").exists()
    code, errors = board.run()  # its child is still at work
    assert (code, "another run.sh is at work in this folder" in errors) == (3, True)
    for child in children:
        os.killpg(int(child), signal.SIGKILL)
    time.sleep(0.1)
    assert board.run()[0] == 0
    assert not (board.folder / "venv" / "lib").exists()


def test_two_run_sh_at_once(board: Board) -> None:
    process = board.start(FAKE_HANG="venv")
    board.wait_for("venv")
    code, errors = board.run()
    assert (code, errors.splitlines()[-1]) == (
        3,
        "error: another run.sh is at work in this folder: wait for it",
    )
    assert (board.folder / "venv").exists()
    process.terminate()
    process.communicate(timeout=30)
    assert board.run()[0] == 0
