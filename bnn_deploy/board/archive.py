"""The bundle as a .tar.gz file: the same bytes for the same content, and a reader that trusts none of them."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from bnn_deploy.board.manifest import (
    CHECKSUMS,
    FOLDER,
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    RUN,
    Manifest,
    checksum_lines,
    file_entry,
    read_manifest,
)
from bnn_deploy.errors import InputError, one_line, reading
from bnn_deploy.files import require_file, sha256_of

_GZIP_HEADER = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x02\xff" + struct.pack("<H2sH", 36, b"BD", 32)
"""How the .gz file begins: no name, no time, and an extra field with the SHA-256 of all that follows it. Without that,
bits that fill up the last byte of a compressed block could be changed unseen."""

_CHUNK = 1 << 20


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


def _header(name: str, size: int) -> bytes:
    """The one header that a file has in the archive: owned by root, from 1970."""
    info = tarfile.TarInfo(f"{FOLDER}/{name}")
    info.size = size
    info.mode = 0o755 if name == RUN else 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _padding(size: int) -> int:
    """The zeros behind a file of this size in the archive."""
    return -size % tarfile.BLOCKSIZE


def make_archive(files: dict[str, bytes]) -> bytes:
    """The archive: the manifest first, so that a reader knows what must follow, then the rest by name."""
    # Not by tarfile.open, whose bytes are others: it fills the archive up to 10,240 bytes, and has no place for the
    # checksum in the .gz header. As a reader it is no use either: it accepts what `check_bundle` must refuse.
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
        if sha256_of(file) != digest.hex():
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
    require_file(path)
    with reading(path, "not a bundle, or a damaged one"), path.open("rb") as file:
        stream = _Unzipper(path, file)
        name, size = _member(path, stream.read(tarfile.BLOCKSIZE))
        if name != MANIFEST or size > MAX_MANIFEST_BYTES:
            raise InputError(f"{path}: refused: its first member is '{name}' of {size:,} bytes, not a {MANIFEST}")
        content = stream.read(size)
        _expect_zeros(path, MANIFEST, stream.read(_padding(size)))
        manifest = read_manifest(content, f"{path}: {MANIFEST}")
        expected = {**manifest.files, CHECKSUMS: file_entry(checksum_lines(manifest))}
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
