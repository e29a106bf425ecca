"""Devices to write to, so that no fault, in tests that root runs, can put a file in the place of the machine's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def device(folder: Path, name: str) -> Path:
    """One like /dev/null or /dev/full in a folder; where only root may make it, that itself, which then is safe.

    Args:
        folder: an existing one.
        name: "null" or "full".
    """
    own, path = Path("/dev", name), folder / name
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, own.stat().st_rdev)
        path.open("wb").close()
    except PermissionError:  # no right to make it, or a file system without devices
        path.unlink(missing_ok=True)
        return own
    return path
