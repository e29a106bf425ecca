"""A board that cannot run the bundle: what is missing is said, and nothing is changed."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from bnn_deploy.board.archive import check_bundle
from bnn_deploy.board.deployment import deploy
from bnn_deploy.board.probe import BoardFacts, problems
from bnn_deploy.errors import InputError
from support.deployment import MACHINE, OTHER, MakeBundle, refused
from support.ssh_server import HOST, SshServer


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
    assert "its Python 3.9.2 is older than 3.10" in refused(make())


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


GOOD_BOARD = BoardFacts(
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
    systemd=True,
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
        ({"python": (3, 9, 9)}, "its Python 3.9.9 is older than 3.10"),
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
    found = problems(
        replace(GOOD_BOARD, **changes), check_bundle(make(target="aarch64")), needed_bytes=9_000_000, service=False
    )
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
        (["numpy-2.0-1-cp311-cp311-manylinux_2_17_aarch64"], (3, 11, 2), []),
        (["numpy-2.0-1-cp311-cp311-manylinux_2_17_aarch64"], (3, 13, 5), ["numpy"]),
        (["numpy-2.0-1-cp311-cp311-linux_aarch64", "numpy-2.0-cp313-cp313-linux_aarch64"], (3, 13, 5), []),
        (["numpy-2-cp313-cp313t-manylinux_2_28_aarch64"], (3, 13, 5), ["numpy"]),  # for a Python without the GIL
        (["Markdown_it-1-py2-none-any"], (3, 11, 2), ["markdown-it"]),
    ],
)
def test_offline_wheels_must_fit_the_boards_python(
    make: MakeBundle, wheels: list[str], python: tuple[int, ...], unfit: list[str]
) -> None:
    manifest = check_bundle(make(target="aarch64"))
    entry = manifest.files["run.sh"]
    manifest = replace(manifest, files={**manifest.files, **{f"wheels/{name}.whl": entry for name in wheels}})
    board = replace(GOOD_BOARD, python=python, glibc=(2, 41))
    found = problems(board, manifest, 0, False)
    wanted = f"the bundle has no wheel of {', '.join(unfit)} for its Python {python[0]}.{python[1]}: "
    assert [text.startswith(wanted) for text in found] == [True] * bool(unfit)
    assert problems(board, replace(manifest, offline=False), 0, False) == ()  # pip fetches them


@pytest.mark.parametrize("name", ["x", "numpy-2-cp311", "numpy-two-cp311-cp311-linux_aarch64"])
def test_a_wheel_whose_name_is_none(make: MakeBundle, name: str) -> None:
    manifest = check_bundle(make(target="aarch64"))
    entry = manifest.files["run.sh"]
    manifest = replace(manifest, files={**manifest.files, f"wheels/{name}.whl": entry})
    with pytest.raises(InputError, match=f"^the bundle's wheels/{name}.whl is not named as a wheel: "):
        problems(GOOD_BOARD, manifest, 0, False)
    assert problems(GOOD_BOARD, replace(manifest, offline=False), 0, False) == ()  # pip alone reads it
