"""Builds wheels and bundle archives for the tests, including malformed archives that `write_bundle` never writes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from packaging.requirements import Requirement

import bnn_deploy
from bnn_deploy.board.manifest import FOLDER
from bnn_deploy.cli import main
from bnn_deploy.installation import origin

ROOT = Path(__file__).parents[2]

VERSION = "0.1.0" if bnn_deploy.__version__ == "0+unknown" else bnn_deploy.__version__
WHEEL = f"bnn_deploy-{VERSION}-py3-none-manylinux_2_28_x86_64.whl"

# As tomllib, which Python 3.10 lacks, would read it: the list is one of JSON, too.
DEPENDENCIES: list[str] = json.loads(
    re.search(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
)
"""What bnn-deploy's wheel requires."""

NEEDED_HERE = [need.name for need in map(Requirement, DEPENDENCIES) if need.marker is None or need.marker.evaluate()]
"""The names of those that this Python needs."""


def fake_wheel(path: Path, machine: int | None = None, requires: Iterable[str] = ()) -> Path:
    """A wheel with metadata only, or also with a library that is just an ELF header for `machine`."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        if machine is not None:
            header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine)
            archive.writestr("bnn_deploy/_lib/libbnn_deploy_ops.so", header)
        name, version, *_ = path.name.split("-")
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\ntext\n")
    return path


WRITTEN_BY_PIP = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""Files of an installation that its wheel has not, or that are of the wheel itself."""


def repack(name: str, folder: Path) -> list[str]:
    """Make the wheel of an installed package again, from its files; returns the packages that it needs here."""
    distribution = metadata.distribution(name)
    about = distribution.read_text("WHEEL")
    assert about is not None and distribution.files is not None
    tags = [line.split()[1].split("-") for line in about.splitlines() if line.startswith("Tag:")]
    tag = "-".join(".".join(sorted({tag[i] for tag in tags})) for i in range(3))
    path = folder / f"{re.sub('[-_.]+', '_', name)}-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        record = io.StringIO()
        rows = csv.writer(record)
        for file in distribution.files:
            if ".." in file.parts or file.suffix == ".pyc" or file.name in WRITTEN_BY_PIP:
                continue
            wheel.write(str(distribution.locate_file(file)), str(file))
            rows.writerow([file, "", file.size])
        info = next(file.parent for file in distribution.files if file.name == "METADATA")
        rows.writerow([info / "RECORD", "", ""])
        wheel.writestr(f"{info}/RECORD", record.getvalue())
    needs = map(Requirement, distribution.requires or [])
    return [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def make_all_wheels(folder: Path) -> None:
    """bnn-deploy's wheel and those of all packages that it needs, of what is installed here.

    An editable installation of bnn-deploy has not all its files: then its wheel is built.
    """
    needed, done = ["bnn-deploy"], set()
    if (source := origin()) is not None and source[1]:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
        subprocess.run(command, check=True)
        needed, done = list(NEEDED_HERE), {"bnn-deploy"}
    while needed:
        name = needed.pop()
        if name.lower() not in done:
            done.add(name.lower())
            needed += repack(name, folder)


def unpack(bundle: Path, folder: Path) -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    return folder / FOLDER


def pack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Write an archive of any members in the format of `write_bundle`."""
    raw = io.BytesIO()
    for info, content in members:
        raw.write(info.tobuf(form, "utf-8", "strict"))
        raw.write(content + bytes(-len(content) % 512))
    raw.write(bytes(1024))
    path.write_bytes(compress(raw.getvalue()))
    return path


def compress(raw: bytes, more: bytes = b"") -> bytes:
    """A .gz file in the format of `write_bundle`, with a valid checksum, and `more` appended."""
    rest = gzip.compress(raw, 9, mtime=0)[10:] + more
    return b"\x1f\x8b\x08\x04\0\0\0\0\x02\xff\x24\0BD\x20\0" + hashlib.sha256(rest).digest() + rest


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def change(path: Path, place: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
