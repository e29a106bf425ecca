"""Writing files without leaving half-written ones; sizes of model files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import stat
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from bnn_deploy.errors import InputError

FilePath = str | os.PathLike[str]


def is_file(path: FilePath) -> bool:
    """Whether a path is that of a file, links followed. Other than Path.is_file, it knows that no name too long is."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def require_file(path: FilePath) -> None:
    """Raise InputError unless a path is that of a file."""
    if not is_file(path):
        raise InputError(f"{os.fspath(path)}: no such file")


def require_utf8(path: FilePath) -> None:
    """Raise InputError if the name of a file is not UTF-8, which onnx and onnxruntime do not open."""
    if any("\udc80" <= letter <= "\udcff" for letter in os.fspath(path)):  # how Python keeps other bytes
        raise InputError(f"{os.fspath(path)}: its name is not UTF-8, which onnx and onnxruntime need: rename it")


def require_texts(message: Any, path: FilePath) -> None:
    """Raise InputError if a text in a message of protobuf, such as a name, is not UTF-8.

    It may hold any bytes, as onnx's schema is of the old kind, and libraries fail on them late, each in its own way.
    """
    for field, value in message.ListFields():
        values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
        if field.message_type is not None:
            for inner in values:
                require_texts(inner, path)
        elif field.type == field.TYPE_STRING:
            for text in values:
                if not isinstance(text, str):
                    raise InputError(
                        f"{os.fspath(path)}: not a valid ONNX model: its {field.name} {text!r} is not UTF-8"
                    )


def require_outputs(written: Mapping[str, FilePath | None], read: Mapping[str, FilePath | None]) -> None:
    """Check files before the work that they are the result of.

    Args:
        written: what is to be written -> its path; None for nothing.
        read: what is read -> its path; None for nothing.

    Raises:
        InputError: a file is one that is read, or is asked for twice, or is a folder, or its folder is not there or
            cannot be written.
    """
    inputs = {os.path.realpath(path): what for what, path in read.items() if path is not None}
    outputs: dict[str, str] = {}
    for what, path in written.items():
        if path is None:
            continue
        real, shown = os.path.realpath(path), os.fspath(path)
        if real in inputs:
            raise InputError(f"{shown} is the {inputs[real]} itself: choose another name for the output")
        if real in outputs:
            raise InputError(f"{shown} is asked for twice, for the {outputs[real]} and for the {what}")
        outputs[real] = what
        try:
            if _is_special(path):  # it is written through
                continue
        except OSError as error:
            raise InputError(f"{shown}: it cannot be written: {error.strerror}") from error
        # The folder as it was given, but for a link, which is followed.
        folder = Path(real if Path(path).is_symlink() else path).parent
        if not folder.is_dir():
            raise InputError(f"{shown}: the folder {folder} does not exist")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{shown}: the folder {folder} cannot be written")


@contextmanager
def signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the end of the block: what it makes is then known to what cleans up.

    In other threads than the main one it does nothing: signals do not interrupt those.
    """
    received: list[int] = []
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler is not None:  # None: it was set by C code, and could not be restored
                    before[number] = handler
                    signal.signal(number, lambda number, frame: received.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in received:
            signal.raise_signal(caught)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone after the block, whatever ends it, but for signals that no process can catch.

    An OSError without a file, such as that of a full disk, gets its name.
    """
    folder = None
    try:
        with signals_held():
            folder = TemporaryDirectory(prefix="bnn-deploy-")
        yield Path(folder.name)
    except OSError as error:
        if folder is not None and error.filename is None:
            error.filename = folder.name
        raise
    finally:
        with signals_held():
            if folder is not None:
                folder.cleanup()


@dataclass(frozen=True)
class _Place:
    """Where a file is written: the file itself, links followed; a new one beside it; and the old one while renaming."""

    target: Path
    new: Path
    old: Path


def write_files(files: Mapping[FilePath, bytes]) -> None:
    """Write files, all of them or none: each under a temporary name in its own folder first; then all are renamed.

    A symbolic link is followed, and stays. What is no regular file, such as /dev/null or a FIFO, is written through,
    and before all others.

    Args:
        files: path -> content.

    Raises:
        OSError: a folder is not there or cannot be written, the disk is full, or a path is that of a folder; its
            `filename` is the path that was given.
    """
    places = {}
    for path, content in files.items():
        with _named(path):
            if _is_special(path):
                with Path(path).open("wb") as special:  # not held: a FIFO waits for its reader
                    special.write(content)
            else:
                target, own = Path(os.path.realpath(path)), uuid.uuid4().hex
                places[path] = _Place(target, *(target.with_name(f".bnn-deploy.{own}.{end}") for end in ("tmp", "old")))
    with signals_held():
        try:
            for path, place in places.items():
                with _named(path), place.new.open("xb") as file:
                    file.write(files[path])
            _rename(places)
        finally:
            for place in places.values():
                place.new.unlink(missing_ok=True)
                place.old.unlink(missing_ok=True)


def _is_special(path: FilePath) -> bool:
    """Whether something other than a regular file is there.

    Raises:
        OSError: it is a folder, or a link to itself.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return not stat.S_ISREG(mode)


def _rename(places: Mapping[FilePath, _Place]) -> None:
    """Give all new files their names; if one cannot get it, take back those before it."""
    done: list[_Place] = []
    try:
        for path, place in places.items():
            if len(places) > 1:
                with suppress(OSError):  # it is not there, or the file system has no hard links
                    os.link(place.target, place.old)
            existed = place.target.exists()
            with _named(path):
                place.new.replace(place.target)
            if not existed or place.old.exists():
                done.append(place)
    except OSError:
        for place in done:
            if place.old.exists():
                place.old.replace(place.target)
            else:
                place.target.unlink()
        raise


@contextmanager
def _named(path: FilePath) -> Iterator[None]:
    """Let an OSError name the file that the user named, and not a temporary one, or none."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise


def sha256_of(file: IO[bytes]) -> str:
    """SHA-256 in hexadecimal of the rest of an open file, read block by block."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def model_bytes(path: FilePath) -> int:
    """Size of an .onnx file together with the external data files that it names, in bytes."""
    content, external = _model_parts(path)
    return len(content) + sum(file.stat().st_size for file in external)


def model_sha256(path: FilePath) -> str:
    """SHA-256 in hexadecimal of an .onnx file, continued with the external data files that it names, by their names."""
    content, external = _model_parts(path)
    digest = hashlib.sha256(content)
    for name in external:
        with name.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _model_parts(path: FilePath) -> tuple[bytes, list[Path]]:
    """The content of an .onnx file, and the external data files that it names, sorted.

    A file that keeps its weights in another one has, per tensor, an `external_data` entry ("location", file name). The
    entry is found by its encoding, because parsing the file would need the onnx package.
    """
    path = Path(path)
    content = path.read_bytes()
    # StringStringEntryProto: field 1 (key), length 8, "location"; field 2 (value), length in one byte, the file name.
    names = {
        content[found.end() : found.end() + found[1][0]]
        for found in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])", content)
    }
    files = [path.parent / os.fsdecode(name) for name in sorted(names) if b"\0" not in name]
    return content, [file for file in files if file.is_file()]
