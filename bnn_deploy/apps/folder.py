"""Classify each new image in a folder: one line of JSON for each.

    python -m bnn_deploy.apps.folder MODEL.onnx FOLDER [--threads N] [--settle SECONDS] [--once]

The lines are printed, and appended to results.jsonl in the folder:

    {"file": "a.jpg", "bytes": 2412, "modified_ns": 17..., "label": "cat", "index": 3, "score": 5.1, ...}

An image is read when nothing has been written to its file for --settle seconds, so that one that is being copied is
whole. Names that begin with a dot are left out. What results.jsonl has is not classified again, unless the file was
changed; an image that cannot be read has "error" in place of its class. The folder is made if it is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

from bnn_deploy.apps.program import OptionParser, limit_pictures, notify, option_parser, run_program, seconds
from bnn_deploy.data.pictures import EXTENSIONS
from bnn_deploy.errors import InputError
from bnn_deploy.json_form import json_form
from bnn_deploy.runtime.classifier import Classifier

RESULTS = "results.jsonl"
"""The file in the folder that gets the lines."""

PERIOD = 0.5
"""Seconds between two looks at the folder."""

FileState = tuple[int, int]
"""Size in bytes and time of the last change in ns: another one means another content."""


def parser() -> OptionParser:
    """The program's options."""
    result = option_parser("folder", __doc__)
    result.add_argument("folder", metavar="FOLDER")
    result.add_argument(
        "--settle", type=seconds, default=2.0, metavar="SECONDS", help="without a change make a file whole (default: 2)"
    )
    result.add_argument("--once", action="store_true", help="end when all images that are there have their line")
    return result


def images_in(folder: Path) -> dict[str, FileState]:
    """The image files of a folder: name -> state."""
    found = {}
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or not entry.name.lower().endswith(EXTENSIONS):
            continue
        try:
            status = entry.stat()
        except OSError:  # it has just been removed, or is a link to nothing
            continue
        if stat.S_ISREG(status.st_mode):
            found[entry.name] = status.st_size, status.st_mtime_ns
    return found


def done_before(results: Path) -> dict[str, FileState]:
    """The images that have their line: name -> the state that was read."""
    found = {}
    lines = results.read_text(errors="replace").splitlines() if results.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
            found[str(entry["file"])] = int(entry["bytes"]), int(entry["modified_ns"])
        except (ValueError, KeyError, TypeError):  # the power went while it was written
            continue
    return found


def line_of(classifier: Classifier, path: Path, state: FileState) -> dict[str, Any]:
    """What the program says of an image."""
    entry: dict[str, Any] = {"file": path.name, "bytes": state[0], "modified_ns": state[1]}
    try:
        (best,) = classifier.predict(path, top=1)
    except InputError as error:
        return entry | {"error": str(error)}
    return {**entry, **json_form(best)}


def append(results: Path, text: str) -> None:
    """Append a line, by one write; the rest of one that was cut off by a power cut ends first."""
    with results.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
        torn = size and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + text.encode() + b"\n")


def run(args: argparse.Namespace) -> int:
    """Watch the folder, until the process is ended, or with --once until nothing is new."""
    folder = Path(args.folder).expanduser()  # no shell does it for a service
    limit_pictures()
    classifier = Classifier(args.model, args.threads)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / RESULTS
    done = done_before(results)
    if not os.access(results if results.exists() else folder, os.W_OK):
        raise InputError(f"{results}: it cannot be written")
    waiting: dict[str, tuple[FileState, float]] = {}
    notify("READY=1")
    while True:
        found = images_in(folder)
        for name, state in sorted(found.items()):
            before, since = waiting.get(name, (None, 0.0))
            if done.get(name) == state:
                continue
            if before != state:
                waiting[name] = state, time.monotonic()
            elif time.monotonic() - since >= args.settle:
                notify("WATCHDOG=1")
                text = json.dumps(line_of(classifier, folder / name, state))
                append(results, text)
                print(text, flush=True)
                done[name] = state
        # What was removed may come again.
        done = {name: state for name, state in done.items() if name in found}
        waiting = {name: entry for name, entry in waiting.items() if name in found and done.get(name) != entry[0]}
        notify("WATCHDOG=1")
        if args.once and not waiting:
            return 0
        time.sleep(min(PERIOD, args.settle) if args.once else PERIOD)


if __name__ == "__main__":
    sys.exit(run_program(parser(), run))
