"""The wheels of a bundle: which fit the board, what they require, and the operator library in them."""

from __future__ import annotations

import io
import platform
import re
import struct
import zipfile
import zlib
from email.parser import Parser
from pathlib import Path

import bnn_deploy
from bnn_deploy.board.manifest import MACHINES
from bnn_deploy.errors import InputError, one_line

LIBRARY = "bnn_deploy/_lib/libbnn_deploy_ops.so"
"""The operator library in the wheel."""

REQUIRED = ("click", "numpy", "onnxruntime", "rich")
"""The packages that bnn-deploy needs on a board."""

_WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-[^-]+-(?P<platform>[^-]+)\.whl")


def collect_wheels(folder: Path, target: str) -> tuple[str, str, dict[str, bytes]]:
    """The version of bnn-deploy, the file name of its wheel, and all wheels that fit the target, by file name."""
    cross = "BNN_DEPLOY_TARGET=aarch64 " if target == "aarch64" != platform.machine() else ""
    build = f"build one in the source tree: {cross}pip wheel --no-deps -w {folder} ."
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it must hold the wheel of bnn-deploy for {target}: {build}")
    names = sorted(path.name for path in folder.glob("*.whl"))
    found = {name: match for name in names if (match := _WHEEL.fullmatch(name)) and _fits(match["platform"], target)}
    own = [name for name in found if _package(name) == "bnn-deploy"]
    # A source tree that is not installed has no version of its own to compare with.
    version = None if bnn_deploy.__version__ == "0+unknown" else bnn_deploy.__version__
    wheels = [name for name in own if found[name]["platform"] != "any" and version in (None, found[name]["version"])]
    if not wheels:
        others = f" (it has {', '.join(own)})" if own else ""
        wanted = f"bnn_deploy-{version or '*'}-py3-none-manylinux_*_{target}.whl"
        raise InputError(f"{folder}: holds no {wanted}{others}: {build}")
    if len(wheels) > 1:
        raise InputError(f"{folder}: which wheel of bnn-deploy shall go in? It has {', '.join(wheels)}; keep one")
    wheel = wheels[0]
    contents = {name: (folder / name).read_bytes() for name in found if name == wheel or name not in own}
    _check_library(folder / wheel, contents[wheel], target)
    return found[wheel]["version"], wheel, contents


def _fits(platform: str, target: str) -> bool:
    """Whether a wheel's platform tags say that glibc systems of the architecture can use it."""
    return any(
        tag == "any" or (tag.startswith(("manylinux", "linux_")) and tag.endswith(f"_{target}"))
        for tag in platform.split(".")
    )


def _package(wheel: str) -> str:
    """The normalised name of the package in a wheel."""
    return re.sub(r"[-_.]+", "-", wheel.partition("-")[0]).lower()


def _check_library(path: Path, content: bytes, target: str) -> None:
    """Check that the wheel's library is one for the target: a wheel can be tagged wrongly."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            header = archive.read(LIBRARY)[:20]
    except (zipfile.BadZipFile, KeyError, zlib.error) as error:
        raise InputError(f"{path}: not a wheel of bnn-deploy: {one_line(error)}") from error
    if len(header) < 20 or header[:4] != b"\x7fELF" or struct.unpack_from("<H", header, 18)[0] != MACHINES[target]:
        raise InputError(f"{path}: its {LIBRARY} is not one for {target}: build the wheel again")


def missing_wheels(wheels: dict[str, bytes]) -> list[str]:
    """The packages that a board without a network would lack: of bnn-deploy's, and of those that these in turn need.

    Requirements under a condition (an extra, an old Python, another system) are not counted.
    """
    packages = {_package(name): content for name, content in wheels.items()}
    needed = set(REQUIRED)
    for content in packages.values():
        needed |= _requirements(content)
    return sorted(needed - set(packages))


def _requirements(wheel: bytes) -> set[str]:
    """The normalised names of the packages that a wheel needs under every condition."""
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            metadata = Parser().parsestr(archive.read(name).decode())
    except (zipfile.BadZipFile, StopIteration, UnicodeDecodeError, zlib.error):
        return set()
    lines = [line for line in metadata.get_all("Requires-Dist", []) if ";" not in line]
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}
