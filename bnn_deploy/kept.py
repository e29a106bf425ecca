"""What a conversion leaves in the cache folder of its user, so that no later command has to ask or compute it again.

Two things: of which files a converted model was made, under the content of the model; and float exports, see
`source.kept_exports`. Each is found by a digest of all that it depends on, so nothing in the folder can be out of date,
and all of it may be deleted at any time. Together they take at most MAX_KEPT_BYTES: the least recently used go first.

The folder tells `verify` which FILE.py its user once gave to `convert`, and so may be run. So it must be this user's
alone: one that others can write is not used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from bnn_deploy.files import sha256_of
from bnn_deploy.system import is_private

CACHE_VARIABLE = "BNN_DEPLOY_CACHE"
"""Environment variable: the folder, in place of the platform's usual one; empty for none."""

MAX_KEPT_BYTES = 1 << 30

_UNFINISHED = ".unfinished"

_PLACES = "places.json"


def kept_folder() -> Path | None:
    """The folder, made if it is not there; None if there is to be none, or it is not this user's alone."""
    named = os.environ.get(CACHE_VARIABLE)
    if named == "":
        return None
    try:
        if named is None:
            import platformdirs  # of the extra 'convert': a board converts nothing

            folder = platformdirs.user_cache_path("bnn-deploy", appauthor=False)
        else:
            folder = Path(named)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if is_private(folder) else None
    except (ImportError, OSError):
        return None


def find_kept(name: str) -> Path | None:
    """The folder of files that was kept under a name; None if there is none."""
    folder = kept_folder()
    found = None if folder is None else folder / name
    if found is None or not found.is_dir():
        return None
    with suppress(OSError):
        os.utime(found)  # it is in use: others go first
    return found


def keep(name: str, write: Callable[[Path], None]) -> None:
    """Keep files under a name, unless some are, or there is no folder for them; a full disk is no reason to fail.

    Args:
        name: with a digest of all that they depend on.
        write: writes them into the folder that it is called with.
    """
    folder = kept_folder()
    if folder is None or (folder / name).exists():
        return
    with suppress(OSError):
        new = Path(mkdtemp(suffix=_UNFINISHED, dir=folder))
        try:
            write(new)
            new.rename(folder / name)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        _remove_oldest(folder)


def _remove_oldest(folder: Path) -> None:
    """Delete what was not used for longest, until the rest is within the limit."""
    entries = sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: -entry.stat().st_mtime)
    total = 0
    for entry in entries:  # unfinished ones, too: the process may have been killed, and one at work has the newest
        total += sum(file.stat().st_size for file in entry.iterdir())
        if total > MAX_KEPT_BYTES:
            shutil.rmtree(entry, ignore_errors=True)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return sha256_of(file)


def keep_conversion(model: str, places: Mapping[str, str | None]) -> None:
    """Keep where the files are that `convert` made a model of.

    Args:
        model: SHA-256 of the converted model's file.
        places: its source under "source", and its architecture, a name or FILE.py:NAME, under "arch"; absolute paths.
    """
    content, name = json.dumps(dict(places)), f"conversion-{model}"
    folder = kept_folder()
    if folder is not None and find_conversion(model) != dict(places):
        shutil.rmtree(folder / name, ignore_errors=True)  # made of files elsewhere before, which may be gone

    def write(folder: Path) -> None:
        (folder / _PLACES).write_text(content, encoding="utf-8")

    keep(name, write)


def find_conversion(model: str) -> dict[str, str | None]:
    """What was kept for a model of this content; empty if this user has not converted it here."""
    folder = find_kept(f"conversion-{model}")
    found: dict[str, str | None] = {}
    if folder is not None:
        with suppress(OSError, ValueError):
            found = json.loads((folder / _PLACES).read_text(encoding="utf-8"))
    return found
