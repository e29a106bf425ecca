"""The record: one JSON document of all that is known about a converted model, from which the page is made.

Its parts are what the commands print with `--json`. So a board, which has neither onnx nor the packages of the page,
writes JSON, and a laptop adds its own and makes the page:

    {"format": "bnn-deploy record", "version": 1, "sha256": "9f86...",
     "model": ..., "conversion": ..., "verification": ..., "golden": ..., "profile": ...,
     "runs": [{"parts": ["profile"], "command": "bnn-deploy profile ...", "machine": ..., "versions": {...}}]}

A part that is not known is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnn_deploy.errors import InputError, reading
from bnn_deploy.json_form import JSON_VERSION, head, json_form

RECORD_PARTS = {
    "model": "bnn-deploy inspection",
    "conversion": "bnn-deploy conversion",
    "verification": "bnn-deploy verification",
    "golden": "bnn-deploy golden verification",
    "profile": "bnn-deploy profile",
}
"""Part of a record -> the `format` of the document that it is."""

_RECORD = "bnn-deploy record"

_BOARD_REPORT = "bnn-deploy board report"
"""The `format` of what run.sh of a bundle writes on a board: two parts."""


@dataclass(frozen=True)
class Run:
    """A command that found something out.

    Attributes:
        parts: the parts of the record that it made.
        command: its command line.
        machine: CPU model, number of usable CPUs and system.
        versions: package -> version, of those that are installed.
    """

    parts: tuple[str, ...]
    command: str
    machine: str
    versions: dict[str, str]


def new_record(parts: Mapping[str, dict[str, Any]], run: Run) -> dict[str, Any]:
    """The record of one run, of the parts that it made: those of RECORD_PARTS, by these names."""
    digests = {_digest(name, part) for name, part in parts.items()}
    assert len(digests) == 1, "parts of one run are about one model"
    return _record(digests.pop(), parts, [json_form(run)])


def read_record(path: Path) -> dict[str, Any]:
    """Read a record, or what a command printed with `--json`, or the report of a bundle that ran on a board.

    Raises:
        InputError: it is none of these, of a newer version, or does not say which model it is about.
    """
    with reading(path, "not JSON that bnn-deploy wrote, or damaged"):
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise InputError(f"{path}: not JSON that bnn-deploy wrote: it is no object")
        form = found.get("format")
        known = isinstance(form, str) and form.startswith("bnn-deploy ")
        if known and (not isinstance(found.get("version"), int) or found["version"] > JSON_VERSION):
            version = found.get("version")
            raise InputError(f"{path}: of version {version!r}, this bnn-deploy reads up to {JSON_VERSION}: update it")
        if form == _RECORD:
            parts, runs = {name: found[name] for name in RECORD_PARTS if found[name] is not None}, found["runs"]
        elif form in RECORD_PARTS.values():
            parts, runs = {name: found for name, own in RECORD_PARTS.items() if own == form}, []
        elif form == _BOARD_REPORT:
            parts = {name: found[name] for name in ("golden", "profile") if found[name] is not None}
            runs = [json_form(Run(tuple(parts), "bnn-deploy run-bundle", "", found["versions"]))]
        else:
            raise InputError(
                f"{path}: not what `report` reads: a record, or the JSON of verify, profile, inspect, "
                "convert --report or run-bundle"
            )
        digests = {_digest(name, part) for name, part in parts.items()}
    if len(digests) != 1 or not all(digests):
        raise InputError(f"{path}: it does not say which model it is about: make it again with this version")
    return _record(digests.pop(), parts, runs)


def merge(records: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One record of several about the same model.

    Args:
        records: where each comes from, for messages -> the record; at least one.

    Raises:
        InputError: they are about different models, or two have the same part.
    """
    (first, result), *others = records.items()
    origins = {name: first for name in RECORD_PARTS if result[name] is not None}
    for where, record in others:
        if record["sha256"] != result["sha256"]:
            raise InputError(
                f"{where}: about another model than {first}: SHA-256 {record['sha256'][:12]}... instead of "
                f"{result['sha256'][:12]}...; make a report of each"
            )
        parts = {name: record[name] for name in RECORD_PARTS if record[name] is not None}
        for name in parts:
            if name in origins:
                raise InputError(f"{where}: {origins[name]} has the part '{name}', too: give one of them")
            origins[name] = where
        known = {name: result[name] for name in RECORD_PARTS if result[name] is not None}
        result = _record(result["sha256"], known | parts, [*result["runs"], *record["runs"]])
    return result


def _record(digest: str, parts: Mapping[str, dict[str, Any]], runs: Sequence[Any]) -> dict[str, Any]:
    return head("record") | {"sha256": digest, **{name: parts.get(name) for name in RECORD_PARTS}, "runs": list(runs)}


def _digest(name: str, part: Mapping[str, Any]) -> str:
    """The SHA-256 of the model that a part is about; "" if it has none."""
    digest = (part["model"] if name == "profile" else part).get("sha256")
    return digest if isinstance(digest, str) else ""
