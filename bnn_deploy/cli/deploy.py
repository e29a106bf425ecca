"""`bnn-deploy deploy`: copy a bundle to a board, run it there, and show board and laptop side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from bnn_deploy.board.deployment import Deployment, Look, deploy, look
from bnn_deploy.board.report import entry_at
from bnn_deploy.cli import CHECK_FAILED
from bnn_deploy.cli.console import facts, print_json, printable, remark, show, table
from bnn_deploy.cli.options import example
from bnn_deploy.cli.tables import Table
from bnn_deploy.errors import SetupError
from bnn_deploy.quantities import TIMES, human_bytes, plural

_NONE = "-"
"""The cell of a value that a report lacks: the board may have another version of bnn-deploy."""


@click.command(name="deploy", epilog=example("bnn-deploy deploy pi@raspberrypi.local lenet5.tar.gz"))
@click.argument("host", metavar="[USER@]HOST")
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="BUNDLE.tar.gz")
@click.option("--directory", metavar="DIR", default="bnn-deploy", help="On the board, relative to the home directory.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the measurement; the bundle's default if left out.")
@click.option("--runs", type=click.IntRange(1), help="Timed runs of it; the bundle's default if left out.")
@click.option(
    "-o", "--ssh-option", "ssh_options", multiple=True, metavar="KEY=VALUE", help="For ssh, like Port=2222; repeatable."
)
@click.option(
    "--install-service", is_flag=True, help="Once the check passed, set up and start the service of bundle --app."
)
@click.option("--dry-run", is_flag=True, help="Only look at the board, and say what would be done.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to save the board's report; next to the bundle if left out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(
    host: str,
    bundle: Path,
    directory: str,
    threads: int | None,
    runs: int | None,
    ssh_options: tuple[str, ...],
    install_service: bool,
    dry_run: bool,
    report: Path | None,
    as_json: bool,
) -> int:
    """Install, verify and profile BUNDLE.tar.gz on a board that `ssh [USER@]HOST` reaches.

    Uses your own ssh with your keys and configuration. What the board misses is said before anything is copied. The
    command can be interrupted and repeated. Exit code 1 if the check on the board failed, 3 if it passed and the
    service does not run.
    """
    if dry_run:
        found = look(host, bundle, directory=directory, ssh_options=ssh_options, install_service=install_service)
        if as_json:
            print_json(found.to_json())
        else:
            _print_look(found)
        if found.problems:
            raise SetupError(f"{host} cannot run {bundle.name}: {plural(len(found.problems), 'problem')}, see above")
        return 0
    result = deploy(
        host,
        bundle,
        directory=directory,
        threads=threads,
        runs=runs,
        ssh_options=ssh_options,
        report=report,
        install_service=install_service,
        output=remark,
    )
    if as_json:
        print_json(result.to_json())
    else:
        _print_deployment(result)
    if result.service is not None and result.service.state != "running":
        raise SetupError(f"{host}: {result.service.reason}")
    return 0 if result.passed else CHECK_FAILED


def _print_look(found: Look) -> None:
    board = found.board
    bits = _NONE if board.bits is None else f"{board.bits}-bit"
    venv = "with venv" if board.venv else "without venv"
    rows = [
        ("board", board.model),
        ("system", f"{board.os or _NONE}, {board.system} {board.machine}, {bits}"),
        ("glibc", _version(board.glibc)),
        ("Python", None if board.python is None else f"{_version(board.python)}, {board.python_bits}-bit, {venv}"),
        ("CPUs", None if board.cpus is None else str(board.cpus)),
        ("memory", f"{_size(board.memory_bytes)}, {_size(board.available_bytes)} free with swap"),
        ("disk", f"{_size(board.disk_free_bytes)} free at {board.parent}, {human_bytes(found.needed_bytes)} needed"),
    ]
    show(facts((name, value or _NONE) for name, value in rows))
    show("")
    for problem in found.problems:
        show(f"missing: {printable(problem)}", result=True)
    if found.problems:
        return
    steps = [f"copy {human_bytes(found.bytes)} to {found.folder}"] if board.installed == "no" else []
    if board.installed != "yes":
        network = "from the bundle alone" if found.manifest.offline else "with pip from the package index"
        steps.append(f"make a virtual environment there, {network}")
    steps += ["verify the model against the golden results and profile it", "fetch the report"]
    if found.service is not None:
        steps.append(f"if it passed, set up and start the service {found.service}")
    show("Nothing was changed. Without --dry-run, this would be done:")
    for i, step in enumerate(steps, 1):
        show(f"  {i}. {printable(step)}")


def _version(parts: tuple[int, ...] | None) -> str | None:
    return None if parts is None else ".".join(map(str, parts))


def _size(count: int | None) -> str:
    return _NONE if count is None else human_bytes(count)


def _print_deployment(result: Deployment) -> None:
    report = result.report
    if result.laptop is not None:
        show(_side_by_side(report, result.laptop.to_json()))
        show("")
        for machine, profile in (("laptop", result.laptop.to_json()), ("board", entry_at(report, "profile"))):
            for what in ("throttled", "noisy"):
                for reason in _list(entry_at(profile, what)):
                    show(f"{what.upper()}, {machine}: {printable(str(reason))}")
        ratio = _ratio(report, result.laptop.to_json())
        if ratio is not None:
            show(f"The board takes {ratio:.2f}{TIMES} the laptop's time.")
    for failure in _list(entry_at(report, "golden", "failures")):
        show(f"FAILED: {printable(str(failure))}", result=True)
    show(f"The board's report is in {printable(result.report_file)}.", result=True)
    if result.service is not None:
        show(f"The service {result.service.name}: {result.service.state}.", result=True)
    show("PASSED" if result.passed else "FAILED", result=True)


def _side_by_side(report: Mapping[str, Any], laptop: Mapping[str, Any]) -> Table:
    """One column per machine. The board's report may lack entries: it may be of another version."""
    board = entry_at(report, "profile")
    columns = (laptop, board)
    result = table(None, ["", "laptop", "board"])

    def add(name: str, cell: Callable[[Any], str]) -> None:
        result.add_row(name, *[printable(cell(profile)) for profile in columns])

    add("machine", lambda p: str(entry_at(p, "board", "model") or entry_at(p, "machine", "cpu") or _NONE))
    add("onnxruntime", lambda p: str(entry_at(p, "machine", "onnxruntime") or _NONE))
    add("ISA that ran", lambda p: str(entry_at(p, "isa") or _NONE))
    add("threads", lambda p: str(entry_at(p, "threads") or _NONE))
    add("median", lambda p: _number(entry_at(p, "model", "timing", "median_ms"), "{:.3f} ms"))
    add("p10 to p90", _spread)
    add("samples per second", lambda p: _number(entry_at(p, "model", "timing", "samples_per_second"), "{:,.0f}"))
    if any(entry_at(profile, "compare") for profile in columns):
        add(
            "float model",
            lambda p: _number(entry_at(_first(entry_at(p, "compare")), "timing", "median_ms"), "{:.3f} ms"),
        )
        add("speed-up", lambda p: _number(entry_at(p, "speedup", "median"), f"{{:.2f}}{TIMES}"))
    add("peak memory", lambda p: _memory(entry_at(p, "model", "memory", "peak_bytes")))
    add("temperature", _temperature)
    add("throttled", lambda p: _signs(entry_at(p, "throttled")))
    add("noisy", lambda p: _signs(entry_at(p, "noisy")))
    result.add_row("check", _NONE, "PASSED" if entry_at(report, "passed") else "FAILED")
    return result


def _spread(profile: Any) -> str:
    ends = [_number(entry_at(profile, "model", "timing", name), "{:.3f}") for name in ("p10_ms", "p90_ms")]
    return _NONE if _NONE in ends else " to ".join(ends) + " ms"


def _temperature(profile: Any) -> str:
    degrees = [entry_at(profile, "board", when, "temperature_c") for when in ("before", "after")]
    return " to ".join(_number(value, "{:.0f} °C") for value in degrees) if any(degrees) else _NONE


def _signs(reasons: Any) -> str:
    """The cell for a list of signs of something that slowed the runs down, which may be empty."""
    if not isinstance(reasons, list):
        return _NONE
    return "YES, see below" if reasons else "no sign of it"


def _ratio(report: Mapping[str, Any], laptop: Mapping[str, Any]) -> float | None:
    """The board's median time divided by the laptop's."""
    board = entry_at(report, "profile", "model", "timing", "median_ms")
    here = entry_at(laptop, "model", "timing", "median_ms")
    return board / here if isinstance(board, int | float) and here else None


def _first(value: Any) -> Any:
    """The first entry of a list, None where there is none."""
    return next(iter(_list(value)), None)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else _NONE


def _memory(value: Any) -> str:
    return human_bytes(value) if isinstance(value, int) else _NONE
