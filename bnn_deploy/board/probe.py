"""What a board is and has, read from the answers of its shell, and what is missing there for a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from bnn_deploy.board.manifest import MODEL, WHEELS, Manifest
from bnn_deploy.errors import InputError, one_line

MINIMUM_PYTHON = (3, 10)

VENV_BYTES = 300_000_000
"""Disk for the virtual environment: 200 MB on x86-64 with onnxruntime 1.31, 280 MB with 1.19, which needs sympy."""

MINIMUM_MEMORY_BYTES = 200_000_000
"""Free memory and swap for Python with onnxruntime, besides the model: about 100 MB, and pip needs more than that."""


@dataclass(frozen=True)
class BoardFacts:
    """What a board says about itself, through POSIX tools: Python need not be there. None: it does not say.

    Attributes:
        system: `uname -s`.
        machine: `uname -m`, the architecture of the kernel.
        bits: of the C library, 32 or 64: a 64-bit kernel can have 32-bit programs.
        os: name and version of the distribution.
        glibc: version of the C library; None if it is another one.
        python: version of python3; None if there is none that starts.
        python_bits: 32 or 64.
        venv: whether python3 has the modules venv and ensurepip.
        model: the board's name in its device tree.
        cpus: that this user may use.
        memory_bytes: main memory.
        available_bytes: of it free for programs, and free swap.
        directory: absolute path of the folder for bundles.
        parent: the folder itself, or the nearest one above it that exists.
        disk_free_bytes: free disk in `parent`, for this user.
        access: "yes" if this user may write into `parent`, "no", or "file" if it is no directory.
        installed: "yes" if this bundle is there with a virtual environment, "copied" if it is there without one, "no".
        missing_tools: programs that deploying needs and the board lacks.
        systemd: whether it has the command systemctl.
    """

    system: str
    machine: str
    bits: int | None
    os: str | None
    glibc: tuple[int, int] | None
    python: tuple[int, ...] | None
    python_bits: int | None
    venv: bool
    model: str | None
    cpus: int | None
    memory_bytes: int | None
    available_bytes: int | None
    directory: str
    parent: str
    disk_free_bytes: int | None
    access: str
    installed: str
    missing_tools: tuple[str, ...]
    systemd: bool


def problems(board: BoardFacts, manifest: Manifest, needed_bytes: int, service: bool) -> tuple[str, ...]:
    """Find what a bundle misses on a board.

    Args:
        board: the facts.
        manifest: of the bundle.
        needed_bytes: free disk that it takes.
        service: whether its service shall be set up.

    Returns:
        One sentence per problem, with what to do; none if the bundle can be deployed.

    Raises:
        InputError: the bundle lists a .whl file whose name is not that of a wheel.
    """
    result = []
    if (board.system, board.machine) != ("Linux", manifest.target):
        remedy = f"make one for it with 'bnn-deploy bundle --target {board.machine}'"
        if board.system != "Linux" or board.machine not in ("x86_64", "aarch64"):
            remedy = "install a 64-bit system, such as Raspberry Pi OS (64-bit)"
        result.append(
            f"the bundle is for Linux {manifest.target}, the board is {board.system} {board.machine}: {remedy}"
        )
    elif board.bits == 32 or board.python_bits == 32:
        what = "system" if board.bits == 32 else "python3"
        result.append(
            f"its {what} is 32-bit on a 64-bit kernel: install a 64-bit one, such as Raspberry Pi OS (64-bit)"
        )
    wanted = _needed_glibc(manifest)
    if board.glibc is None:
        result.append("its C library is not glibc: install a system with glibc, such as Debian or Raspberry Pi OS")
    elif board.glibc < wanted:
        have, want = _version(board.glibc), _version(wanted)
        result.append(f"its glibc {have} is older than {want}: upgrade the system, or build the wheel for an older one")
    if board.python is None:
        result.append("no python3: sudo apt install python3 python3-venv")
    elif board.python < MINIMUM_PYTHON:
        have, want = _version(board.python), _version(MINIMUM_PYTHON)
        result.append(f"its Python {have} is older than {want}: upgrade the system (Raspberry Pi OS bookworm has 3.11)")
    elif unfit := _unfit_packages(manifest, board.python):
        have = _version(board.python[:2])
        result.append(
            f"the bundle has no wheel of {', '.join(unfit)} for its Python {have}: "
            f"make it with those that 'pip download --python-version {have}' fetches"
        )
    elif not board.venv:
        result.append("its Python has no venv module: sudo apt install python3-venv")
    if board.missing_tools:
        packages = {"sha256sum": "coreutils", "head": "coreutils", "flock": "util-linux"}
        install = " ".join(sorted({packages.get(tool, tool) for tool in board.missing_tools}))
        result.append(f"no {', '.join(board.missing_tools)}: sudo apt install {install}")
    if service and not board.systemd:
        result.append(
            f"no systemd, which runs {manifest.service}: leave out --install-service, and start the program there"
        )
    if board.access == "file":
        result.append(f"{board.parent} is not a directory: choose another --directory")
    elif board.access != "yes":
        result.append(f"{board.parent} is not writable for this user: choose another --directory")
    if board.disk_free_bytes is not None and board.disk_free_bytes < needed_bytes:
        free, need = in_megabytes(board.disk_free_bytes), in_megabytes(needed_bytes)
        result.append(f"{board.parent} has {free} of free disk and {need} are needed: free some, or choose --directory")
    memory = MINIMUM_MEMORY_BYTES + 2 * manifest.files[MODEL].bytes
    if board.available_bytes is not None and board.available_bytes < memory:
        free, need = in_megabytes(board.available_bytes), in_megabytes(memory)
        result.append(f"{free} of memory and swap are free and {need} are needed: end programs, or add swap")
    return tuple(result)


def _needed_glibc(manifest: Manifest) -> tuple[int, int]:
    """The newest glibc that a wheel of the bundle asks for; a wheel that names several is content with the oldest."""
    needed = [(0, 0)]
    for name in manifest.files:
        tags = re.findall(r"manylinux_(\d+)_(\d+)_", name)
        if tags:
            needed.append(min((int(major), int(minor)) for major, minor in tags))
    return max(needed)


def _unfit_packages(manifest: Manifest, python: Sequence[int]) -> list[str]:
    """The packages that the board must take from the bundle and that are there for other versions of Python only."""
    fits: dict[str, bool] = {}
    for path in manifest.files:
        if manifest.offline and path.endswith(".whl"):
            try:
                package, _, _, tags = parse_wheel_filename(path.removeprefix(f"{WHEELS}/"))
            except InvalidWheelFilename as error:
                raise InputError(f"the bundle's {path} is not named as a wheel: {one_line(error)}") from error
            fits[package] = fits.get(package, False) or _fits_python(tags, python)
    return [package for package, fit in fits.items() if not fit]


def _fits_python(tags: frozenset[Tag], python: Sequence[int]) -> bool:
    """Whether a wheel is for this CPython, on whatever platforms it is for: cp311-cp311, cp38-abi3, py3-none."""
    version = python[:2]
    interpreter = f"cp{version[0]}{version[1]}"
    platforms = {tag.platform for tag in tags}
    # The ABI is given, because packaging would take it from the Python that runs here.
    good = chain(cpython_tags(version, [interpreter], platforms), compatible_tags(version, interpreter, platforms))
    return not tags.isdisjoint(good)


def _version(parts: Sequence[int] | None) -> str | None:
    return None if parts is None else ".".join(map(str, parts))


def in_megabytes(count: int) -> str:
    """A number of bytes for people, such as "2.5 MB"."""
    return f"{count / 1e6:,.{1 if count < 1e7 else 0}f} MB"


def parse_board(facts: dict[str, str]) -> BoardFacts:
    """Read the facts that deploy.sh prints."""
    libc = re.fullmatch(r"glibc (\d+)\.(\d+).*", facts["libc"])
    python = re.fullmatch(r"([\d.]+) (\d+) (yes|no)", facts["python"])
    memory = {name: int(value) * 1024 for name, value in re.findall(r"(\w+): +(\d+) kB", facts["memory"])}
    # `df -P`: file system, 1024-byte blocks, used, available (negative where root's reserve is in use), capacity.
    disk = re.search(r"\s\d+\s+-?\d+\s+(-?\d+)\s+\d+%\s", facts["disk"])
    if facts["installed"] not in ("yes", "copied", "no"):
        raise ValueError(facts["installed"])
    return BoardFacts(
        system=facts["system"],
        machine=facts["machine"],
        bits=int(facts["bits"]) if facts["bits"].isdecimal() else None,
        os=facts["os"] or None,
        glibc=(int(libc[1]), int(libc[2])) if libc else None,
        python=tuple(int(part) for part in python[1].split(".")) if python else None,
        python_bits=int(python[2]) if python else None,
        venv=python is not None and python[3] == "yes",
        model=facts["model"] or None,
        cpus=int(facts["cpus"]) if facts["cpus"].isdecimal() else None,
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory["MemAvailable"] + memory.get("SwapFree", 0) if "MemAvailable" in memory else None,
        directory=facts["directory"],
        parent=facts["parent"],
        disk_free_bytes=max(0, int(disk[1])) * 1024 if disk else None,
        access=facts["access"],
        installed=facts["installed"],
        missing_tools=tuple(facts["missing"].split()),
        systemd=facts["systemd"] == "yes",
    )
