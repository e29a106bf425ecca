"""The wheels of a bundle: which fit the board, what they require and in which versions, and what is in bnn-deploy's."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from email.parser import Parser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

import bnn_deploy
from bnn_deploy.board.manifest import MACHINES
from bnn_deploy.errors import InputError, one_line
from bnn_deploy.system import library_name

LIBRARY = f"bnn_deploy/_lib/{library_name('linux')}"
"""The operator library in the wheel."""

DEMO_DATA = "bnn_deploy/demo_data/"
"""The folder in the wheel that only `bnn-deploy demo` reads, which needs torch: boards have no use for it."""


def collect_wheels(folder: Path, target: str) -> tuple[str, str, dict[str, bytes]]:
    """Read the wheels in a folder that fit a target.

    Args:
        folder: with bnn-deploy's wheel, and the wheels of other packages; other files are passed over.
        target: the board's architecture, one of TARGETS.

    Returns:
        The version of bnn-deploy, the file name of its wheel, and file name -> content of all wheels that fit; that of
        bnn-deploy is without DEMO_DATA.

    Raises:
        InputError: no folder, or bnn-deploy's wheel is missing, there more than once, or not one for the target.
    """
    cross = "BNN_DEPLOY_TARGET=aarch64 " if target == "aarch64" != platform.machine() else ""
    build = f"build one in the source tree: {cross}pip wheel --no-deps -w {folder} ."
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it must hold the wheel of bnn-deploy for {target}: {build}")
    fitting, own = [], {}
    for name in sorted(path.name for path in folder.glob("*.whl")):
        try:
            package, version, _, tags = parse_wheel_filename(name)
        except InvalidWheelFilename:
            continue
        if _fits(tags, target):
            fitting.append(name)
            if package == "bnn-deploy":
                own[name] = version, tags
    # A source tree that is not installed has no version of its own to compare with.
    wanted = None if bnn_deploy.__version__ == "0+unknown" else Version(bnn_deploy.__version__)
    wheels = [
        name
        for name, (version, tags) in own.items()
        if wanted in (None, version) and all(tag.platform != "any" for tag in tags)
    ]
    if not wheels:
        others = f" (it has {', '.join(own)})" if own else ""
        raise InputError(
            f"{folder}: holds no bnn_deploy-{wanted or '*'}-py3-none-manylinux_*_{target}.whl{others}: {build}"
        )
    if len(wheels) > 1:
        raise InputError(f"{folder}: which wheel of bnn-deploy shall go in? It has {', '.join(wheels)}; keep one")
    wheel = wheels[0]
    contents = {name: (folder / name).read_bytes() for name in fitting if name == wheel or name not in own}
    _check_library(folder / wheel, contents[wheel], target)
    contents[wheel] = _without_demo(folder / wheel, contents[wheel])
    return str(own[wheel][0]), wheel, contents


def _fits(tags: Iterable[Tag], target: str) -> bool:
    """Whether a wheel's tags say that glibc systems of the architecture can use it, with one Python or another."""
    return any(
        tag.platform == "any"
        or (tag.platform.startswith(("manylinux", "linux_")) and tag.platform.endswith(f"_{target}"))
        for tag in tags
    )


def _check_library(path: Path, content: bytes, target: str) -> None:
    """Check that the wheel's library is one for the target: a wheel can be tagged wrongly."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            header = archive.read(LIBRARY)[:20]
    except (zipfile.BadZipFile, KeyError, zlib.error) as error:
        raise InputError(f"{path}: not a wheel of bnn-deploy: {one_line(error)}") from error
    if len(header) < 20 or header[:4] != b"\x7fELF" or struct.unpack_from("<H", header, 18)[0] != MACHINES[target]:
        raise InputError(f"{path}: its {LIBRARY} is not one for {target}: build the wheel again")


def _without_demo(path: Path, content: bytes) -> bytes:
    """The wheel without DEMO_DATA, in its list of files, RECORD, too."""
    result = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(result, "w") as kept:
            if not any(name.startswith(DEMO_DATA) for name in given.namelist()):
                return content
            for info in given.infolist():
                if info.filename.startswith(DEMO_DATA):
                    continue
                file = given.read(info)
                if re.fullmatch(r"[^/]+\.dist-info/RECORD", info.filename):
                    rows = csv.reader(file.decode().splitlines())
                    text = io.StringIO()
                    csv.writer(text, lineterminator="\n").writerows(
                        row for row in rows if not row or not row[0].startswith(DEMO_DATA)
                    )
                    file = text.getvalue().encode()
                kept.writestr(info, file)  # with its own time and compression: the same wheel gives the same bytes
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a wheel of bnn-deploy: {one_line(error)}") from error
    return result.getvalue()


def pinned_requirements(wheels: dict[str, bytes], extra: str | None = None) -> bytes:
    """The packages that the board needs beside bnn-deploy, in one version each, as pip's option --requirement reads.

    A package whose wheels are in the bundle comes from there. The others come in the versions that are installed here:
    with them the golden results are made. A package of the extra that is neither there nor here is in the version that
    pip chooses by the board.

    Args:
        wheels: file name -> content, of bnn-deploy's wheel and of others.
        extra: of bnn-deploy, which the board gets, too.

    Raises:
        InputError: the metadata of a wheel cannot be read.
    """
    packed: dict[str, set[str]] = {}
    for name in wheels:
        of, version, *_ = parse_wheel_filename(name)
        packed.setdefault(of, set()).add(str(version))
    wanted = {} if extra is None else _of_extra(wheels, extra)
    pinned = {package: str(need.specifier) for package, need in wanted.items()}
    needed = sorted(set(wanted).union(*(_unconditional(_requirements(*wheel)) for wheel in wheels.items())))
    for package in needed:
        versions = packed.get(package, set())
        if not versions:
            with suppress(importlib.metadata.PackageNotFoundError):  # under another name, such as onnxruntime-gpu
                found = importlib.metadata.distribution(package)
                versions = {found.version}
                needed += sorted(_unconditional(map(Requirement, found.requires or [])) - set(needed))
        # Wheels of several versions are for several versions of Python: pip takes what fits.
        if len(versions) == 1:
            pinned[package] = f"=={versions.pop()}"
    return "".join(f"{package}{version}\n" for package, version in sorted(pinned.items())).encode()


def missing_wheels(wheels: dict[str, bytes], extra: str | None = None) -> list[str]:
    """Find the packages that a board without a network would lack, because a wheel requires them.

    Requirements under a condition (another extra, an old Python, another system) are not counted.

    Args:
        wheels: file name -> content, of bnn-deploy's wheel and of others.
        extra: of bnn-deploy, which the board gets, too.

    Returns:
        Normalised names of packages, such as "markdown-it-py", in order.

    Raises:
        InputError: the metadata of a wheel cannot be read.
    """
    needed: set[str] = set() if extra is None else set(_of_extra(wheels, extra))
    for name, content in wheels.items():
        needed |= _unconditional(_requirements(name, content))
    return sorted(needed - {parse_wheel_filename(name)[0] for name in wheels})


def _of_extra(wheels: dict[str, bytes], extra: str) -> dict[str, Requirement]:
    """The packages that an extra of bnn-deploy adds, by their normalised names."""
    return {
        canonicalize_name(found.name): found
        for name, content in wheels.items()
        if parse_wheel_filename(name)[0] == "bnn-deploy"
        for found in _requirements(name, content)
        if str(found.marker) == f'extra == "{extra}"'
    }


def _requirements(name: str, wheel: bytes) -> list[Requirement]:
    """What a wheel needs, under conditions, too."""
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            path = next(path for path in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", path))
            metadata = Parser().parsestr(archive.read(path).decode())
        return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    except StopIteration:
        raise InputError(f"{name}: not a wheel: it has no .dist-info/METADATA") from None
    except (zipfile.BadZipFile, UnicodeDecodeError, zlib.error, InvalidRequirement) as error:
        raise InputError(f"{name}: its metadata cannot be read: {one_line(error)}") from error


def _unconditional(requirements: Iterable[Requirement]) -> set[str]:
    """The normalised names of those that are needed under every condition."""
    return {canonicalize_name(found.name) for found in requirements if found.marker is None}
