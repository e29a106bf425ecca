"""A terminal for a program: what it prints there, with its escape sequences, and what is typed."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl


class Terminal:
    """A program in a terminal of its own, of so many columns, in the tests' environment without what says otherwise."""

    def __init__(self, columns: int, words: Sequence[str], **environment: str) -> None:
        self._fd, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        unset = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**kept, "PYTHONPATH": path, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self._printed = b""

    @property
    def printed(self) -> str:
        """What was printed so far."""
        return self._printed.decode(errors="replace")

    @property
    def text(self) -> str:
        """The same without escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.printed)

    def type(self, text: str) -> None:
        """Type text on the keyboard."""
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Read until this text is printed."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert self._read(end - time.monotonic()), f"no {text!r} in {self.text!r}"

    def finish(self, seconds: float = 60) -> str:
        """Read until the program ends, which must be without an error; what it printed."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        assert self._process.wait(max(end - time.monotonic(), 1)) == 0, self.printed
        os.close(self._fd)
        return self.printed

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def _read(self, seconds: float) -> bool:
        """Read what there is; False at the end of the program, or of the time."""
        if not select.select([self._fd], [], [], max(seconds, 0))[0]:
            return False
        try:
            part = os.read(self._fd, 4096)
        except OSError:  # how Linux says that nobody has the terminal open any more
            return False
        self._printed += part
        return bool(part)
