"""Deploy a bundle to a board through the user's own `ssh`: look at the board, copy, run, fetch the report.

Everything goes through one connection, that is, one `ssh` process: it asks for passwords, passphrases and host keys
itself, with the user's keys and configuration, once. It runs deploy.sh on the board, which tells us in lines with
a random token how far it is; all other lines are what run.sh prints. The board needs a POSIX shell for that,
and what `problems` checks before anything is copied. When the connection breaks, the script on the board notices and
removes what is not complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

from bnn_deploy.bundle import FLOAT, FOLDER, MODEL, Manifest, check_bundle, read_member
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.files import write_file
from bnn_deploy.profiling import ProfileReport, profile

REPORT_FORMAT = 1
"""Version of report.json that this version reads."""

MINIMUM_PYTHON = (3, 11)

VENV_BYTES = 300_000_000
"""Disk for the virtual environment: 200 MB on x86-64 with onnxruntime 1.31, 280 MB with 1.19, which needs sympy."""

MINIMUM_MEMORY_BYTES = 200_000_000
"""Free memory and swap for Python with onnxruntime, besides the model: about 100 MB, and pip needs more than that."""

MAX_REPORT_BYTES = 16 << 20

SSH_DEFAULTS = (
    *("-o", "ConnectTimeout=15"),
    # A connection that went silent is given up after 45 s.
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"),
    # A user's master connection is used if there is one; none is started, because it would outlive us.
    *("-o", "ControlMaster=no"),
    *("-o", "ClearAllForwardings=yes"),
)
"""Stand after the user's own options: of each option, ssh takes the first value."""

SSH_FAILED = 255
"""ssh's own exit code where there is no connection, or no longer one."""

LOCK_SECONDS = 20
"""How long to wait for another deploy into the same directory: one that was interrupted first cleans up."""

COPY_NOTE_SECONDS = 10
"""How often a slow copy says how far it is."""

_CHUNK = 1 << 16

Output = Callable[[str], None]


@dataclass(frozen=True)
class Board:
    """What a board says about itself, through POSIX tools: Python need not be there. None: it does not say.

    Attributes:
        system: `uname -s`.
        machine: `uname -m`, the architecture of the kernel.
        bits: of the C library, 32 or 64: a 64-bit kernel can have 32-bit programs.
        os: name and version of the distribution.
        glibc: version of the C library; None if it is another one.
        python: version of python3; None if there is none that starts.
        python_bits: 32 or 64.
        venv: whether python3 has the modules venv and ensurepip.
        model: the board's name in its device tree.
        cpus: that this user may use.
        memory_bytes: main memory.
        available_bytes: of it free for programs, and free swap.
        directory: absolute path of the folder for bundles.
        parent: the folder itself, or the nearest one above it that exists.
        disk_free_bytes: free disk in `parent`, for this user.
        access: "yes" if this user may write into `parent`, "no", or "file" if it is no directory.
        installed: "yes" if this bundle is there with a virtual environment, "copied" if it is there without one, "no".
        missing_tools: programs that deploying needs and the board lacks.
    """

    system: str
    machine: str
    bits: int | None
    os: str | None
    glibc: tuple[int, int] | None
    python: tuple[int, ...] | None
    python_bits: int | None
    venv: bool
    model: str | None
    cpus: int | None
    memory_bytes: int | None
    available_bytes: int | None
    directory: str
    parent: str
    disk_free_bytes: int | None
    access: str
    installed: str
    missing_tools: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps; versions as text."""
        result = asdict(self)
        for name in ("glibc", "python"):
            result[name] = _version(result[name])
        return result


@dataclass(frozen=True)
class Look:
    """What `look` found: a board, and what a bundle misses on it.

    Attributes:
        host: as it was given.
        bundle: the file.
        manifest: what is in it.
        board: the facts.
        folder: absolute path of the bundle's folder on the board.
        bytes: size of the archive.
        needed_bytes: disk that is needed on the board.
        problems: what is missing, each with what to do; empty if the bundle can be deployed.
    """

    host: str
    bundle: str
    manifest: Manifest
    board: Board
    folder: str
    bytes: int
    needed_bytes: int
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps."""
        return {
            "host": self.host,
            "bundle": self.bundle,
            "target": self.manifest.target,
            "folder": self.folder,
            "bytes": self.bytes,
            "needed_bytes": self.needed_bytes,
            "offline": self.manifest.offline,
            "board": self.board.to_json(),
            "problems": list(self.problems),
        }


@dataclass(frozen=True)
class Deployment:
    """The result of `deploy`.

    Attributes:
        look: what was found before.
        copied: False if the complete bundle was on the board already.
        report: report.json of the board, as its version of bnn-deploy wrote it.
        report_file: where it was saved.
        laptop: this machine's profile of the same model with the same threads and runs; None if the board's check
            failed.
    """

    look: Look
    copied: bool
    report: dict[str, Any]
    report_file: str
    laptop: ProfileReport | None

    @property
    def passed(self) -> bool:
        """Whether the board computes what the machine that made the bundle computed."""
        return bool(self.report["passed"])

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps."""
        return {
            **self.look.to_json(),
            "copied": self.copied,
            "passed": self.passed,
            "report_file": self.report_file,
            "report": self.report,
            "laptop": None if self.laptop is None else self.laptop.to_json(),
        }


def look(
    host: str, bundle: str | os.PathLike[str], *, directory: str = "bnn-deploy", ssh_options: Sequence[str] = ()
) -> Look:
    """Look at a board and at what a bundle misses there, and change nothing.

    Args:
        host: [user@]name, as ssh takes it.
        bundle: the .tar.gz file.
        directory: folder on the board that bundles go to, relative to the home directory there; ~/ stands for that.
        ssh_options: KEY=VALUE, as ssh takes them after -o.

    Raises:
        InputError: the bundle was changed or is none; a name cannot be used.
        SetupError: there is no connection.
    """
    task = _Task(host, Path(bundle), directory, ssh_options, "")
    with _Connection(task) as connection:
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
    output: Output = lambda line: None,
) -> Deployment:
    """Copy a bundle to a board, run it there, fetch its report, and measure the model on this machine as well.

    It can be interrupted and repeated at any time: a bundle gets its name on the board when it is complete, and one
    that is there is not copied again.

    Args:
        host: [user@]name, as ssh takes it.
        bundle: the .tar.gz file.
        directory: folder on the board that bundles go to, relative to the home directory there; ~/ stands for that.
        threads: intra-op threads of the measurement; None leaves the default of run.sh.
        runs: timed runs of it; None likewise.
        ssh_options: KEY=VALUE, as ssh takes them after -o.
        report: file for the board's report; None for one next to the bundle, see `report_path`.
        output: called with each line that run.sh prints, and with each step.

    Raises:
        InputError: the bundle was changed or is none; a name cannot be used.
        SetupError: no connection, or it was lost; the board lacks something; run.sh failed there. No report is written.
    """
    bundle = Path(bundle)
    report_file = report_path(bundle) if report is None else Path(report)
    if not report_file.absolute().parent.is_dir():
        raise InputError(f"{report_file}: its folder does not exist")
    options = [f"--{name} {value:d}" for name, value in (("threads", threads), ("runs", runs)) if value is not None]
    task = _Task(host, bundle, directory, ssh_options, " ".join(options))
    output(f"connecting to {host}")
    with _Connection(task) as connection:
        found = _look(task, connection)
        if found.problems:
            numbered = [f"({i}) {text}" for i, text in enumerate(found.problems, 1)]
            listed = "; ".join(numbered if len(numbered) > 1 else found.problems)
            raise SetupError(f"{host} cannot run {bundle.name}: {listed}")
        copied = _copy(task, connection, found, output)
        output(f"running {found.folder}/run.sh on {host}")
        content, status = _run(task, connection, output)
    result = _read_report(content, status, task)
    write_file(report_file, content)
    laptop = None
    if result["passed"]:
        measured = result.get("profile") or {}
        output("measuring the same model on this machine")
        laptop = _profile_here(bundle, found.manifest, int(measured.get("threads", 1)), int(measured.get("runs", 50)))
    return Deployment(found, copied, result, str(report_file), laptop)


def report_path(bundle: Path) -> Path:
    """Where the report of a bundle is saved: x.tar.gz -> x.report.json."""
    return bundle.with_name(re.sub(r"\.(tar\.gz|tgz)$", "", bundle.name) + ".report.json")


def problems(board: Board, manifest: Manifest, needed_bytes: int) -> tuple[str, ...]:
    """What a bundle misses on a board, each with what to do.

    Args:
        board: the facts.
        manifest: of the bundle.
        needed_bytes: free disk that it takes.
    """
    result = []
    if (board.system, board.machine) != ("Linux", manifest.target):
        remedy = f"make one for it with 'bnn-deploy bundle --target {board.machine}'"
        if board.system != "Linux" or board.machine not in ("x86_64", "aarch64"):
            remedy = "install a 64-bit system, such as Raspberry Pi OS (64-bit)"
        result.append(
            f"the bundle is for Linux {manifest.target}, the board is {board.system} {board.machine}: {remedy}"
        )
    elif board.bits == 32 or board.python_bits == 32:
        what = "system" if board.bits == 32 else "python3"
        result.append(
            f"its {what} is 32-bit on a 64-bit kernel: install a 64-bit one, such as Raspberry Pi OS (64-bit)"
        )
    wanted = _needed_glibc(manifest)
    if board.glibc is None:
        result.append("its C library is not glibc: install a system with glibc, such as Debian or Raspberry Pi OS")
    elif board.glibc < wanted:
        have, want = _version(board.glibc), _version(wanted)
        result.append(f"its glibc {have} is older than {want}: upgrade the system, or build the wheel for an older one")
    if board.python is None:
        result.append("no python3: sudo apt install python3 python3-venv")
    elif board.python < MINIMUM_PYTHON:
        have, want = _version(board.python), _version(MINIMUM_PYTHON)
        result.append(f"its Python {have} is older than {want}: upgrade the system (Raspberry Pi OS bookworm has 3.11)")
    elif unfit := _unfit_packages(manifest, board.python):
        have = _version(board.python[:2])
        result.append(
            f"the bundle has no wheel of {', '.join(unfit)} for its Python {have}: "
            f"make it with those that 'pip download --python-version {have}' fetches"
        )
    elif not board.venv:
        result.append("its Python has no venv module: sudo apt install python3-venv")
    if board.missing_tools:
        packages = {"sha256sum": "coreutils", "head": "coreutils", "flock": "util-linux"}
        install = " ".join(sorted({packages.get(tool, tool) for tool in board.missing_tools}))
        result.append(f"no {', '.join(board.missing_tools)}: sudo apt install {install}")
    if board.access == "file":
        result.append(f"{board.parent} is not a directory: choose another --directory")
    elif board.access != "yes":
        result.append(f"{board.parent} is not writable for this user: choose another --directory")
    if board.disk_free_bytes is not None and board.disk_free_bytes < needed_bytes:
        free, need = _megabytes(board.disk_free_bytes), _megabytes(needed_bytes)
        result.append(f"{board.parent} has {free} of free disk and {need} are needed: free some, or choose --directory")
    memory = MINIMUM_MEMORY_BYTES + 2 * manifest.files[MODEL].bytes
    if board.available_bytes is not None and board.available_bytes < memory:
        free, need = _megabytes(board.available_bytes), _megabytes(memory)
        result.append(f"{free} of memory and swap are free and {need} are needed: end programs, or add swap")
    return tuple(result)


def _needed_glibc(manifest: Manifest) -> tuple[int, int]:
    """The newest glibc that a wheel of the bundle asks for; a wheel that names several is content with the oldest."""
    needed = [(0, 0)]
    for name in manifest.files:
        tags = re.findall(r"manylinux_(\d+)_(\d+)_", name)
        if tags:
            needed.append(min((int(major), int(minor)) for major, minor in tags))
    return max(needed)


def _unfit_packages(manifest: Manifest, python: Sequence[int]) -> list[str]:
    """The packages that the board must take from the bundle and that are there for other versions of Python only."""
    fits: dict[str, bool] = {}
    for name in manifest.files:
        if manifest.offline and name.endswith(".whl"):
            package, _, tags, abi, _ = re.sub(r"^wheels/|\.whl$", "", name).rsplit("-", 4)
            fits[package] = fits.get(package, False) or _fits_python(tags, abi, python)
    return [package for package, fit in fits.items() if not fit]


def _fits_python(tags: str, abi: str, python: Sequence[int]) -> bool:
    """Whether a wheel with these tags ("cp311", "py2.py3", "cp38") and this ABI ("none", "cp311", "abi3") fits."""
    for tag in tags.split("."):
        found = re.fullmatch(r"(py|cp)(\d)(\d*)", tag)
        if found and int(found[2]) == python[0]:
            minor = int(found[3] or 0)
            if minor == python[1] or (minor < python[1] and (found[1] == "py" or abi == "abi3")):
                return True
    return False


def _version(parts: Sequence[int] | None) -> str | None:
    return None if parts is None else ".".join(map(str, parts))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.{1 if count < 1e7 else 0}f} MB"


class _Task:
    """What is to be done, checked before there is a connection.

    Attributes:
        host: [user@]name.
        bundle: the archive.
        manifest: what is in it.
        bytes: its size.
        command: the ssh command.
        script: deploy.sh with its parameters.
        token: begins the lines that deploy.sh prints itself.
        name: the bundle's folder in the board's directory.
    """

    def __init__(self, host: str, bundle: Path, directory: str, ssh_options: Sequence[str], run_options: str) -> None:
        if not host or host.startswith("-") or not host.isprintable() or any(c.isspace() for c in host):
            raise InputError(f"{host!r} is not a host: give it as [USER@]HOST")
        if not directory or not directory.isprintable():
            raise InputError(f"{directory!r} is not a directory name")
        if directory.startswith("~") and directory != "~" and not directory.startswith("~/"):
            raise InputError(
                f"{directory}: give the directory relative to the home directory on the board, or absolute"
            )
        for option in ssh_options:
            if "=" not in option:
                raise InputError(f"{option!r} is not an option of ssh: give it as KEY=VALUE, like Port=2222")
        self.host = host
        self.bundle = bundle
        # First the checksum of what will be sent, then the check: the board refuses a file that is changed after it.
        self.bytes, content = _fingerprint(bundle)
        self.manifest = check_bundle(bundle)
        self.token = f"@{secrets.token_hex(8)}"
        # A name that is safe in any shell, for the archive may come from anywhere.
        stem = re.sub(r"[^A-Za-z0-9._]", "_", Path(self.manifest.model).stem).lstrip(".")[:64]
        self.name = f"{stem or 'model'}-{self.manifest.sha256[:12]}"
        parameters = {
            "token": self.token,
            "dir": directory[1:].lstrip("/") or "." if directory.startswith("~") else directory,
            "name": self.name,
            "folder": FOLDER,
            "bytes": str(self.bytes),
            "sha256": content,
            "options": run_options,
            "patience": str(LOCK_SECONDS),
        }
        text = (resources.files("bnn_deploy") / "board_scripts" / "deploy.sh").read_text()
        assignments = [f"{name}={shlex.quote(value)}\n" for name, value in parameters.items()]
        self.script = ("".join(assignments) + text).encode()
        # Whatever the login shell is, it sees only this. dd reads single bytes, so what follows is left in the pipe.
        remote = f"""exec sh -c 'eval "$(dd bs=1 count={len(self.script)} 2>/dev/null)"'"""
        options = [part for option in ssh_options for part in ("-o", option)]
        self.command = ["ssh", "-T", *options, *SSH_DEFAULTS, "--", host, remote]


class _Connection:
    """One ssh process that runs deploy.sh on the board."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._step = ""
        self._errors: deque[str] = deque(maxlen=100)
        self._last_line = ""

    def __enter__(self) -> _Connection:
        pipe = subprocess.PIPE
        try:
            self._ssh = subprocess.Popen(self._task.command, stdin=pipe, stdout=pipe, stderr=pipe)
        except FileNotFoundError:
            raise SetupError("ssh is not on this machine: sudo apt install openssh-client") from None
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection; the end of its input makes the script on the board stop and clean up."""
        assert self._ssh.stdin is not None
        assert self._ssh.stdout is not None
        try:
            self._ssh.stdin.close()
            # A board that still prints must not block, and need not be read any more.
            self._ssh.stdout.close()
            self._ssh.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._ssh.terminate()
        finally:
            # Only a second Ctrl-C comes here with ssh still running.
            if self._ssh.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    self._ssh.wait(timeout=2)
                self._ssh.kill()
                self._ssh.wait()

    def step(self, text: str) -> None:
        """Note what is being done, for the message if the connection is lost."""
        self._step = text

    def send(self, data: bytes) -> None:
        """Write to the script.

        Raises:
            BrokenPipeError: it has ended, and `receive` tells why.
        """
        assert self._ssh.stdin is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._ssh.stdin.fileno(), view) :]

    def receive(self, output: Output | None = None) -> tuple[str, str]:
        """The next line that deploy.sh itself prints: its first word and the rest.

        Args:
            output: called with each line before it, which is from run.sh or (None) from the login shell.

        Raises:
            SetupError: the script reports an error, or ended, or the connection did.
        """
        assert self._ssh.stdout is not None
        mark = self._task.token + " "
        while line := self._ssh.stdout.readline(_CHUNK).decode(errors="replace"):
            # Where a program did not end its last line, ours stands behind it.
            line, found, ours = line.rstrip("\r\n").partition(mark)
            if line.strip():
                self._last_line = line.strip()
            if output is not None and (line or not found):
                output(line)
            if found:
                kind, _, rest = ours.partition(" ")
                if kind == "error":
                    raise SetupError(f"{self._task.host}: {rest}")
                return kind, rest
        raise self._ended()

    def expect(self, *kinds: str, output: Output | None = None) -> tuple[str, str]:
        """`receive`, and it must be one of these."""
        kind, rest = self.receive(output)
        if kind not in kinds:
            raise SetupError(f"{self._task.host}: the board said {kind!r} when {' or '.join(kinds)} was expected")
        return kind, rest

    def read(self, count: int) -> bytes:
        """Exactly so many bytes that the script prints."""
        assert self._ssh.stdout is not None
        data = self._ssh.stdout.read(count)
        if len(data) < count:
            raise self._ended()
        return data

    @property
    def last_line(self) -> str:
        """The last line that was not deploy.sh's own."""
        return self._last_line

    def _ended(self) -> SetupError:
        """What to say when the script's output ended too early."""
        code = self._ssh.wait()
        self._reader.join(timeout=2)  # a process that ssh started may hold the pipe open
        host = self._task.host
        said = next((line for line in reversed(self._errors) if line), "")
        if 0 <= code != SSH_FAILED:
            said = self._last_line or said
            return SetupError(f"{host}: its shell ended with status {code}" + (f": {said}" if said else ""))
        quoted = f"ssh says '{said}'" if said else "ssh failed"
        if self._step:
            return SetupError(
                f"{host}: the connection was lost while {self._step} ({quoted}): nothing half-installed stays there; "
                "run the same command again"
            )
        return SetupError(f"{host}: no connection, {quoted}: {_advice(' '.join(self._errors), host)}")

    def _read_errors(self) -> None:
        assert self._ssh.stderr is not None
        with self._ssh.stderr as stream:
            for line in stream:
                self._errors.append(line.decode(errors="replace").strip())


def _advice(errors: str, host: str) -> str:
    """What to do about what ssh says when it cannot connect."""
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in errors:
        known = re.search(r'-R "?([^\s"]+)', errors)  # Debian's ssh says under which name it has the old one
        name = known[1] if known else host.rpartition("@")[2]
        return (
            "the host key is not the one that this machine knows: if the board was installed anew, remove the old key "
            f"with ssh-keygen -R {shlex.quote(name)}; if not, this may be another machine"
        )
    if "Host key verification failed" in errors:
        return f"run 'ssh {host}' once, to see and accept its host key"
    if "Permission denied" in errors:
        return f"put your key on the board with 'ssh-copy-id {host}'"
    if "Could not resolve" in errors:
        return "check the name, or give the address"
    if any(text in errors for text in ("refused", "timed out", "No route", "unreachable")):
        return "is the board on, in this network, and its SSH server enabled?"
    return f"'ssh {host}' must work first"


def _look(task: _Task, connection: _Connection) -> Look:
    with suppress(BrokenPipeError):  # then `expect` tells why
        connection.send(task.script)
    connection.expect("begin")
    connection.step("looking at the board")
    facts: dict[str, str] = {}
    while (answer := connection.expect("fact", "ready"))[0] == "fact":
        name, _, value = answer[1].partition(" ")
        facts[name] = value.strip()
    try:
        board = _board(facts)
    except (KeyError, ValueError) as error:
        raise SetupError(f"{task.host}: what it says about itself cannot be read: {error!r}") from None
    # The archive and what is unpacked from it are there at the same time.
    needed = {
        "no": task.bytes + task.manifest.unpacked_bytes + VENV_BYTES,
        "copied": VENV_BYTES,
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
        problems(board, task.manifest, needed),
    )


def _board(facts: dict[str, str]) -> Board:
    """Read the facts that deploy.sh prints."""
    libc = re.fullmatch(r"glibc (\d+)\.(\d+).*", facts["libc"])
    python = re.fullmatch(r"([\d.]+) (\d+) (yes|no)", facts["python"])
    memory = {name: int(value) * 1024 for name, value in re.findall(r"(\w+): +(\d+) kB", facts["memory"])}
    # `df -P`: file system, 1024-byte blocks, used, available (negative where root's reserve is in use), capacity.
    disk = re.search(r"\s\d+\s+-?\d+\s+(-?\d+)\s+\d+%\s", facts["disk"])
    if facts["installed"] not in ("yes", "copied", "no"):
        raise ValueError(facts["installed"])
    return Board(
        system=facts["system"],
        machine=facts["machine"],
        bits=int(facts["bits"]) if facts["bits"].isdecimal() else None,
        os=facts["os"] or None,
        glibc=(int(libc[1]), int(libc[2])) if libc else None,
        python=tuple(int(part) for part in python[1].split(".")) if python else None,
        python_bits=int(python[2]) if python else None,
        venv=python is not None and python[3] == "yes",
        model=facts["model"] or None,
        cpus=int(facts["cpus"]) if facts["cpus"].isdecimal() else None,
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory["MemAvailable"] + memory.get("SwapFree", 0) if "MemAvailable" in memory else None,
        directory=facts["directory"],
        parent=facts["parent"],
        disk_free_bytes=max(0, int(disk[1])) * 1024 if disk else None,
        access=facts["access"],
        installed=facts["installed"],
        missing_tools=tuple(facts["missing"].split()),
    )


def _copy(task: _Task, connection: _Connection, found: Look, output: Output) -> bool:
    """Send the archive if the board asks for it; whether it did."""
    connection.step("preparing the copy")
    with suppress(BrokenPipeError):  # then `expect` tells why
        connection.send(b"go\n")
    while (answer := connection.expect("busy", "have", "send")[0]) == "busy":
        output(f"another deploy is at work in {found.board.directory}: waiting {LOCK_SECONDS} s for its end")
    if answer == "have":
        output("the complete bundle is on the board already")
        return False
    connection.step("copying the bundle")
    output(f"copying {task.bundle.name}, {_megabytes(task.bytes)}")
    start = noted = time.monotonic()
    sent = 0
    with suppress(BrokenPipeError), task.bundle.open("rb") as file:
        while chunk := file.read(min(_CHUNK, task.bytes - sent)):
            connection.send(chunk)
            sent += len(chunk)
            if time.monotonic() - noted >= COPY_NOTE_SECONDS:
                noted = time.monotonic()
                output(f"copied {_megabytes(sent)} of {_megabytes(task.bytes)}")
        if sent != task.bytes:
            raise InputError(f"{task.bundle}: it was changed while it was copied: run the same command again")
    connection.step("unpacking the bundle")
    connection.expect("copied")
    output(f"copied, checked and unpacked in {time.monotonic() - start:.1f} s")
    return True


def _run(task: _Task, connection: _Connection, output: Output) -> tuple[bytes, int]:
    """Let run.sh run, and return the report that it leaves and its exit status, 0 or 1."""
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


def _read_report(content: bytes, status: int, task: _Task) -> dict[str, Any]:
    """Parse a report and check that it is one of this bundle and says what run.sh's exit status says."""
    host = task.host
    try:
        result = json.loads(content)
    except ValueError as error:
        raise SetupError(f"{host}: its report is not JSON: {error}") from None
    if not isinstance(result, dict) or not isinstance(result.get("passed"), bool):
        raise SetupError(f"{host}: its report does not say whether the check passed")
    if result.get("format") != REPORT_FORMAT:
        raise SetupError(f"{host}: its report has format {result.get('format')!r}, this version reads {REPORT_FORMAT}")
    if result["passed"] != (status == 0):
        raise SetupError(f"{host}: its report and the status {status} of run.sh contradict each other")
    if result.get("manifest_sha256") != task.manifest.sha256:
        raise SetupError(f"{host}: its report is not for this bundle, but for the model {result.get('model')!r}")
    return result


def _profile_here(bundle: Path, manifest: Manifest, threads: int, runs: int) -> ProfileReport:
    """Measure the bundle's model, and the float one if there is one, on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        models = [Path(folder) / name for name in (MODEL, FLOAT) if name in manifest.files]
        for model in models:
            model.write_bytes(read_member(bundle, model.name))
        return profile(*models, threads=threads, runs=runs)


def _fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
