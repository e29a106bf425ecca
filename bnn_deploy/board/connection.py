"""The connection to a board: one process of the user's own ssh, and the messages of deploy.sh over it."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from types import TracebackType

from bnn_deploy.board.archive import check_bundle
from bnn_deploy.board.manifest import FOLDER
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.files import sha256_of
from bnn_deploy.system import ssh_advice

SSH_DEFAULTS = (
    *("-o", "ConnectTimeout=15"),
    # A connection that went silent is given up after 45 s.
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"),
    # A user's master connection is used if there is one; none is started, because it would outlive this process.
    *("-o", "ControlMaster=no"),
    *("-o", "ClearAllForwardings=yes"),
)
"""They follow the user's own options, because ssh takes the first value of each option."""

SSH_FAILED = 255
"""ssh's own exit code if the connection fails or is lost."""

LOCK_SECONDS = 20
"""Time to wait for another deploy into the same directory: an interrupted one needs time to clean up."""

CHUNK = 1 << 16

LineSink = Callable[[str], None]


class Step:
    """The parameters of one deployment, checked before connecting.

    Attributes:
        host: [user@]name.
        bundle: the archive.
        manifest: the bundle's manifest.
        bytes: size of the archive.
        command: the ssh command.
        script: deploy.sh with its parameters.
        token: random first word of the lines that deploy.sh prints itself: "@0123456789abcdef".
        name: the bundle's folder in the board's directory.
        service: whether the bundle's service shall be set up.
    """

    def __init__(
        self, host: str, bundle: Path, directory: str, ssh_options: Sequence[str], run_options: str, service: bool
    ) -> None:
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
        # Take the checksum before the check: the board then refuses a file that changes after the check.
        self.bytes, content = _fingerprint(bundle)
        self.manifest = check_bundle(bundle)
        if service and self.manifest.service is None:
            raise InputError(f"{bundle}: it has no service to install: make it with 'bnn-deploy bundle --app'")
        self.service = service
        self.token = f"@{secrets.token_hex(8)}"
        self.name = self.manifest.name_on_board
        parameters = {
            "token": self.token,
            "dir": directory[1:].lstrip("/") or "." if directory.startswith("~") else directory,
            "name": self.name,
            "folder": FOLDER,
            "bytes": str(self.bytes),
            "sha256": content,
            "options": run_options,
            "patience": str(LOCK_SECONDS),
            "service": "yes" if service else "",
        }
        text = (resources.files("bnn_deploy") / "board" / "scripts" / "deploy.sh").read_text(encoding="utf-8")
        assignments = [f"{name}={shlex.quote(value)}\n" for name, value in parameters.items()]
        self.script = ("".join(assignments) + text).encode()
        # The login shell, whichever it is, sees only this line. dd reads single bytes and leaves the rest in the pipe.
        remote = f"""exec sh -c 'eval "$(dd bs=1 count={len(self.script)} 2>/dev/null)"'"""
        options = [part for option in ssh_options for part in ("-o", option)]
        self.command = ["ssh", "-T", *options, *SSH_DEFAULTS, "--", host, remote]


class Connection:
    """One ssh process that runs deploy.sh on the board."""

    def __init__(self, task: Step) -> None:
        self._task = task
        self._step = ""
        self._errors: deque[str] = deque(maxlen=100)
        self._last_line = ""

    def __enter__(self) -> Connection:
        pipe = subprocess.PIPE
        try:
            self._ssh = subprocess.Popen(self._task.command, stdin=pipe, stdout=pipe, stderr=pipe)
        except FileNotFoundError:
            raise SetupError(f"ssh is not on this machine: {ssh_advice()}") from None
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
            # A board that still prints must not block ssh: nobody reads its output any more.
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
        """Note the name of the current step, for the message if the connection is lost."""
        self._step = text

    def send(self, data: bytes) -> None:
        """Write to the script.

        Raises:
            BrokenPipeError: the script has ended; `receive` raises the reason.
        """
        assert self._ssh.stdin is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._ssh.stdin.fileno(), view) :]

    def receive(self, output: LineSink | None = None) -> tuple[str, str]:
        """The next line that deploy.sh itself prints: its first word and the rest.

        Args:
            output: called with each line of run.sh before it; None drops the lines, which are then the login shell's.

        Raises:
            SetupError: the script reports an error, or the script or the connection has ended.
        """
        assert self._ssh.stdout is not None
        mark = self._task.token + " "
        while line := self._ssh.stdout.readline(CHUNK).decode(errors="replace"):
            # deploy.sh's line follows a program's last line directly if that lacks its newline.
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

    def expect(self, *kinds: str, output: LineSink | None = None) -> tuple[str, str]:
        """Like `receive`, but the first word must be one of `kinds`."""
        kind, rest = self.receive(output)
        if kind not in kinds:
            raise SetupError(f"{self._task.host}: the board said {kind!r} when {' or '.join(kinds)} was expected")
        return kind, rest

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes of the script's output."""
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
        """The error for a script whose output ended too early."""
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
    """Advice on ssh's messages when it cannot connect."""
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in errors:
        known = re.search(r'-R "?([^\s"]+)', errors)  # Debian's ssh prints the host name of the old key
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


def _fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size, sha256_of(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
