"""A bundle: one file with all that a board needs to install, verify and profile one model.

A .tar.gz with plain files under one folder: the manifest, checksums, the model, golden inputs and results, run.sh and
wheels. The same inputs give the same bytes: no clock, user, host or path is in it. So there is one right way to write
each byte around the files, and `check_bundle` refuses any other: links, paths that leave the folder, files too many,
too few or changed, and archives that unpack to more than they say.

Reading needs only the standard library; writing also needs onnx, for the golden results.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from email.parser import Parser
from importlib import resources
from pathlib import Path
from typing import Any

import bnn_deploy
from bnn_deploy.errors import BnnDeployError, InputError, one_line
from bnn_deploy.files import write_file

FORMAT = 1
"""Version of the layout and of manifest.json."""

FOLDER = "bnn-deploy-bundle"
"""The folder that everything in the archive is in."""

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
MODEL = "model.onnx"
FLOAT = "float.onnx"
"""The float model to measure beside it, if there is one."""

GOLDEN = "golden.npz"
RUN = "run.sh"
WHEELS = "wheels"
REPORT = "report.json"
"""What run.sh leaves beside them on the board."""

MACHINES = {"aarch64": 183, "x86_64": 62}
"""Target -> the machine number in the header of its ELF files (e_machine)."""

TARGETS = tuple(MACHINES)
"""The architectures, as `uname -m` calls them."""

LIBRARY = "bnn_deploy/_lib/libbnn_deploy_ops.so"
"""The operator library in the wheel."""

REQUIRED = ("click", "numpy", "onnxruntime", "rich")
"""The packages that bnn-deploy needs on a board."""

MAX_MANIFEST_BYTES = 1_000_000
MAX_FILE_BYTES = 2**31
"""Of a file in a bundle: what onnxruntime reads as one model, and less than a plain tar header can hold."""

_NAME = re.compile(rf"{MODEL}|{FLOAT}|{GOLDEN}|{RUN}|{WHEELS}/[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
_WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-[^-]+-(?P<platform>[^-]+)\.whl")
_GZIP_HEADER = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x02\xff" + struct.pack("<H2sH", 36, b"BD", 32)
"""How the .gz file begins: no name, no time, and an extra field with the SHA-256 of all that follows it. Without that,
bits that fill up the last byte of a compressed block could be changed unseen."""

_CHUNK = 1 << 20

Progress = Callable[[str], None]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its SHA-256 in hexadecimal, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        bnn_deploy: version of the wheel.
        target: the architecture that it is for, one of TARGETS.
        model: file name of the model as it was given; in the bundle it is called MODEL.
        offline: whether the wheels of all packages are in the bundle, so that the board needs no package index.
        samples: number of golden inputs.
        wheel: path in the bundle of bnn-deploy's wheel.
        made_with: what computed the golden results: "onnxruntime", "numpy", "cpu", "isa".
        files: path in the bundle -> size and checksum, for all files but MANIFEST and CHECKSUMS.
        sha256: checksum of manifest.json itself. As the manifest has those of all other files, it identifies a bundle.
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

    @property
    def unpacked_bytes(self) -> int:
        """What the files need on the board's disk, before the virtual environment is made."""
        return sum(entry.bytes for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps: what manifest.json holds, and its own checksum."""
        return {**_manifest_json(self), "manifest_sha256": self.sha256}


def check_bundle(path: str | os.PathLike[str]) -> Manifest:
    """Read a bundle without unpacking it, and refuse one that `write_bundle` did not write just so.

    Never more is read from the archive than its manifest announces, and never more than a block is held in memory.

    Raises:
        InputError: no such file, not a bundle, of another format, truncated, changed, or with a member that is a link,
            is outside of its folder, is there twice, is not in the manifest, or has another size or content; the
            member is named.
    """
    return _walk(Path(path), None)[0]


def read_member(path: str | os.PathLike[str], name: str) -> bytes:
    """The content of one file of a bundle (say, MODEL), of which everything is checked as `check_bundle` does.

    Raises:
        InputError: as `check_bundle`.
    """
    return _walk(Path(path), name)[1]


def write_bundle(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target: str,
    data: str | os.PathLike[str] | None = None,
    samples: int = 16,
    float_model: str | os.PathLike[str] | None = None,
    wheels: str | os.PathLike[str] = "dist",
    progress: Progress = lambda step: None,
) -> Manifest:
    """Write a bundle, or nothing.

    Args:
        model: the converted .onnx file.
        output: the .tar.gz file to write.
        target: the board's architecture, one of TARGETS.
        data: inputs for the golden results, as `bnn_deploy.verify` takes them; None for random normal ones.
        samples: use only the first so many of them.
        float_model: the float .onnx file that the board is to measure beside the model; None for none.
        wheels: folder with bnn-deploy's wheel for the target and, for boards without a network, of what it needs.
        progress: called with the name of each step as it begins.

    Raises:
        InputError: a file cannot be used, or the wheel is missing.
        BnnDeployError: the model does not give the golden results on this machine itself.
    """
    if target not in TARGETS:
        raise InputError(f"target {target}: choose {' or '.join(TARGETS)}")
    if not Path(output).absolute().parent.is_dir():
        raise InputError(f"{output}: its folder does not exist")
    if float_model is not None and not Path(float_model).is_file():
        raise InputError(f"{float_model}: no such file")
    progress("reading the wheels")
    version, wheel, wheel_files = _collect_wheels(Path(wheels), target)
    results = _golden(Path(model), data, samples, progress)
    files = {
        MODEL: Path(model).read_bytes(),
        GOLDEN: results.content,
        **({} if float_model is None else {FLOAT: Path(float_model).read_bytes()}),
        RUN: (resources.files("bnn_deploy") / "board_scripts" / RUN).read_bytes(),
        **{f"{WHEELS}/{name}": content for name, content in wheel_files.items()},
    }
    manifest = _with_checksum(
        Manifest(
            bnn_deploy=version,
            target=target,
            model=Path(model).name,
            offline=not missing_wheels(wheel_files),
            samples=results.samples,
            wheel=f"{WHEELS}/{wheel}",
            made_with=results.made_with,
            files={name: _entry(content) for name, content in sorted(files.items())},
            sha256="",
        )
    )
    files[MANIFEST] = _manifest_bytes(manifest)
    files[CHECKSUMS] = _checksums(manifest)
    progress("compressing")
    write_file(output, _archive(files))
    return manifest


@dataclass(frozen=True)
class _Results:
    """The golden file that goes into a bundle."""

    content: bytes
    samples: int
    made_with: dict[str, str]


def _golden(model: Path, data: str | os.PathLike[str] | None, samples: int, progress: Progress) -> _Results:
    """Compute the golden results, and check at once that this machine gives them again by all its kernels."""
    from bnn_deploy import golden

    made = golden.make_golden(model, data, samples, progress=progress)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GOLDEN
        golden.write_golden(made, path)
        result = golden.check_golden(model, path, progress=progress)
        if not result.passed:
            raise BnnDeployError(
                f"{model}: no bundle was written, this machine itself does not give its results again: "
                f"{result.failures[0]}"
            )
        return _Results(path.read_bytes(), len(made.input), made.made_with)


def _collect_wheels(folder: Path, target: str) -> tuple[str, str, dict[str, bytes]]:
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


def _entry(content: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "bnn_deploy": manifest.bnn_deploy,
        "target": manifest.target,
        "model": manifest.model,
        "offline": manifest.offline,
        "samples": manifest.samples,
        "wheel": manifest.wheel,
        "made_with": manifest.made_with,
        "files": {name: {"sha256": e.sha256, "bytes": e.bytes} for name, e in sorted(manifest.files.items())},
    }


def _manifest_bytes(manifest: Manifest) -> bytes:
    return json.dumps(_manifest_json(manifest), indent=2).encode() + b"\n"


def _with_checksum(manifest: Manifest) -> Manifest:
    return replace(manifest, sha256=_entry(_manifest_bytes(manifest)).sha256)


def read_manifest(content: bytes, where: str) -> Manifest:
    """Read manifest.json.

    Args:
        content: its bytes.
        where: the file, for messages.

    Raises:
        InputError: it is not one of this format.
    """
    try:
        values: dict[str, Any] = json.loads(content)
        form = values["format"]
        if form != FORMAT:
            raise InputError(f"{where}: a bundle of format {form}; this bnn-deploy knows format {FORMAT}: update it")
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
            sha256=_entry(content).sha256,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: not a bundle's {MANIFEST}: {type(error).__name__}: {one_line(error)}") from error
    for name, entry in manifest.files.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"{where}: it lists '{name}', which no bundle has")
        if not 0 <= entry.bytes <= MAX_FILE_BYTES or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise InputError(f"{where}: size or checksum of '{name}' is none")
    missing = {MODEL, GOLDEN, RUN, manifest.wheel} - set(manifest.files)
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


def _checksums(manifest: Manifest) -> bytes:
    """The content of SHA256SUMS, for `sha256sum -c`."""
    sums = {MANIFEST: manifest.sha256, **{name: entry.sha256 for name, entry in manifest.files.items()}}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()


def _header(name: str, size: int) -> bytes:
    """The one header that a file has in the archive: owned by root, from 1970."""
    info = tarfile.TarInfo(f"{FOLDER}/{name}")
    info.size = size
    info.mode = 0o755 if name == RUN else 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _padding(size: int) -> int:
    """The zeros behind a file of this size in the archive."""
    return -size % tarfile.BLOCKSIZE


def _archive(files: dict[str, bytes]) -> bytes:
    """The archive: the manifest first, so that a reader knows what must follow, then the rest by name."""
    raw = io.BytesIO()
    for name in (MANIFEST, *sorted(files.keys() - {MANIFEST})):
        content = files[name]
        raw.write(_header(name, len(content)))
        raw.write(content)
        raw.write(bytes(_padding(len(content))))
    raw.write(bytes(2 * tarfile.BLOCKSIZE))
    tar = raw.getvalue()
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    trailer = struct.pack("<II", zlib.crc32(tar), len(tar) % 2**32)
    rest = compressor.compress(tar) + compressor.flush() + trailer
    return _GZIP_HEADER + hashlib.sha256(rest).digest() + rest


class _Unzipper:
    """Reads what is in a .gz file block by block: no more at a time than is asked for."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.path = path
        self._file = file
        if file.read(len(_GZIP_HEADER)) != _GZIP_HEADER:
            raise InputError(f"{path}: not a bundle of bnn-deploy: it does not begin as its .tar.gz files do")
        digest = file.read(hashlib.sha256().digest_size)
        if hashlib.file_digest(file, "sha256").digest() != digest:
            raise self.damaged()
        file.seek(0)
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        result = b""
        while len(result) < count:
            part = self._next(count - len(result))
            if not part:
                raise self.damaged()
            result += part
        return result

    def finish(self) -> None:
        """Check that there is nothing more, and that the checksum of the whole is right."""
        if self._next(1) or self._zlib.unused_data or self._file.read(1):
            raise InputError(f"{self.path}: a damaged bundle: there is something behind its end")

    def damaged(self) -> InputError:
        return InputError(f"{self.path}: a truncated or damaged bundle: copy it again")

    def _next(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes; none at the end."""
        while not self._zlib.eof:
            data = self._zlib.unconsumed_tail or self._file.read(_CHUNK)
            try:
                part = self._zlib.decompress(data, limit)
            except zlib.error as error:
                raise InputError(f"{self.path}: a damaged bundle: {one_line(error)}; copy it again") from error
            if part:
                return part
            if not data and not self._zlib.eof:
                raise self.damaged()
        return b""


def _walk(path: Path, wanted: str | None) -> tuple[Manifest, bytes]:
    """Check everything in a bundle, and keep one of its files."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        stream = _Unzipper(path, file)
        name, size = _member(path, stream.read(tarfile.BLOCKSIZE))
        if name != MANIFEST or size > MAX_MANIFEST_BYTES:
            raise InputError(f"{path}: refused: its first member is '{name}' of {size:,} bytes, not a {MANIFEST}")
        content = stream.read(size)
        _expect_zeros(path, MANIFEST, stream.read(_padding(size)))
        manifest = read_manifest(content, f"{path}: {MANIFEST}")
        expected = {**manifest.files, CHECKSUMS: _entry(_checksums(manifest))}
        kept = content if wanted == MANIFEST else b""
        seen = {MANIFEST}
        while (block := stream.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            name, size = _member(path, block)
            if name in seen:
                raise InputError(f"{path}: refused: member '{name}' is there twice")
            seen.add(name)
            if name not in expected:
                raise InputError(f"{path}: refused: member '{name}' is not in the manifest")
            if size != expected[name].bytes:
                raise InputError(
                    f"{path}: refused: member '{name}' has {size:,} bytes; the manifest says {expected[name].bytes:,}"
                )
            digest, parts = hashlib.sha256(), []
            for part in _parts(stream, size):
                digest.update(part)
                if name == wanted:
                    parts.append(part)
            if digest.hexdigest() != expected[name].sha256:
                raise InputError(f"{path}: refused: member '{name}' has another checksum than the manifest says")
            _expect_zeros(path, name, stream.read(_padding(size)))
            kept = b"".join(parts) if name == wanted else kept
        missing = sorted(expected.keys() - seen)
        if missing:
            raise InputError(f"{path}: refused: '{missing[0]}' is missing, which the manifest lists")
        _expect_zeros(path, "the end", stream.read(tarfile.BLOCKSIZE))
        stream.finish()
    if wanted is not None and wanted not in seen:
        raise InputError(f"{path}: holds no {wanted}")
    return manifest, kept


def _parts(stream: _Unzipper, size: int) -> Iterable[bytes]:
    """The next `size` bytes, in pieces."""
    while size:
        part = stream.read(min(size, _CHUNK))
        size -= len(part)
        yield part


def _expect_zeros(path: Path, name: str, padding: bytes) -> None:
    if any(padding):
        raise InputError(f"{path}: a damaged bundle: what fills the last block of '{name}' is not zeros")


def _member(path: Path, block: bytes) -> tuple[str, int]:
    """Name (below FOLDER) and size of the next member, from its header; refuses what is not a file just there."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a bundle, or a damaged one: {one_line(error)}") from error
    parts = info.name.split("/")
    reason = ""
    if info.name.startswith("/"):
        reason = "has an absolute path"
    elif ".." in parts:
        reason = "leaves the folder"
    elif info.issym() or info.islnk():
        reason = "is a link"
    elif not info.isreg():
        reason = "is not a plain file"
    elif parts[0] != FOLDER:
        reason = f"is not in the folder {FOLDER}"
    elif not 0 <= info.size <= MAX_FILE_BYTES:
        reason = f"has {info.size:,} bytes"
    if reason:
        raise InputError(f"{path}: refused: member '{info.name}' {reason}")
    name = "/".join(parts[1:])
    if not name.isascii() or block != _header(name, info.size):
        raise InputError(f"{path}: refused: the header of member '{info.name}' is not as bnn-deploy writes it")
    return name, info.size
