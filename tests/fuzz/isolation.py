"""Run a case in a process of its own, with limits of time and memory."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

SECONDS = 20
"""Of computing, after which a case hangs."""

WAITS = 120
"""Seconds on the clock after which it hangs, too: it may wait for something, or the machine may be busy."""

MEMORY = 8 << 30
"""Bytes of address space of a case, with all that is loaded."""


class FoundError(Exception):
    """What is wrong with a case, in a line."""


def isolated(case: Callable[[Path], None]) -> str | None:
    """Run `case` in a fork of this process, with an empty folder.

    This process must not have made an onnxruntime session: their threads do not survive a fork.

    Args:
        case: called with the folder; it raises FoundError for what is wrong.

    Returns:
        What is wrong: what the case says, the signal that ended it, or that it takes too long; None if nothing is.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _run(case, Path(folder), said.fileno())
        _, status = os.waitpid(child, 0)
        said.seek(0)
        output = said.read().decode(errors="replace").strip()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGPROF, signal.SIGALRM):
            return f"hangs: no end after {SECONDS} s of computing, or {WAITS} s; {output[-300:]}"
        return f"crashes: {signal.Signals(number).name}; {output[-300:]}"
    return output.splitlines()[-1] if os.WEXITSTATUS(status) else None


def _run(case: Callable[[Path], None], folder: Path, said: int) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAITS)
        case(folder)
        code = 0
    except FoundError as found:
        os.write(said, f"\n{found}".encode())
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        os.write(said, f"\n{text} ({Path(where.filename).name}:{where.lineno})".encode(errors="replace"))
    finally:
        sys.stdout = sys.stderr = None  # what they hold was not for us
        os._exit(code)
