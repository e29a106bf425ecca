"""What is written: all files or none, links followed, devices and FIFOs written through, errors that name the file."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.errors import InputError
from bnn_deploy.files import require_outputs, signals_held, temporary_folder, write_files
from support.devices import device


def content(folder: Path) -> dict[str, bytes]:
    """All files in a folder, hidden ones included."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.is_symlink()}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, target in (("old", "there/old"), ("new", "there/new")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "there" / "old").write_bytes(b"before")
    write_files({tmp_path / "old": b"1", tmp_path / "new": b"2"})
    assert content(tmp_path / "there") == {"old": b"1", "new": b"2"}
    assert (tmp_path / "old").is_symlink() and (tmp_path / "new").is_symlink() and content(tmp_path) == {}


def test_what_is_no_regular_file_is_written_through(tmp_path: Path) -> None:
    fifo, got = tmp_path / "fifo", list[bytes]()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    null = device(tmp_path, "null")
    write_files({fifo: b"model" * 30_000, null: b"x"})
    reader.join(10)
    assert got == [b"model" * 30_000]
    assert stat.S_ISFIFO(fifo.stat().st_mode) and stat.S_ISCHR(null.stat().st_mode)


def test_a_name_of_any_length_that_the_file_system_takes(tmp_path: Path) -> None:
    write_files({tmp_path / ("a" * 255): b"1"})
    assert content(tmp_path) == {"a" * 255: b"1"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_an_error_names_the_file_of_the_user(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *args: Any) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError) as caught:
        write_files({tmp_path / "m.onnx": b"1"})
    assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path / "m.onnx"))


def test_a_full_disk(tmp_path: Path) -> None:
    """/dev/full has no room, and its error names no file; nothing else is written."""
    full = device(tmp_path, "full")
    with pytest.raises(OSError) as caught:
        write_files({tmp_path / "a": b"1", full: b"x" * 100_000})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(full))
    assert stat.S_ISCHR(full.stat().st_mode)
    assert content(tmp_path) == {}


def test_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second name cannot be given: the first is taken back, and has what was there before."""
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name == "last" and path.name.endswith("tmp"):
            raise PermissionError(errno.EPERM, "no", str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    (tmp_path / "old").write_bytes(b"before")
    with pytest.raises(PermissionError) as caught:
        write_files({tmp_path / "old": b"1", tmp_path / "new": b"2", tmp_path / "last": b"3"})
    assert caught.value.filename == str(tmp_path / "last")
    assert content(tmp_path) == {"old": b"before"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_instant_that_a_temporary_file_appears(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    opened, unlinked = Path.open, Path.unlink

    def open_and_stop(path: Path, *args: Any) -> Any:
        file = opened(path, *args)
        signal.raise_signal(number)
        return file

    def unlink_and_stop(path: Path, missing_ok: bool = False) -> None:
        signal.raise_signal(number)
        unlinked(path, missing_ok)

    monkeypatch.setattr(Path, "open", open_and_stop)
    monkeypatch.setattr(Path, "unlink", unlink_and_stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    # It was complete: the signal came too late to stop it.
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_temporary_folder_is_gone_after_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folder() as folder:
        (folder / "x").touch()
        signal.raise_signal(signal.SIGINT)
    assert not folder.exists()


def test_no_output_is_written_over_an_input(tmp_path: Path) -> None:
    model, link = tmp_path / "m.onnx", tmp_path / "link"
    model.touch()
    link.symlink_to(model)
    require_outputs({"report": tmp_path / "r.json", "bundle": os.devnull}, {"model": model})
    for written in (model, link, tmp_path / "no" / ".." / "m.onnx"):
        with pytest.raises(InputError, match="is the model itself: choose another name"):
            require_outputs({"report": written}, {"model": model})
    with pytest.raises(InputError, match="is asked for twice, for the bundle and for the report"):
        require_outputs({"bundle": tmp_path / "r", "report": tmp_path / "." / "r"}, {})
    with pytest.raises(InputError, match="it cannot be written: Is a directory"):
        require_outputs({"report": tmp_path}, {})
    with pytest.raises(InputError, match=r"r: the folder .*no does not exist"):
        require_outputs({"report": tmp_path / "no" / "r"}, {})
    link.unlink()
    link.symlink_to(tmp_path / "no" / "r")
    with pytest.raises(InputError, match=r"link: the folder .*no does not exist"):
        require_outputs({"report": link}, {})


def test_a_folder_without_the_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As anybody but root finds it."""
    asked = list[tuple[Path, int]]()

    def access(path: Path, mode: int) -> bool:
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(InputError, match=rf"r: the folder {tmp_path} cannot be written$"):
        require_outputs({"report": tmp_path / "r"}, {})
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As of a process that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
