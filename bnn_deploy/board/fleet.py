"""The reports of several boards together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bnn_deploy.board.report import entry_at, parse_report
from bnn_deploy.errors import InputError
from bnn_deploy.json_form import JsonDocument

BoardVerdict = Literal["passed", "failed", "no report"]


@dataclass(frozen=True)
class FleetBoard:
    """A board's report in a line.

    Attributes:
        host: the board's name: its report's file name without .json.
        verdict: whether it reproduces the golden results of its bundle; "no report" for a board that was expected.
        reason: why it failed, "" if it did not.
        bundle: checksum of its bundle's manifest.
        model: file name of the model.
        board: the machine, as it calls itself.
        isa: the kernels that ran.
        onnxruntime: its version.
        threads: of the measurement.
        median_ms: of a run, in milliseconds.
        speedup: of the float model's time; None if that was not measured.
        temperature_c: after the measurement, in degrees Celsius.
        throttled: whether the board was slowed down while it measured; None if it does not say.
    """

    host: str
    verdict: BoardVerdict
    reason: str = ""
    bundle: str | None = None
    model: str | None = None
    board: str | None = None
    isa: str | None = None
    onnxruntime: str | None = None
    threads: int | None = None
    median_ms: float | None = None
    speedup: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None


@dataclass(frozen=True)
class Fleet(JsonDocument):
    """The result of `bnn-deploy fleet`.

    Attributes:
        boards: in the order in which they were expected, and then by name.
    """

    JSON_FORMAT = "fleet"
    JSON_PROPERTIES: ClassVar = ("passed",)

    boards: tuple[FleetBoard, ...]

    @property
    def passed(self) -> bool:
        """Whether every board has reported, and passed."""
        return all(board.verdict == "passed" for board in self.boards)


def read_fleet(folder: Path, hosts: Sequence[str] = ()) -> Fleet:
    """Read the reports in a folder, HOST.json each.

    Args:
        folder: has the reports.
        hosts: the boards that were expected to report; others that have are shown behind them.

    Raises:
        InputError: the folder has no report and no board was expected.
        SetupError: a file is no board's report, or of a format that this version does not read.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    names = list(dict.fromkeys([*hosts, *files]))
    if not names:
        raise InputError(f"{folder}: no report of a board, HOST.json, is in it")
    return Fleet(tuple(_board(name, files.get(name)) for name in names))


def _board(host: str, path: Path | None) -> FleetBoard:
    if path is None:
        return FleetBoard(host, "no report", "it was not reached, or not its turn any more behind a board that failed")
    report = parse_report(path.read_bytes(), str(path))
    failures = entry_at(report, "golden", "failures")
    reason = "" if report["passed"] else "the golden results differ"
    if not report["passed"] and isinstance(failures, list) and failures:
        reason = str(failures[0])
    profile = report.get("profile")
    throttled = entry_at(profile, "throttled")
    return FleetBoard(
        host=host,
        verdict="passed" if report["passed"] else "failed",
        reason=reason,
        bundle=_text(report.get("manifest_sha256")),
        model=_text(report.get("model")),
        board=_text(entry_at(profile, "board", "model") or entry_at(profile, "machine", "cpu")),
        isa=_text(entry_at(profile, "isa")),
        onnxruntime=_text(entry_at(profile, "machine", "onnxruntime") or entry_at(report, "versions", "onnxruntime")),
        threads=_whole(entry_at(profile, "threads")),
        median_ms=_number(entry_at(profile, "model", "timing", "median_ms")),
        speedup=_number(entry_at(profile, "speedup", "median")),
        temperature_c=_number(entry_at(profile, "board", "after", "temperature_c")),
        throttled=bool(throttled) if isinstance(throttled, list) else None,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
