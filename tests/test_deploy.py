"""`bnn-deploy deploy` against a real OpenSSH server on loopback. `ssh_server.py` is the board."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Converted
from packaging.requirements import Requirement
from small_models import save_binary
from ssh_server import HOST, SshServer, wait_for

import bnn_deploy
from bnn_deploy import cli
from bnn_deploy.board import bundle as bundles
from bnn_deploy.board import deployment
from bnn_deploy.board.archive import check_bundle, make_archive
from bnn_deploy.board.deployment import deploy, look
from bnn_deploy.board.manifest import Manifest, checksum_lines, file_entry, manifest_bytes, with_checksum
from bnn_deploy.board.probe import Board, problems
from bnn_deploy.board.wheels import REQUIRED
from bnn_deploy.cli.console import TIMES
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.runtime.profiling import profile

MACHINE = os.uname().machine
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]

REPORT = {
    "format": 1,
    "passed": True,
    "model": "small net.onnx",
    "target": MACHINE,
    "manifest_sha256": "MANIFEST",
    "golden": {"failures": []},
    "profile": {
        "model": {
            "timing": {"median_ms": 12.5, "p10_ms": 12.25, "p90_ms": 13.0, "samples_per_second": 80.0},
            "memory": {"peak_bytes": 98_000_000},
        },
        "isa": "neon",
        "threads": 1,
        "runs": 2,
        "machine": {"cpu": "Cortex-A72", "cpus": 4, "onnxruntime": "1.27.0"},
        "board": {
            "model": "Raspberry Pi 4 Model B",
            "before": {"temperature_c": 41.2},
            "after": {"temperature_c": 63.4},
        },
        "throttled": [],
    },
}
"""What a board could report."""


def write_report(report: object = REPORT) -> str:
    """Lines of sh that leave a report as run.sh does; MANIFEST in it becomes the checksum of the manifest."""
    checksum = "$(sha256sum manifest.json | cut -c 1-64)"
    return f'printf %s {shlex.quote(json.dumps(report))} | sed "s/MANIFEST/{checksum}/" >report.json\n'


WORKS = f'echo "[1/2] installing" >&2\necho "[2/2] options: $*"\n{write_report()}'
"""A run.sh that works."""

# As the real one, it makes `venv` in place and removes it when it is interrupted; a sign tells the test that it began.
WAITS = f"""
trap 'rm -rf venv' EXIT
trap 'exit 143' HUP INT TERM PIPE
mkdir -p venv/bin
echo started
while [ ! -e "$HOME/../go" ]; do sleep 0.05; done
{write_report()}
trap - EXIT
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    server = SshServer(tmp_path_factory.mktemp("ssh server"))
    yield server
    server.stop()


@pytest.fixture
def board(server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SshServer]:
    """An empty board, with this process as the laptop. At the end, nothing may be running or half-installed."""
    server.reset()
    (server.folder / "go").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", f"{server.client}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield server
    wait_for(lambda: not server.left_over(), "no process and no connection is left")
    assert [path for path in server.tree() if ".partial" in path] == []
    # No temporary file and no socket on the laptop either.
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".gz", ".json")] == []


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_binary(tmp_path_factory.mktemp("model") / "small.onnx").read_bytes()


@pytest.fixture(scope="module")
def small_profile(tmp_path_factory: pytest.TempPathFactory, small_model: bytes) -> Any:
    path = tmp_path_factory.mktemp("profile") / "model.onnx"
    path.write_bytes(small_model)
    return profile(path, runs=2)


MakeBundle = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, small_model: bytes, small_profile: Any, monkeypatch: pytest.MonkeyPatch) -> MakeBundle:
    """Makes bundles with a run.sh of the test. The laptop's profile is measured once for all tests."""
    monkeypatch.setattr(deployment, "profile", lambda model, threads, runs: small_profile)

    def make(
        run: str = WORKS,
        target: str = MACHINE,
        name: str = "bundle.tar.gz",
        ballast: int = 1000,
        float_model: bytes | None = None,
    ) -> Path:
        wheel = f"wheels/bnn_deploy-1-py3-none-manylinux_2_17_{target}.whl"
        files = {
            "model.onnx": small_model,
            "golden.npz": os.urandom(ballast),
            "run.sh": f"#!/bin/sh\n{run}".encode(),
            wheel: b"wheel",
            **({} if float_model is None else {"float.onnx": float_model}),
        }
        manifest = Manifest(
            bnn_deploy="1",
            target=target,
            model="small net.onnx",
            offline=True,
            samples=1,
            wheel=wheel,
            made_with={"onnxruntime": "1", "numpy": "1", "cpu": "x", "isa": "x"},
            files={name: file_entry(content) for name, content in files.items()},
            sha256="",
        )
        manifest = with_checksum(manifest)
        files["manifest.json"] = manifest_bytes(manifest)
        files["SHA256SUMS"] = checksum_lines(manifest)
        path = tmp_path / name
        path.write_bytes(make_archive(files))
        assert check_bundle(path) == manifest
        return path

    return make


def folder_of(bundle: Path, directory: str = "bnn-deploy") -> str:
    """Where a bundle is on the board."""
    return f"{directory}/small_net-{check_bundle(bundle).sha256[:12]}"


def installed(bundle: Path, *more: str, directory: str = "bnn-deploy") -> list[str]:
    """`SshServer.tree` with this bundle complete, and `more` in its folder."""
    folder = folder_of(bundle, directory)
    above = ["/".join(folder.split("/")[:i]) for i in range(1, folder.count("/") + 2)]
    manifest = check_bundle(bundle)
    names = ["SHA256SUMS", "manifest.json", "wheels", *manifest.files, *more]
    return sorted([*above, *(f"{folder}/{name}" for name in names)])


def run(*arguments: str | Path) -> Result:
    """The command line."""
    return CliRunner().invoke(cli.main, ["deploy", *map(str, arguments)], prog_name="bnn-deploy")


def refused(bundle: Path, *options: str, code: int = 3) -> str:
    """The one line that the command ends with; it must leave no report."""
    result = run(HOST, bundle, *options)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert not report_of(bundle).exists()
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "internal error" not in last
    return last


def report_of(bundle: Path) -> Path:
    return bundle.with_name(bundle.name.replace(".tar.gz", ".report.json"))


def reported(bundle: Path, report: dict[str, Any] = REPORT) -> dict[str, Any]:
    """What the board reports after `write_report` ran on it."""
    return {**report, "manifest_sha256": check_bundle(bundle).sha256}


# --- it works -------------------------------------------------------------------------------------


def test_copies_runs_and_shows_both_machines(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    result = run(HOST, bundle)
    assert result.exit_code == 0, result.output
    # What run.sh prints arrives on stderr, in order, among the steps.
    lines = result.stderr.splitlines()
    assert lines.index("[1/2] installing") < lines.index("[2/2] options: ") < len(lines) - 1
    assert lines[0] == "connecting to board"
    assert json.loads(report_of(bundle).read_text()) == reported(bundle)
    assert board.tree() == installed(bundle, "report.json")
    cells = {
        line.split("  ")[0].strip(): re.split(r"  +", line.strip())[1:] for line in result.stdout.splitlines() if line
    }
    assert cells["machine"][1] == "Raspberry Pi 4 Model B"
    assert cells["ISA that ran"][1] == "neon"
    assert cells["threads"] == ["1", "1"]
    assert cells["median"][1] == "12.500 ms"
    assert cells["p10 to p90"][1] == "12.250 to 13.000 ms"
    assert cells["samples per second"][1] == "80"
    assert cells["peak memory"][1] == "98.0 MB"
    assert cells["temperature"][1] == "41 °C to 63 °C"
    assert cells["throttled"][1] == "no sign of it"
    assert cells["check"] == ["-", "PASSED"]
    assert result.stdout.splitlines()[-1] == "PASSED"


def test_shows_the_speed_up_where_the_bundle_has_the_float_model(
    board: SshServer, make: MakeBundle, small_model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = {**REPORT["profile"], "compare": {"timing": {"median_ms": 100.0}}, "speedup": {"median": 8.0}}
    bundle = make(run=write_report({**REPORT, "profile": compared}), float_model=small_model)
    monkeypatch.setattr(deployment, "profile", profile)
    result = run(HOST, bundle)
    assert result.exit_code == 0, result.output
    cells = {line.split("  ")[0].strip(): re.split(r"  +", line.strip())[1:] for line in result.stdout.splitlines()}
    assert cells["float model"][1] == "100.000 ms"
    assert cells["speed-up"][1] == f"8.00{TIMES}"
    here = [float(cells[name][0].removesuffix(" ms")) for name in ("median", "float model")]
    assert float(cells["speed-up"][0].removesuffix(TIMES)) == pytest.approx(here[1] / here[0], rel=0.2)


def test_a_second_run_copies_nothing(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    assert run(HOST, bundle).exit_code == 0
    model = board.home / folder_of(bundle) / "model.onnx"
    before = model.stat().st_ino
    result = run(HOST, bundle, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["copied"] is False
    assert "the complete bundle is on the board already" in result.stderr
    assert model.stat().st_ino == before


def test_options_of_the_run_arrive_there(board: SshServer, make: MakeBundle) -> None:
    result = run(HOST, make(), "--threads", "2", "--runs", "7")
    assert "[2/2] options: --threads 2 --runs 7" in result.stderr.splitlines()


def test_json_is_all_that_is_on_stdout(board: SshServer, make: MakeBundle, tmp_path: Path) -> None:
    bundle = make()
    result = run(HOST, bundle, "--json", "--report", tmp_path / "r.json")
    values = json.loads(result.stdout)
    assert values["passed"] is values["copied"] is True
    assert values["report"] == reported(bundle) == json.loads((tmp_path / "r.json").read_text())
    assert values["report_file"] == str(tmp_path / "r.json")
    assert values["board"]["machine"] == MACHINE
    assert values["laptop"]["model"]["timing"]["median_ms"] > 0
    assert not report_of(bundle).exists()


@pytest.mark.parametrize(
    ("directory", "where"),
    [
        ("my models", "my models"),
        ("~/models", "models"),
        ("a/b/c", "a/b/c"),
        ('it\'s $HOME `id` "x" \\n; exit 3', 'it\'s $HOME `id` "x" \\n; exit 3'),
        ("-rf", "-rf"),
        ("*", "*"),
    ],
)
def test_directories(board: SshServer, make: MakeBundle, directory: str, where: str) -> None:
    bundle = make()
    result = deploy(HOST, bundle, directory=directory)
    assert result.look.folder == f"{board.home}/{folder_of(bundle, where)}"
    assert board.tree() == installed(bundle, "report.json", directory=where)


def test_an_absolute_directory(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    deploy(HOST, bundle, directory=str(board.home / "absolute"))
    assert board.tree() == installed(bundle, "report.json", directory="absolute")


def test_options_for_ssh_and_a_user_name(board: SshServer, make: MakeBundle) -> None:
    board.write_config(Port="1")
    bundle = make()
    assert "refused" in refused(bundle)
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    assert deploy(f"{user}@{HOST}", bundle, ssh_options=[f"Port={board.port}"]).passed


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_shells(board: SshServer, make: MakeBundle, shell: str) -> None:
    board.tool("sh", f'exec {shell} "$@"')
    assert deploy(HOST, make()).passed


def test_a_login_shell_that_prints_things(board: SshServer, make: MakeBundle) -> None:
    board.prelude("echo welcome; echo '@0123456789abcdef error no'; printf 'no line end' >&2\n")
    assert deploy(HOST, make()).passed


def test_control_characters_of_the_board_do_not_reach_the_terminal(board: SshServer, make: MakeBundle) -> None:
    result = run(HOST, make(r"printf '\033[2Jx\n'" + "\n" + write_report()))
    assert result.exit_code == 0
    assert "\\x1b[2Jx" in result.stderr.splitlines()
    assert "\x1b" not in result.output


def test_a_master_connection_of_the_user_is_not_started(board: SshServer, make: MakeBundle, tmp_path: Path) -> None:
    socket = tmp_path / "master"
    board.write_config(ControlMaster="auto", ControlPath=f'"{socket}"', ControlPersist="yes")
    assert deploy(HOST, make()).passed
    assert not socket.exists()


def test_one_connection_does_it_all(board: SshServer, make: MakeBundle) -> None:
    deploy(HOST, make())
    assert len(board.calls.read_text().splitlines()) == 1


# --- dry run --------------------------------------------------------------------------------------


def test_dry_run_changes_nothing(board: SshServer, make: MakeBundle, tmp_path: Path) -> None:
    bundle = make()
    result = run(HOST, bundle, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"copy {bundle.stat().st_size / 1e3:.1f}"[:7] in result.stdout
    assert f"{board.home}/{folder_of(bundle)}" in result.stdout
    assert "Nothing was changed" in result.stdout
    assert board.tree() == []
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]
    values = json.loads(run(HOST, bundle, "--dry-run", "--json").stdout)
    assert values["problems"] == []
    assert values["board"]["python"] == ".".join(map(str, sys.version_info[:3])) or values["board"]["python"]
    deploy(HOST, bundle)
    before = board.tree()
    assert "copy " not in run(HOST, bundle, "--dry-run").stdout
    assert board.tree() == before


def test_dry_run_says_all_that_is_missing(board: SshServer, make: MakeBundle) -> None:
    board.only_tools_but("python3", "flock")
    result = run(HOST, make(target=OTHER), "--dry-run")
    assert result.exit_code == 3
    missing = [line for line in result.stdout.splitlines() if line.startswith("missing: ")]
    assert len(missing) == 3
    assert f"make one for it with 'bnn-deploy bundle --target {MACHINE}'" in missing[0]
    assert "no python3: sudo apt install python3 python3-venv" in missing[1]
    assert "no flock: sudo apt install util-linux" in missing[2]
    assert "see above" in result.stderr
    assert board.tree() == []


# --- a board that cannot run it -------------------------------------------------------------------


def test_the_wrong_architecture(board: SshServer, make: MakeBundle) -> None:
    message = refused(make(target=OTHER))
    assert f"the bundle is for Linux {OTHER}, the board is Linux {MACHINE}" in message
    assert board.tree() == []


def test_no_python(board: SshServer, make: MakeBundle) -> None:
    board.only_tools_but("python3")
    assert refused(make()).endswith(": no python3: sudo apt install python3 python3-venv")
    assert board.tree() == []


def test_only_python_is_missing_there(board: SshServer, make: MakeBundle) -> None:
    """Beside the test above: the same board with python3 works."""
    board.only_tools_but()
    assert deploy(HOST, make()).passed


def test_no_venv_module(board: SshServer, make: MakeBundle) -> None:
    # What Debian's python3 without python3-venv does: venv is there, ensurepip is not.
    hide = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv.pop(1))"
    board.tool("python3", f'shift 3\nexec {sys.executable} -c "{hide}" "$@"')
    assert refused(make()).endswith(": its Python has no venv module: sudo apt install python3-venv")
    assert board.tree() == []


def test_an_old_python(board: SshServer, make: MakeBundle) -> None:
    board.tool("python3", "echo 3.9.2 64 yes")
    assert "its Python 3.9.2 is older than 3.11" in refused(make())


def test_32_bit_programs_on_a_64_bit_kernel(board: SshServer, make: MakeBundle) -> None:
    board.tool("getconf", 'case $1 in LONG_BIT) echo 32 ;; *) echo "glibc 2.36" ;; esac')
    assert ": its system is 32-bit on a 64-bit kernel: install a 64-bit one" in refused(make())
    assert board.tree() == []


def test_too_little_disk(board: SshServer, make: MakeBundle) -> None:
    board.tool("df", "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo /dev/sd 99999 9 50000 9% /")
    message = refused(make())
    assert f"{board.home} has 51 MB of free disk and 300 MB are needed" in message
    assert board.tree() == []


def test_a_directory_that_is_a_file(board: SshServer, make: MakeBundle) -> None:
    (board.home / "file").touch()
    assert f"{board.home}/file is not a directory" in refused(make(), "--directory", "file/models")
    assert board.tree() == ["file"]


def test_a_directory_that_cannot_be_written(board: SshServer, make: MakeBundle) -> None:
    assert "is not writable for this user" in refused(make(), "--directory", "/proc/self/models")


def test_a_board_without_a_usable_shell(board: SshServer, make: MakeBundle) -> None:
    board.prelude("echo This account is not available.; exit 1\n")
    assert refused(make()).endswith("board: its shell ended with status 1: This account is not available.")


def test_programs_that_are_missing(board: SshServer, make: MakeBundle) -> None:
    board.only_tools_but("tar", "sha256sum")
    assert refused(make()).endswith(": no tar, sha256sum: sudo apt install coreutils tar")


GOOD_BOARD = Board(
    system="Linux",
    machine="aarch64",
    bits=64,
    os="Debian GNU/Linux 12 (bookworm)",
    glibc=(2, 36),
    python=(3, 11, 2),
    python_bits=64,
    venv=True,
    model="Raspberry Pi 4 Model B Rev 1.4",
    cpus=4,
    memory_bytes=4_000_000_000,
    available_bytes=3_000_000_000,
    directory="/home/pi/bnn-deploy",
    parent="/home/pi",
    disk_free_bytes=20_000_000_000,
    access="yes",
    installed="no",
    missing_tools=(),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"bits": None, "model": None, "available_bytes": None, "disk_free_bytes": None}, None),
        ({"machine": "armv7l", "bits": 32}, "the board is Linux armv7l: install a 64-bit system"),
        ({"machine": "armv6l", "bits": 32}, "install a 64-bit system, such as Raspberry Pi OS"),
        ({"system": "Darwin", "machine": "arm64"}, "the board is Darwin arm64"),
        ({"machine": "x86_64"}, "make one for it with 'bnn-deploy bundle --target x86_64'"),
        ({"bits": 32}, "its system is 32-bit"),
        ({"python_bits": 32}, "its python3 is 32-bit"),
        ({"glibc": None}, "its C library is not glibc"),
        ({"glibc": (2, 9)}, "its glibc 2.9 is older than 2.17"),
        ({"glibc": (2, 17)}, None),
        ({"python": None}, "no python3"),
        ({"python": (3, 10, 9)}, "its Python 3.10.9 is older than 3.11"),
        ({"python": (3, 14, 0)}, None),
        ({"venv": False}, "no venv module"),
        ({"available_bytes": 199_999_999}, "200 MB of memory and swap are free"),
        ({"disk_free_bytes": 1_000_000}, "has 1.0 MB of free disk and 9.0 MB are needed"),
        ({"disk_free_bytes": 9_000_000}, None),
        ({"access": "no"}, "/home/pi is not writable"),
        ({"missing_tools": ("gzip", "head", "sha256sum")}, "sudo apt install coreutils gzip"),
    ],
)
def test_problems(make: MakeBundle, changes: dict[str, Any], message: str | None) -> None:
    found = problems(replace(GOOD_BOARD, **changes), check_bundle(make(target="aarch64")), needed_bytes=9_000_000)
    if message is None:
        assert found == ()
    else:
        assert len(found) == 1
        assert message in found[0]


@pytest.mark.parametrize(
    ("wheels", "python", "unfit"),
    [
        (["numpy-2-cp311-cp311-manylinux_2_28_aarch64"], (3, 11, 2), []),
        (["numpy-2-cp311-cp311-manylinux_2_28_aarch64"], (3, 13, 5), ["numpy"]),
        (["numpy-2-cp313-cp313-manylinux_2_28_aarch64"], (3, 11, 2), ["numpy"]),
        (["numpy-2-cp311-cp311-linux_aarch64", "numpy-2-cp313-cp313-linux_aarch64"], (3, 13, 5), []),
        (["protobuf-7-cp310-abi3-manylinux2014_aarch64", "rich-15-py3-none-any"], (3, 13, 5), []),
        (["flatbuffers-25-py2.py3-none-any", "old-1-py2-none-any"], (3, 13, 5), ["old"]),
        (["new-1-py312-none-any"], (3, 11, 2), ["new"]),
    ],
)
def test_offline_wheels_must_fit_the_boards_python(
    make: MakeBundle, wheels: list[str], python: tuple[int, ...], unfit: list[str]
) -> None:
    manifest = check_bundle(make(target="aarch64"))
    entry = manifest.files["run.sh"]
    manifest = replace(manifest, files={**manifest.files, **{f"wheels/{name}.whl": entry for name in wheels}})
    board = replace(GOOD_BOARD, python=python, glibc=(2, 41))
    found = problems(board, manifest, 0)
    wanted = f"the bundle has no wheel of {', '.join(unfit)} for its Python {python[0]}.{python[1]}: "
    assert [text.startswith(wanted) for text in found] == [True] * bool(unfit)
    assert problems(board, replace(manifest, offline=False), 0) == ()  # pip fetches them


# --- no connection --------------------------------------------------------------------------------


def test_an_unreachable_port(board: SshServer, make: MakeBundle) -> None:
    message = refused(make(), "-o", "Port=1")
    assert message.startswith("error: board: no connection, ssh says 'ssh: connect to host 127.0.0.1 port 1:")
    assert message.endswith("Connection refused': is the board on, in this network, and its SSH server enabled?")


def test_a_name_that_is_unknown(board: SshServer, make: MakeBundle) -> None:
    assert refused(make(), "-o", "HostName=no-such-board.invalid").endswith("check the name, or give the address")


def test_a_refused_key(board: SshServer, make: MakeBundle) -> None:
    board.write_config(IdentityFile=f'"{board.folder / "other_key"}"')
    message = refused(make())
    assert "Permission denied (publickey)" in message
    assert message.endswith("put your key on the board with 'ssh-copy-id board'")


def test_an_unknown_host_key(board: SshServer, make: MakeBundle) -> None:
    board.know_host(None)
    message = refused(make())
    assert "ssh says 'Host key verification failed.'" in message
    assert message.endswith("run 'ssh board' once, to see and accept its host key")


def test_a_changed_host_key(board: SshServer, make: MakeBundle) -> None:
    board.know_host("other_key")
    message = refused(make())
    assert "the host key is not the one that this machine knows" in message
    assert re.search(r"ssh-keygen -R '?(\[127\.0\.0\.1\]:\d+|board)'?;", message)
    assert board.tree() == []


def test_no_ssh_on_the_laptop(board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(board.tools))
    assert refused(make()) == "error: ssh is not on this machine: sudo apt install openssh-client"


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "-x@board", "", "a b", "board\n"])
def test_hosts_that_are_none(board: SshServer, make: MakeBundle, tmp_path: Path, host: str) -> None:
    bundle = make()
    with pytest.raises(InputError, match=r"is not a host: give it as \[USER@\]HOST"):
        deploy(host, bundle)
    assert not board.calls.exists()
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]


@pytest.mark.parametrize("directory", ["", "~pi/models", "a\nb", "\x1b"])
def test_directories_that_are_none(board: SshServer, make: MakeBundle, directory: str) -> None:
    with pytest.raises(InputError, match="directory"):
        look(HOST, make(), directory=directory)
    assert not board.calls.exists()


def test_other_usage_errors(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    assert "is not an option of ssh" in refused(bundle, "-o", "Port", code=2)
    assert "its folder does not exist" in refused(bundle, "--report", "absent/r.json", code=2)
    assert not board.calls.exists()


@pytest.mark.parametrize("where", [10, 200, 0.5, -6])
def test_a_changed_bundle_is_refused_before_a_connection_is_made(
    board: SshServer, make: MakeBundle, where: float
) -> None:
    bundle = make()
    content = bytearray(bundle.read_bytes())
    content[where if isinstance(where, int) else int(len(content) * where)] ^= 1
    bundle.write_bytes(content)
    refused(bundle, code=2)
    assert not board.calls.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-20] + bytes(20), "board: the copy of the bundle is damaged; nothing of it is left"),
        (lambda content: content[:-20], "it was changed while it was copied"),
    ],
)
def test_a_bundle_that_is_changed_after_its_check(
    board: SshServer,
    make: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    """What is sent is not what was checked."""
    bundle = make()

    def check(path: Path) -> Manifest:
        manifest = check_bundle(path)
        path.write_bytes(change(path.read_bytes()))
        return manifest

    monkeypatch.setattr(deployment, "check_bundle", check)
    with pytest.raises(InputError if "while" in message else SetupError, match=message):
        deploy(HOST, bundle)
    assert not report_of(bundle).exists()
    wait_for(lambda: not board.left_over(), "the board has cleaned up")
    assert board.tree() == []


def test_a_bundle_that_grows_after_its_check(
    board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just what was checked is sent, and runs to its end; then this machine finds the file changed."""
    bundle = make()

    def check(path: Path) -> Manifest:
        manifest = check_bundle(path)
        path.write_bytes(path.read_bytes() + bytes(20))
        return manifest

    monkeypatch.setattr(deployment, "check_bundle", check)
    with pytest.raises(InputError, match=re.escape(str(bundle))):
        deploy(HOST, bundle)
    assert json.loads(report_of(bundle).read_text())["passed"] is True


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
    monkeypatch.setattr(deployment, "problems", lambda board, manifest, needed_bytes: ())
    message = refused(bundle, "--directory", "disk/models")
    assert f"cannot {step} the bundle: " in message
    assert "(0 kB of disk are free)" in message
    assert list(small_disk.iterdir()) == []


# --- a lost connection ----------------------------------------------------------------------------


def cut_at(board: SshServer, text: str) -> Callable[[str], None]:
    """An `output` that breaks the connection at a line."""

    def output(line: str) -> None:
        if text in line:
            board.cut()

    return output


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
    monkeypatch.setattr(deployment, "LOCK_SECONDS", 1)
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
    bundle = make(WAITS.replace("'rm -rf venv'", "'sleep 1; rm -rf venv'"))
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
    board.tool("rm", 'sleep 1; exec /bin/rm "$@"')
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
        [sys.executable, "-P", "-c", code, "deploy", HOST, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C in a terminal reaches ssh as well
        (os.kill, signal.SIGINT, 130),
        (os.kill, signal.SIGTERM, -signal.SIGTERM),
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


# --- what run.sh says -----------------------------------------------------------------------------


def test_run_fails(board: SshServer, make: MakeBundle) -> None:
    bundle = make("echo '[2/5] venv' >&2\necho 'error: no space left' >&2\nexit 3\n")
    assert refused(bundle).endswith("board: run.sh ended there with status 3: error: no space left")
    assert board.tree() == installed(bundle)


def test_run_is_killed(board: SshServer, make: MakeBundle) -> None:
    assert "run.sh ended there with status 137" in refused(make("kill -KILL $$\n"))


def test_the_check_fails_on_the_board(board: SshServer, make: MakeBundle) -> None:
    failed = {**REPORT, "passed": False, "golden": {"failures": ["layer conv2: 3 bits differ"]}, "profile": None}
    bundle = make(f"{write_report(failed)}exit 1\n")
    result = run(HOST, bundle)
    assert result.exit_code == 1
    assert "FAILED: layer conv2: 3 bits differ" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1] == "FAILED"
    assert json.loads(report_of(bundle).read_text()) == reported(bundle, failed)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([], "does not say whether the check passed"),
        ({**REPORT, "passed": 1}, "does not say whether the check passed"),
        ({**REPORT, "format": 2}, "has format 2, this version reads 1"),
        ({**REPORT, "manifest_sha256": "0" * 64}, "is not for this bundle, but for the model 'small net.onnx'"),
        ({**REPORT, "passed": False}, "its report and the status 0 of run.sh contradict each other"),
    ],
)
def test_reports_that_cannot_be_used(board: SshServer, make: MakeBundle, report: object, message: str) -> None:
    assert message in refused(make(write_report(report)))


def test_a_report_that_is_not_json(board: SshServer, make: MakeBundle) -> None:
    assert "its report is not JSON" in refused(make("echo no >report.json\n"))


def test_a_report_of_another_version(board: SshServer, make: MakeBundle) -> None:
    """What a report does not say is '-', whatever stands there instead."""
    sparse = {key: REPORT[key] for key in ("format", "passed", "model", "target", "manifest_sha256")}
    for measured in ({}, {"model": [], "threads": 3, "throttled": "x", "machine": None, "board": 5}):
        result = run(HOST, make(write_report({**sparse, "profile": measured})))
        assert result.exit_code == 0, result.output
        rows = [
            line.split()[-1] for line in result.stdout.splitlines() if line.startswith(("median", "peak", "machine"))
        ]
        assert rows == ["-", "-", "-"]


def test_a_throttled_board_says_so(board: SshServer, make: MakeBundle) -> None:
    throttled = {**REPORT["profile"], "throttled": ["under-voltage"]}
    result = run(HOST, make(write_report({**REPORT, "profile": throttled})))
    assert "YES: under-voltage" in result.stdout


# --- from the wheel to the report -----------------------------------------------------------------


def write_wheel(folder: Path, name: str, files: dict[str, bytes | Path]) -> None:
    """Write a wheel, stored without compression: that is quick."""
    with zipfile.ZipFile(folder / name, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content if isinstance(content, bytes) else content.read_bytes())
        info = next(inside.rpartition("/")[0] for inside in files if inside.endswith(".dist-info/METADATA"))
        archive.writestr(f"{info}/RECORD", "".join(f"{inside},,\n" for inside in [*files, f"{info}/RECORD"]))


def needed_packages() -> list[metadata.Distribution]:
    """What bnn-deploy needs on a board, and what that needs, as it is installed here."""
    names, found = list(REQUIRED), []
    for name in names:
        distribution = metadata.distribution(name)
        found.append(distribution)
        for requirement in map(Requirement, distribution.requires or []):
            if (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ) and requirement.name not in names:
                names.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all packages that a board needs, made from what is installed here."""
    folder = tmp_path_factory.mktemp("wheels")
    for distribution in needed_packages():
        files = {
            str(file): Path(str(distribution.locate_file(file)))
            for file in distribution.files or []
            if ".." not in file.parts and "__pycache__" not in file.parts and file.name not in ("RECORD", "INSTALLER")
        }
        info = next(file for inside, file in files.items() if inside.endswith(".dist-info/WHEEL")).read_text()
        tags = [tag.split("-") for tag in re.findall(r"^Tag: (.*)$", info, re.MULTILINE)]
        tag = "-".join(".".join(dict.fromkeys(tag[i] for tag in tags)) for i in range(3))
        name = distribution.metadata["Name"].replace("-", "_")
        write_wheel(folder, f"{name}-{distribution.version}-{tag}.whl", files)
    version = "1" if bnn_deploy.__version__ == "0+unknown" else bnn_deploy.__version__
    info = f"bnn_deploy-{version}.dist-info"
    required = "".join(f"Requires-Dist: {name}\n" for name in REQUIRED)
    package = Path(bnn_deploy.__file__).parent
    own: dict[str, bytes | Path] = {
        f"bnn_deploy/{path.relative_to(package)}": path
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "demo_data" not in path.parts
    }
    own |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: bnn-deploy\nVersion: {version}\n{required}".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-linux_{MACHINE}\n".encode(),
        f"{info}/entry_points.txt": b"[console_scripts]\nbnn-deploy = bnn_deploy.cli:main\n",
    }
    write_wheel(folder, f"bnn_deploy-{version}-py3-none-linux_{MACHINE}.whl", own)
    return folder


@pytest.fixture(scope="module")
def lenet5_bundle(tmp_path_factory: pytest.TempPathFactory, lenet5: Converted, wheels: Path) -> Path:
    """An offline bundle of the trained LeNet-5 for this machine."""
    path = tmp_path_factory.mktemp("bundle") / "lenet5.tar.gz"
    manifest = bundles.write_bundle(lenet5.model, path, target=MACHINE, samples=8, wheels=wheels)
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
