"""Start a program for which newer system calls do not exist (ENOSYS): old_system_calls.py COMMAND...

proot translates the paths in system calls, and Debian 12's, 5.1, lets those pass that it does not know: `test -r FILE`
would look at the machine's files. The C library and qemu use the older calls where the newer ones do not exist.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

HIDDEN = {"statx": 332, "openat2": 437, "faccessat2": 439, "fchmodat2": 452}
"""Numbers on x86-64."""

# asm/unistd.h, linux/seccomp.h, linux/filter.h, linux/prctl.h
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER_MODE = 38, 22, 2


def main() -> None:
    """Hide them, and become COMMAND."""
    numbers = list(HIDDEN.values())
    program = [(LOAD, 0, 0, 0)]  # the number of the system call
    program += [(JUMP_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((SET_NO_NEW_PRIVS, 1, 0, 0, 0), (SET_SECCOMP, FILTER_MODE, ctypes.byref(header), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl cannot hide system calls")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
