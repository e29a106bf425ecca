"""The manifest of a bundle: its files with their hashes, and the architecture of its board."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnn_deploy.board.apps import APPS, SERVICE_PREFIX, UNIT
from bnn_deploy.errors import InputError, reading
from bnn_deploy.json_form import json_form

BUNDLE_FORMAT = 1
"""Version of the layout and of manifest.json."""

FOLDER = "bnn-deploy-bundle"
"""The one top folder of the archive."""

MANIFEST = "manifest.json"

CHECKSUMS = "SHA256SUMS"

MODEL = "model.onnx"

FLOAT_MODEL = "float.onnx"
"""The float model to measure beside MODEL, if there is one."""

GOLDEN = "golden.npz"

RUN = "run.sh"

REQUIREMENTS = "requirements.txt"
"""What the board installs beside bnn-deploy, each package in one version, as pip reads it."""

WHEELS = "wheels"

SERVICE = "service.sh"
"""Sets up the service of a bundle that has an application, on the board."""

REPORT = "report.json"
"""The results of run.sh, in the same folder on the board."""

MACHINES = {"aarch64": 183, "x86_64": 62}
"""Target -> the machine number in the header of its ELF files (e_machine)."""

TARGETS = tuple(MACHINES)
"""The architectures, as `uname -m` calls them."""

MAX_MANIFEST_BYTES = 1_000_000

MAX_FILE_BYTES = 2**31
"""Largest file in a bundle: onnxruntime's limit for a model file, and below the limit of a plain tar header."""

_NAME = re.compile(
    rf"{MODEL}|{FLOAT_MODEL}|{GOLDEN}|{RUN}|{REQUIREMENTS}|{re.escape(SERVICE)}|{re.escape(UNIT)}|"
    rf"{WHEELS}/[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl"
)


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its SHA-256 in hexadecimal, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        bnn_deploy: version of the wheel.
        target: the board's architecture, one of TARGETS.
        model: file name of the model as it was given; in the bundle it is called MODEL.
        offline: whether the wheels of all packages are in the bundle, so that the board needs no package index.
        samples: number of golden inputs.
        wheel: path in the bundle of bnn-deploy's wheel.
        made_with: versions and machine that computed the golden results: "onnxruntime", "numpy", "cpu", "isa".
        files: path in the bundle -> size and checksum, for all files but MANIFEST and CHECKSUMS.
        sha256: checksum of manifest.json, which identifies a bundle: manifest.json holds the files' checksums.
        app: the application whose service the bundle has, one of APPS; None for none.
    """

    bnn_deploy: str
    target: str
    model: str
    offline: bool
    samples: int
    wheel: str
    made_with: dict[str, str]
    files: dict[str, FileEntry]
    sha256: str
    app: str | None = None

    @property
    def service(self) -> str | None:
        """The name of its service on a board; None if it has none."""
        return None if self.app is None else f"{SERVICE_PREFIX}{self.app}"

    @property
    def name_on_board(self) -> str:
        """The bundle's folder on a board, safe in any shell: the archive may come from anywhere."""
        stem = re.sub(r"[^A-Za-z0-9._]", "_", Path(self.model).stem).lstrip(".")[:64]
        return f"{stem or 'model'}-{self.sha256[:12]}"

    @property
    def unpacked_bytes(self) -> int:
        """Disk space of the unpacked files in bytes, without the virtual environment."""
        return sum(entry.bytes for entry in self.files.values())


def file_entry(content: bytes) -> FileEntry:
    """The entry of a file with this content."""
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as the file in the bundle, which cannot hold its own checksum."""
    content = {"format": BUNDLE_FORMAT, **json_form(manifest)}
    del content["sha256"]
    content["files"] = dict(sorted(content["files"].items()))
    return json.dumps(content, indent=2).encode() + b"\n"


def with_checksum(manifest: Manifest) -> Manifest:
    """The manifest with its own checksum filled in."""
    return replace(manifest, sha256=file_entry(manifest_bytes(manifest)).sha256)


def read_manifest(content: bytes, where: str) -> Manifest:
    """Read manifest.json.

    Args:
        content: its bytes.
        where: the file, for messages.

    Raises:
        InputError: it is not a manifest of this format, or an entry is invalid.
    """
    with reading(where, f"not a bundle's {MANIFEST}"):
        values: dict[str, Any] = json.loads(content)
        form = values["format"]
        if form != BUNDLE_FORMAT:
            raise InputError(
                f"{where}: a bundle of format {form}; this bnn-deploy knows format {BUNDLE_FORMAT}: update it"
            )
        manifest = Manifest(
            bnn_deploy=_typed(values, "bnn_deploy", str),
            target=_typed(values, "target", str),
            model=_typed(values, "model", str),
            offline=_typed(values, "offline", bool),
            samples=_typed(values, "samples", int),
            wheel=_typed(values, "wheel", str),
            made_with={key: _typed(values["made_with"], key, str) for key in ("onnxruntime", "numpy", "cpu", "isa")},
            files={
                name: FileEntry(_typed(entry, "sha256", str), _typed(entry, "bytes", int))
                for name, entry in _typed(values, "files", dict).items()
            },
            sha256=file_entry(content).sha256,
            # Bundles of earlier versions have no such entry.
            app=None if values.get("app") is None else _typed(values, "app", str),
        )
    if manifest.app is not None and manifest.app not in APPS:
        raise InputError(f"{where}: its application is {manifest.app!r}; this bnn-deploy knows {', '.join(APPS)}")
    for name, entry in manifest.files.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"{where}: it lists '{name}', which no bundle has")
        if not 0 <= entry.bytes <= MAX_FILE_BYTES or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise InputError(f"{where}: size or checksum of '{name}' is none")
    missing = {MODEL, GOLDEN, RUN, REQUIREMENTS, manifest.wheel} - set(manifest.files)
    if manifest.app is not None:
        missing |= {SERVICE, UNIT} - set(manifest.files)
    if missing:
        raise InputError(f"{where}: it lists no {', '.join(sorted(missing))}")
    if manifest.target not in TARGETS:
        raise InputError(f"{where}: target {manifest.target}: this bnn-deploy knows {' and '.join(TARGETS)}")
    return manifest


def _typed(values: dict[str, Any], key: str, kind: type) -> Any:
    value = values[key]
    if type(value) is not kind:
        raise TypeError(f"{key} is {value!r}, not {kind.__name__}")
    return value


def checksum_lines(manifest: Manifest) -> bytes:
    """The content of SHA256SUMS, for `sha256sum -c`."""
    sums = {MANIFEST: manifest.sha256, **{name: entry.sha256 for name, entry in manifest.files.items()}}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()
