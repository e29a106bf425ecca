"""Deploy a bundle to a board through the user's own `ssh`: look at the board, copy, run, fetch the report.

Everything goes through one connection, that is, one `ssh` process: it asks for passwords, passphrases and host keys
itself, with the user's keys and configuration, once. It runs deploy.sh on the board, which reports its progress in
lines that begin with a random token, such as "@0123456789abcdef copied"; all other lines are the output of run.sh. The
board needs a POSIX shell, and `problems` checks the other requirements before anything is copied. When the connection
breaks, the script on the board notices and removes incomplete files.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bnn_deploy.board.apps import APPS
from bnn_deploy.board.archive import read_member
from bnn_deploy.board.connection import CHUNK, LOCK_SECONDS, Connection, LineSink, Step
from bnn_deploy.board.manifest import FLOAT_MODEL, MODEL, Manifest
from bnn_deploy.board.probe import VENV_BYTES, BoardFacts, in_megabytes, parse_board, problems
from bnn_deploy.board.report import parse_report
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.files import require_outputs, temporary_folder, write_files
from bnn_deploy.json_form import JsonDocument
from bnn_deploy.runtime.profile_results import ProfileReport
from bnn_deploy.runtime.profiling import most_threads, profile

MAX_REPORT_BYTES = 16 << 20

MAX_REPORTED = 1_000_000
"""The largest number of threads or runs that a report may name: this machine measures as often."""

COPY_NOTE_SECONDS = 10
"""Time between two progress lines of a slow copy."""


@dataclass(frozen=True)
class Look(JsonDocument):
    """The result of `look`: a board, and a bundle's unmet requirements on it.

    Attributes:
        host: as it was given.
        bundle: the file.
        manifest: the bundle's manifest.
        board: the facts about the board.
        folder: absolute path of the bundle's folder on the board.
        bytes: size of the archive.
        needed_bytes: disk space that is needed on the board.
        problems: the unmet requirements, each with its remedy; empty if the bundle can be deployed.
        service: name of the service that shall be set up; None if none shall.
    """

    JSON_FORMAT = "deployment plan"
    JSON_OMITTED: ClassVar = ("manifest",)
    JSON_PROPERTIES: ClassVar = ("target", "offline")

    host: str
    bundle: str
    manifest: Manifest
    board: BoardFacts
    folder: str
    bytes: int
    needed_bytes: int
    problems: tuple[str, ...]
    service: str | None

    @property
    def target(self) -> str:
        """The architecture that the bundle is for."""
        return self.manifest.target

    @property
    def offline(self) -> bool:
        """Whether the board needs no package index."""
        return self.manifest.offline


ServiceState = Literal["running", "failed", "not set up"]

_STATES: dict[str, ServiceState] = {"0": "running", "1": "failed"}
"""Exit code of service.sh -> what it means; others mean that this board cannot have the service."""


@dataclass(frozen=True)
class BoardService:
    """What became of a service on a board.

    Attributes:
        name: of its unit, a user's.
        state: "running"; "failed" if it was started and does not run; "not set up" if the board cannot have it.
        output: the lines that service.sh printed; of a service that failed they end with its last lines and the reason.
    """

    name: str
    state: ServiceState
    output: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why it does not run: the last line."""
        return self.output[-1].removeprefix("error: ") if self.output else "service.sh printed nothing"


@dataclass(frozen=True)
class Deployment(JsonDocument):
    """The result of `deploy`.

    Attributes:
        look: the state of the board before.
        copied: False if the complete bundle was on the board already.
        report: report.json of the board, as its version of bnn-deploy wrote it.
        report_file: the path of the saved report.
        laptop: this machine's profile of the same model with the same threads and runs; None if the board's check
            failed.
        service: what became of the service; None if it was not asked for, or the board's check failed.
    """

    JSON_FORMAT = "deployment"
    JSON_PROPERTIES: ClassVar = ("passed",)

    look: Look
    copied: bool
    report: dict[str, Any]
    report_file: str
    laptop: ProfileReport | None
    service: BoardService | None

    @property
    def passed(self) -> bool:
        """Whether the board reproduces the bundle's golden results."""
        return bool(self.report["passed"])


def look(
    host: str,
    bundle: str | os.PathLike[str],
    *,
    directory: str = "bnn-deploy",
    ssh_options: Sequence[str] = (),
    install_service: bool = False,
) -> Look:
    """Look at a board and at a bundle's unmet requirements there, and change nothing.

    Args:
        host: [user@]name, as ssh takes it.
        bundle: the .tar.gz file.
        directory: folder for bundles on the board, absolute or relative to the home directory; ~/x is the same as x.
        ssh_options: KEY=VALUE, as ssh takes them after -o.
        install_service: look whether the bundle's service can be set up, too.

    Raises:
        InputError: the file was changed or is not a bundle, or has no service; a name cannot be used.
        SetupError: there is no connection.
    """
    task = Step(host, Path(bundle), directory, ssh_options, "", install_service)
    with Connection(task) as connection:
        return _look(task, connection)


def deploy(
    host: str,
    bundle: str | os.PathLike[str],
    *,
    directory: str = "bnn-deploy",
    threads: int | None = None,
    runs: int | None = None,
    ssh_options: Sequence[str] = (),
    report: str | os.PathLike[str] | None = None,
    install_service: bool = False,
    output: LineSink = lambda line: None,
) -> Deployment:
    """Copy a bundle to a board, run it there, fetch its report, and measure the model on this machine as well.

    It can be interrupted and repeated at any time: a bundle gets its name on the board when it is complete, and a
    complete bundle is not copied again.

    Args:
        host: [user@]name, as ssh takes it.
        bundle: the .tar.gz file.
        directory: folder for bundles on the board, absolute or relative to the home directory; ~/x is the same as x.
        threads: intra-op threads of the measurement; None leaves the default of run.sh.
        runs: timed runs of the measurement; None leaves the default of run.sh.
        ssh_options: KEY=VALUE, as ssh takes them after -o.
        report: file for the board's report; None for a file next to the bundle, see `report_path`.
        install_service: if the board reproduces the golden results, also set up the bundle's service there, and start
            it. A service that does not run is no exception: the result says so.
        output: called with each line that run.sh prints, and with each step.

    Raises:
        InputError: the file was changed or is not a bundle, or has no service; a name cannot be used.
        SetupError: no connection, or it was lost; the board lacks something; run.sh failed there. No report is written,
            but when the connection is lost while the service is set up.
    """
    bundle = Path(bundle)
    report_file = report_path(bundle) if report is None else Path(report)
    require_outputs({"report": report_file}, {"bundle": bundle})
    options = [f"--{name} {value:d}" for name, value in (("threads", threads), ("runs", runs)) if value is not None]
    task = Step(host, bundle, directory, ssh_options, " ".join(options), install_service)
    output(f"connecting to {host}")
    with Connection(task) as connection:
        found = _look(task, connection)
        if found.problems:
            numbered = [f"({i}) {text}" for i, text in enumerate(found.problems, 1)]
            listed = "; ".join(numbered if len(numbered) > 1 else found.problems)
            raise SetupError(f"{host} cannot run {bundle.name}: {listed}")
        copied = _copy(task, connection, found, output)
        output(f"running {found.folder}/run.sh on {host}")
        content, status = _run(task, connection, output)
        result = _read_report(content, status, task)
        measured = _reported(result, "threads", 1, host), _reported(result, "runs", 50, host)
        write_files({report_file: content})
        service = _install_service(task, connection, output) if install_service and result["passed"] else None
    laptop = None
    if result["passed"]:
        output("measuring the same model on this machine")
        laptop = _profile_here(bundle, found.manifest, *measured)
    return Deployment(found, copied, result, str(report_file), laptop, service)


def report_path(bundle: Path) -> Path:
    """The default path of a bundle's report: x.tar.gz -> x.report.json."""
    return bundle.with_name(re.sub(r"\.(tar\.gz|tgz)$", "", bundle.name) + ".report.json")


def _look(task: Step, connection: Connection) -> Look:
    with suppress(BrokenPipeError):  # then `expect` tells why
        connection.send(task.script)
    connection.expect("begin")
    connection.step("looking at the board")
    facts: dict[str, str] = {}
    while (answer := connection.expect("fact", "ready"))[0] == "fact":
        name, _, value = answer[1].partition(" ")
        facts[name] = value.strip()
    try:
        board = parse_board(facts)
    except (KeyError, ValueError) as error:
        raise SetupError(f"{task.host}: what it says about itself cannot be read: {error!r}") from None
    # The archive and its unpacked files take space at the same time.
    packages = VENV_BYTES + (0 if task.manifest.app is None else APPS[task.manifest.app].bytes)
    needed = {
        "no": task.bytes + task.manifest.unpacked_bytes + packages,
        "copied": packages,
        "yes": 0,
    }[board.installed]
    return Look(
        task.host,
        str(task.bundle),
        task.manifest,
        board,
        f"{board.directory.rstrip('/')}/{task.name}",
        task.bytes,
        needed,
        problems(board, task.manifest, needed, task.service),
        task.manifest.service if task.service else None,
    )


def _copy(task: Step, connection: Connection, found: Look, output: LineSink) -> bool:
    """Send the archive if the board asks for it; return whether it did."""
    connection.step("preparing the copy")
    with suppress(BrokenPipeError):  # then `expect` tells why
        connection.send(b"go\n")
    while (answer := connection.expect("busy", "have", "send")[0]) == "busy":
        output(f"another deploy is at work in {found.board.directory}: waiting {LOCK_SECONDS} s for its end")
    if answer == "have":
        output("the complete bundle is on the board already")
        return False
    connection.step("copying the bundle")
    output(f"copying {task.bundle.name}, {in_megabytes(task.bytes)}")
    start = noted = time.monotonic()
    sent = 0
    with suppress(BrokenPipeError), task.bundle.open("rb") as file:
        while chunk := file.read(min(CHUNK, task.bytes - sent)):
            connection.send(chunk)
            sent += len(chunk)
            if time.monotonic() - noted >= COPY_NOTE_SECONDS:
                noted = time.monotonic()
                output(f"copied {in_megabytes(sent)} of {in_megabytes(task.bytes)}")
        if sent != task.bytes:
            raise InputError(f"{task.bundle}: it was changed while it was copied: run the same command again")
    connection.step("unpacking the bundle")
    connection.expect("copied")
    output(f"copied, checked and unpacked in {time.monotonic() - start:.1f} s")
    return True


def _run(task: Step, connection: Connection, output: LineSink) -> tuple[bytes, int]:
    """Wait for run.sh, and return its report and its exit status, 0 or 1."""
    connection.step("preparing the run")
    connection.expect("run")
    connection.step("run.sh ran")
    kind, value = connection.expect("report", "ended", output=output)
    reason = connection.last_line
    content = None
    if kind == "report":
        connection.step("fetching the report")
        if int(value) > MAX_REPORT_BYTES:
            raise SetupError(f"{task.host}: its report has {int(value):,} bytes, which cannot be one")
        content = connection.read(int(value))
        _, value = connection.expect("ended")
    if content is None or value not in ("0", "1"):
        raise SetupError(f"{task.host}: run.sh ended there with status {value}" + (f": {reason}" if reason else ""))
    return content, int(value)


def _install_service(task: Step, connection: Connection, output: LineSink) -> BoardService:
    """Let the board set up the service of the bundle, and start it."""
    assert task.manifest.service is not None
    connection.step("setting up the service")
    lines: list[str] = []

    def note(line: str) -> None:
        lines.append(line)
        output(line)

    with suppress(BrokenPipeError):  # then `expect` tells why
        connection.send(b"service\n")
    connection.expect("installing")
    _, status = connection.expect("service", output=note)
    return BoardService(task.manifest.service, _STATES.get(status, "not set up"), tuple(lines))


def _read_report(content: bytes, status: int, task: Step) -> dict[str, Any]:
    """Read a report and check that it belongs to this bundle and agrees with run.sh's exit status."""
    host = task.host
    result = parse_report(content, host)
    if result["passed"] != (status == 0):
        raise SetupError(f"{host}: its report and the status {status} of run.sh contradict each other")
    if result.get("manifest_sha256") != task.manifest.sha256:
        raise SetupError(f"{host}: its report is not for this bundle, but for the model {result.get('model')!r}")
    return result


def _reported(report: dict[str, Any], name: str, default: int, host: str) -> int:
    """A number by which the board measured; what it does not say is the default of run.sh.

    Raises:
        SetupError: it is no such number.
    """
    profile = report.get("profile")
    value = profile.get(name, default) if isinstance(profile, dict) else default
    if type(value) is not int or not 1 <= value <= MAX_REPORTED:
        raise SetupError(
            f"{host}: its report has the {name} {value!r}, which must be a whole number from 1 to {MAX_REPORTED:,}: "
            "make the bundle anew with this bnn-deploy"
        )
    return value


def _profile_here(bundle: Path, manifest: Manifest, threads: int, runs: int) -> ProfileReport:
    """Measure the bundle's model, and its float model if it has one, on this machine."""
    with temporary_folder() as folder:
        models = [folder / name for name in (MODEL, FLOAT_MODEL) if name in manifest.files]
        for model in models:
            model.write_bytes(read_member(bundle, model.name))
        # More threads than this machine takes may suit the board: the table has both numbers.
        return profile(*models, threads=min(threads, most_threads()), runs=runs)
