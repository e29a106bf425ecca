"""Where this installation of bnn-deploy came from, what it needs, and the command that adds an extra to it."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement

NAME = "bnn-deploy"


def installed() -> Distribution | None:
    """The installed distribution; None if this is a source tree that pip did not install."""
    try:
        return distribution(NAME)
    except PackageNotFoundError:
        return None


def requirements() -> list[tuple[str | None, Requirement]]:
    """The packages that bnn-deploy needs, each with the extra that brings it, or None if none does."""
    found = installed()
    needed = [Requirement(text) for text in (found.requires if found else None) or []]
    extras = (found.metadata.get_all("Provides-Extra") if found else None) or []
    found_for = []
    for need in needed:
        for extra in ("", *extras):  # with "", it is needed without any
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                found_for.append((extra or None, need))
                break
    return found_for


def origin() -> tuple[str, bool] | None:
    """What bnn-deploy was installed from, and whether it is editable there; None if it came from a package index.

    A folder or file as its path, anything else as the URL that pip takes.
    """
    found = installed()
    if found is None:
        return str(Path(__file__).parents[1]), False
    # What pip was given, if it was no name: https://packaging.python.org/en/latest/specifications/direct-url/
    text = found.read_text("direct_url.json")
    if text is None:
        return None
    direct = json.loads(text)
    url = urlsplit(direct["url"])
    if "vcs_info" in direct:
        vcs = direct["vcs_info"]
        return f"{vcs['vcs']}+{direct['url']}@{vcs['commit_id']}", False
    if url.scheme != "file":
        return direct["url"], False
    return url2pathname(url.path), bool(direct.get("dir_info", {}).get("editable"))


def install_command(extra: str) -> str:
    """The command that adds the packages of an extra to this installation.

    From the folder, wheel or archive that bnn-deploy was installed from, with the versions pinned there; if that is
    gone, or was a package index, it names the packages themselves.
    """
    source = origin()
    words = ["pip", "install"]
    if source is not None and "://" in source[0]:
        words += [f"{NAME}[{extra}] @ {source[0]}"]
    elif source is not None and Path(source[0]).exists():
        constraints = Path(source[0]) / "constraints.txt"
        words += ["-c", str(constraints)] if constraints.is_file() else []
        words += ["-e"] if source[1] else []
        words += [f"{source[0]}[{extra}]"]
    else:
        words += [f"{need.name}{need.specifier}" for name, need in requirements() if name == extra]
    return shlex.join(words)
