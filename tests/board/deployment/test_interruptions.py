"""A full disk, a lost connection, two at once, Ctrl-C: nothing half-installed is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from bnn_deploy.board import connection, deployment
from bnn_deploy.board.deployment import deploy
from bnn_deploy.errors import SetupError
from support import python
from support.deployment import WAITS, WORKS, MakeBundle, cut_at, folder_of, installed, refused, report_of, write_report
from support.ssh_server import HOST, SshServer, wait_for

# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_while_copying(board: SshServer, make: MakeBundle) -> None:
    # /dev/full is a device on which every write fails as on a full disk.
    board.tool("head", "/usr/bin/head -c 100000\nexec cat >/dev/full")
    bundle = make(ballast=2_000_000)
    message = refused(bundle)
    assert "cannot write the bundle: " in message
    assert "No space left on device (" in message
    assert message.endswith("kB of disk are free); nothing half-installed is left there")
    assert board.tree() == []
    (board.tools / "head").unlink()
    assert deploy(HOST, bundle).copied


@pytest.mark.parametrize(("kilobytes", "step"), [(64, "write"), (3000, "unpack")])
def test_a_file_that_cannot_grow(board: SshServer, make: MakeBundle, kilobytes: int, step: str) -> None:
    """The kernel refuses writes in the middle of a file: of the archive, or of the larger one that is in it."""
    board.prelude(f"trap '' XFSZ; ulimit -f {2 * kilobytes}\n")
    bundle = make(f"{WORKS}# {'x' * 4_000_000}", ballast=1_000_000)
    message = refused(bundle)
    assert f"cannot {step} the bundle: " in message
    assert ("File too large" if step == "write" else "Wrote only") in message
    assert board.tree() == []
    board.prelude("")
    assert deploy(HOST, bundle).copied


@pytest.fixture
def small_disk(board: SshServer) -> Iterator[Path]:
    """A file system of 3 MB on the board."""
    disk = board.home / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root; the tests above fill the disk without it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("ballast", "step"), [(4_000_000, "write"), (2_000_000, "unpack")])
def test_a_really_full_disk(
    board: SshServer, make: MakeBundle, small_disk: Path, monkeypatch: pytest.MonkeyPatch, ballast: int, step: str
) -> None:
    bundle = make(ballast=ballast)
    assert f"has 3.1 MB of free disk and {(300e6 + 2 * ballast) / 1e6:.0f} MB are needed" in refused(
        bundle, "--directory", "disk/models"
    )
    # Somebody else fills the disk after the early check.
    monkeypatch.setattr(deployment, "problems", lambda board, manifest, needed_bytes, service: ())
    message = refused(bundle, "--directory", "disk/models")
    assert f"cannot {step} the bundle: " in message
    assert "(0 kB of disk are free)" in message
    assert list(small_disk.iterdir()) == []


# --- a lost connection ----------------------------------------------------------------------------


def test_lost_in_the_middle_of_the_copy(board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "COPY_NOTE_SECONDS", 0)
    bundle = make(ballast=8_000_000)
    seen: list[list[str]] = []

    def output(line: str) -> None:
        if line.startswith("copied 4.0 MB"):
            wait_for(lambda: any(path.endswith("bundle.tar.gz") for path in board.tree()), "the copy has begun")
            seen.append(board.tree())
            board.cut()

    with pytest.raises(SetupError, match=r"board: the connection was lost while .* the bundle \(ssh says '.*'\)"):
        deploy(HOST, bundle, output=output)
    # It was there, half; and it goes away.
    assert any(path.endswith("bundle.tar.gz") for path in seen[0])
    wait_for(lambda: board.tree() == [], "the board has cleaned up")
    assert not report_of(bundle).exists()
    assert deploy(HOST, bundle).copied
    assert board.tree() == installed(bundle, "report.json")


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_lost_in_the_middle_of_the_run(board: SshServer, make: MakeBundle, shell: str) -> None:
    board.tool("sh", f'exec {shell} "$@"')
    bundle = make(WAITS)
    with pytest.raises(SetupError, match=r"board: the connection was lost while run.sh ran \(ssh says '.*'\)"):
        deploy(HOST, bundle, output=cut_at(board, "started"))
    # The bundle is complete, and the virtual environment that had been begun is not there.
    wait_for(lambda: board.tree() == installed(bundle), "run.sh has been stopped")
    assert not report_of(bundle).exists()
    (board.folder / "go").touch()
    result = deploy(HOST, bundle)
    assert (result.passed, result.copied) == (True, False)


def test_lost_while_looking(board: SshServer, make: MakeBundle) -> None:
    board.tool("nproc", "touch ../looking; sleep 1000")
    bundle = make()
    with ThreadPoolExecutor() as pool:
        future = pool.submit(deploy, HOST, bundle)
        wait_for((board.folder / "looking").exists, "the board is being looked at")
        for process in reversed(board.sessions()):  # with the program that hangs
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with pytest.raises(SetupError, match="the connection was lost while looking at the board"):
            future.result(timeout=20)
    assert board.tree() == []


def test_what_a_power_cut_left_is_removed(board: SshServer, make: MakeBundle) -> None:
    left = board.home / "bnn-deploy" / ".partial-small_net-0123456789ab"
    left.mkdir(parents=True)
    (left / "bundle.tar.gz").write_bytes(b"half")
    bundle = make()
    deploy(HOST, bundle)
    assert board.tree() == installed(bundle, "report.json")


def test_a_damaged_copy_on_the_board_is_replaced(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    deploy(HOST, bundle)
    (board.home / folder_of(bundle) / "golden.npz").write_bytes(b"")
    assert deploy(HOST, bundle).copied
    assert board.tree() == installed(bundle, "report.json")


def test_an_old_report_is_not_taken_for_the_new_one(board: SshServer, make: MakeBundle) -> None:
    bundle = make(f"[ ! -e ../../fail ] || exit 0\n{write_report()}")
    deploy(HOST, bundle)
    report_of(bundle).unlink()
    (board.home / "fail").touch()
    assert "run.sh ended there with status 0" in refused(bundle)


# --- two at once, and interrupted on the laptop ---------------------------------------------------


def test_two_at_once(board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connection, deployment):
        monkeypatch.setattr(module, "LOCK_SECONDS", 1)
    bundle, other = make(WAITS), make(name="other.tar.gz")
    started = threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(deploy, HOST, bundle, output=lambda line: line == "started" and started.set())
        try:
            assert started.wait(20)
            before = board.tree()
            for second in (bundle, other):
                assert f"another deploy is running in {board.home}/bnn-deploy: wait until it is done" in refused(second)
            assert board.tree() == before
            deploy(HOST, other, directory="another")
        finally:
            (board.folder / "go").touch()
        assert first.result(timeout=20).passed
    report_of(other).unlink()
    assert deploy(HOST, other).copied


def test_one_that_was_interrupted_may_clean_up(board: SshServer, make: MakeBundle) -> None:
    """The user's next try waits for the end of the last one, which goes on for a moment."""
    bundle = make(WAITS.replace("'rm -rf venv'", "'sleep 3; rm -rf venv'"))
    with pytest.raises(SetupError, match="the connection was lost"):
        deploy(HOST, bundle, output=cut_at(board, "started"))
    (board.folder / "go").touch()
    lines: list[str] = []
    assert deploy(HOST, bundle, output=lines.append).passed
    assert any(line.startswith("another deploy is at work in") for line in lines)


def test_a_second_try_while_the_first_removes_its_directory(
    board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "COPY_NOTE_SECONDS", 0)
    board.tool("rm", 'sleep 3; exec /bin/rm "$@"')
    bundle = make(ballast=4_000_000)
    with pytest.raises(SetupError, match="the connection was lost"):
        deploy(HOST, bundle, output=cut_at(board, "copied 2.0 MB"))
    lines: list[str] = []
    assert deploy(HOST, bundle, output=lines.append).copied
    assert any(line.startswith("another deploy is at work in") for line in lines)
    assert board.tree() == installed(bundle, "report.json")


def laptop(bundle: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own, as in a terminal."""
    code = "from bnn_deploy.cli import main\nmain(prog_name='bnn-deploy')"
    return subprocess.Popen(
        [*python.command(code), "deploy", HOST, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=os.setpgrp,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C in a terminal reaches ssh as well
        (os.kill, signal.SIGINT, 130),
        (os.kill, signal.SIGTERM, 143),
        (os.kill, signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_interrupted_on_the_laptop(
    board: SshServer, make: MakeBundle, send: Callable[[int, int], None], number: int, code: int
) -> None:
    bundle = make(WAITS)
    process = laptop(bundle)
    assert process.stderr is not None
    lines = []
    while "started\n" not in lines:
        lines.append(process.stderr.readline())
        assert lines[-1], f"it ended before run.sh ran: {''.join(lines)}"
    send(process.pid, number)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == code
    if code == 130:
        assert rest.splitlines()[-1] == "error: interrupted"
        assert "Traceback" not in rest
    wait_for(lambda: board.tree() == installed(bundle), "run.sh has been stopped")
    assert not report_of(bundle).exists()
    (board.folder / "go").touch()
    assert deploy(HOST, bundle).passed
