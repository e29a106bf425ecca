"""A real OpenSSH server on loopback that plays a board: its own port, keys, configuration and home directory.

It needs no rights and touches nobody's ~/.ssh: keys, known hosts and the client's configuration are in one temporary
folder, and `client` is a folder with an `ssh` that uses that configuration, to be put first in PATH.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HOST = "board"
"""The host's name in the client's configuration."""

PACKAGES = "sudo apt install openssh-server openssh-client"


def find(program: str) -> str:
    """Path of a program of OpenSSH; sshd is in a folder that is not in every user's PATH."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise RuntimeError(f"{program} is missing, and the tests of deploy need it: {PACKAGES}")
    return path


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait until a condition holds, and fail loudly if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not after {seconds} s: {what}"
        time.sleep(0.02)


def processes() -> dict[int, tuple[int, str]]:
    """All processes: id -> (parent's id, command line). Without those that have ended and are not yet reaped."""
    result = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (OSError, ValueError):
            continue
        if state != "Z":
            result[int(folder.name)] = (int(parent), command)
    return result


class SshServer:
    """The server, and the state of its board and its laptop that a test changes.

    Attributes:
        home: the board's home directory.
        tools: folder that comes first in the board's PATH.
        client: folder with the laptop's `ssh`, to be put first in PATH.
        config: the laptop's ssh configuration, which knows HOST.
        calls: file to which the laptop's `ssh` appends a line for each start.
        port: on 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home of the board"
        self.tools = folder / "tools"
        self.client = folder / "client"
        self.config = folder / "ssh_config"
        self.calls = folder / "calls"
        for path in (self.home, self.tools, self.client):
            path.mkdir()
        for name in ("host_key", "user_key", "other_key"):
            self.make_key(name)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        ssh = self.client / "ssh"
        # "-F" would replace the user's file; the tests' file is the user's here.
        ssh.write_text(f'#!/bin/sh\necho "$@" >>"{self.calls}"\nexec {find("ssh")} -F "{self.config}" "$@"\n')
        ssh.chmod(0o755)
        self.prelude("")
        self._write_board()
        self.port = self._start()
        self.write_config()
        self.know_host("host_key")

    def make_key(self, name: str) -> None:
        """Make a key pair in the folder."""
        command = [find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(command, check=True)

    def write_config(self, **options: str) -> None:
        """Write the laptop's ssh configuration; `options` override the defaults."""
        usual = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "IdentityFile": f'"{self.folder / "user_key"}"',
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f'"{self.folder / "known_hosts"}"',
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",  # the tests have no terminal to be asked on
        }
        lines = "".join(f"  {key} {value}\n" for key, value in {**usual, **options}.items())
        self.config.write_text(f"Host {HOST}\n{lines}")

    def know_host(self, key: str | None) -> None:
        """Write the laptop's known_hosts, with this key for the server or without any."""
        known = "" if key is None else f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}"
        (self.folder / "known_hosts").write_text(known)

    def prelude(self, text: str) -> None:
        """Let the board run these lines of sh before each command."""
        (self.folder / "prelude").write_text(text)

    def tool(self, name: str, script: str) -> None:
        """Install a program on the board, which hides the system's program of that name."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def only_tools_but(self, *names: str) -> None:
        """Restrict the board to the system programs that deploying uses, except `names`."""
        for name in sorted({*BOARD_TOOLS} - {*names}):
            path = sys.executable if name == "python3" else shutil.which(name)
            if path is not None and not (self.tools / name).exists():
                self.tool(name, f'exec "{path}" "$@"')
        self.prelude(f'PATH="{self.tools}"\n')

    def reset(self) -> None:
        """An empty board with the system's programs, and a laptop that knows it."""
        for folder in (self.home, self.tools):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.prelude("")
        self.write_config()
        self.know_host("host_key")
        self.calls.unlink(missing_ok=True)

    def tree(self) -> list[str]:
        """All files and folders in the board's home directory."""
        found = []
        for folder, folders, files in os.walk(self.home):  # tolerates a folder that disappears meanwhile
            found += [str(Path(folder, name).relative_to(self.home)) for name in (*folders, *files)]
        return sorted(found)

    def sessions(self) -> list[int]:
        """The processes of open connections: all descendants of the server, parents before children."""
        running = processes()
        found = [self._sshd.pid]
        for process in found:
            found += [child for child, (parent, _) in running.items() if parent == process]
        return found[1:]

    def cut(self) -> None:
        """Break all connections like a dead network or server: kill their sshd processes without a goodbye."""
        running = processes()
        for process in self.sessions():
            if running.get(process, (0, ""))[1].startswith("sshd"):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def left_over(self) -> list[str]:
        """Processes left by deploy: clients of this server, connections, and processes in the board's home."""
        found = []
        for process, (_, command) in processes().items():
            try:
                where = str(Path(f"/proc/{process}/cwd").readlink())
            except OSError:
                where = ""
            if process not in (os.getpid(), self._sshd.pid) and (
                str(self.folder) in command or where.startswith(str(self.home)) or process in self.sessions()
            ):
                found.append(f"{process}: {command}")
        return found

    def stop(self) -> None:
        """End the server and all connections."""
        self.cut()
        self._sshd.terminate()
        self._sshd.wait()

    def _write_board(self) -> None:
        """Write the command that sshd runs for a connection: the board's environment, then the requested command."""
        (self.folder / "board.sh").write_text(
            f'HOME="{self.home}"\nPATH="{self.tools}:/usr/local/bin:/usr/bin:/bin"\nexport HOME PATH\n'
            f'cd "$HOME"\n. "{self.folder / "prelude"}"\n'
            'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )

    def _start(self) -> int:
        """Start sshd on a free port, and return the port."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation directory
        for _ in range(5):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port: int = free.getsockname()[1]
            config = self.folder / "sshd_config"
            config.write_text(
                f"ListenAddress 127.0.0.1:{port}\n"
                f'HostKey "{self.folder / "host_key"}"\n'
                f'AuthorizedKeysFile "{self.folder / "authorized_keys"}"\n'
                f'ForceCommand exec /bin/sh "{self.folder / "board.sh"}"\n'
                "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
                "PermitRootLogin prohibit-password\nMaxStartups 100\n"
            )
            log = (self.folder / "sshd.log").open("ab")
            with log:
                self._sshd = subprocess.Popen([find("sshd"), "-D", "-e", "-f", str(config)], stderr=log)
            if self._answers(port):
                return port
        raise RuntimeError(f"sshd does not start: {(self.folder / 'sshd.log').read_text()}")

    def _answers(self, port: int) -> bool:
        """Whether our sshd starts to listen; it exits if another process took the port meanwhile."""
        for _ in range(250):
            if self._sshd.poll() is not None:
                return False
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    return connection.recv(4) == b"SSH-"
            except OSError:
                time.sleep(0.02)
        return False


BOARD_TOOLS = (
    *(
        "cat",
        "cut",
        "dd",
        "df",
        "dirname",
        "flock",
        "getconf",
        "grep",
        "gzip",
        "head",
        "mkdir",
        "mv",
        "nproc",
        "printf",
    ),
    *("python3", "rm", "rmdir", "sed", "sh", "sha256sum", "sleep", "tail", "tar", "tr", "uname", "wc"),
)
