"""What differs between Linux, macOS and Windows: the one place that asks which of them this is.

On macOS and Windows, nothing of the package has been run by its authors; see docs/limits.md.
"""

from __future__ import annotations

import codecs
import ctypes
import io
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from bnn_deploy.errors import SetupError


def library_name(platform: str) -> str:
    """File name of the operator library, as CMake gives it.

    Args:
        platform: `sys.platform` of the system that loads it.
    """
    return "libbnn_deploy_ops" + {"win32": ".dll", "darwin": ".dylib"}.get(platform, ".so")


def cpu_numbers() -> list[int]:
    """The CPUs that this process may use, from 0 on; where the system does not say, all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(cpu_numbers())


def stay_on(cpu: int) -> None:
    """Keep this thread on a CPU, where the system lets a program choose."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})


def is_private(folder: Path) -> bool:
    """Whether a folder is this user's, and nobody else can write into it; on Windows, whose profile folders are so."""
    if sys.platform == "win32":
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def ssh_advice() -> str:
    """How to get the command `ssh`."""
    if sys.platform == "win32":
        return "add the optional feature OpenSSH Client in the settings"
    return "install it" if sys.platform == "darwin" else "sudo apt install openssh-client"


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started with `start_new_session`; on Windows, which has no such sessions, it alone."""
    with suppress(OSError):  # it has just ended, or runs as another user
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def print_what_the_streams_can() -> None:
    """Let stdout and stderr replace what their encoding lacks, as that of a file on Windows lacks a table's lines."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not is_utf8(stream.encoding):
            stream.reconfigure(errors="replace")


def is_utf8(encoding: str) -> bool:
    """Whether an encoding, as Python names it, can write every character."""
    return codecs.lookup(encoding).name == "utf-8"


def reset_peak_memory() -> None:
    """Let `peak_memory` begin anew, where that is possible: on Linux, but for some kernels that are built without."""
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def let_waiting_threads_sleep() -> None:
    """Let the threads of a library that uses OpenMP, such as PyTorch, sleep while they wait, unless the user says else.

    By default they spin, which takes up to half of the CPU's time, all the more where other programs run. It must be
    called before the library is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def release_memory() -> None:
    """Give freed memory back to the system, where the C library keeps it for later: glibc."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes.

    Raises:
        SetupError: the system does not say.
    """
    if sys.platform == "win32":
        return _peak_working_set()
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes there
    # Not ru_maxrss, which survives exec on Linux, so that a child may report its parent's.
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    raise SetupError("/proc/self/status has no VmHWM: peak memory cannot be measured on this system")


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("page_fault_count", ctypes.c_uint32),
        ("peak_working_set_size", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


def _peak_working_set() -> int:
    kernel32 = ctypes.CDLL("kernel32")
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    kernel32.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
    if not kernel32.K32GetProcessMemoryInfo(kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        raise SetupError("GetProcessMemoryInfo failed: peak memory cannot be measured on this system")
    return int(counters.peak_working_set_size)
