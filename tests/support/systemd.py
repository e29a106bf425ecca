"""A stand-in for a board's systemd: `systemctl --user`, `loginctl` and `journalctl`, which no container runs.

It starts what a unit says, with the notification socket that systemd gives it, and waits for READY=1, as `systemctl
restart` of a unit of Type=notify does. Its state is in files, which tests read and change.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PROGRAM = r"""#!PYTHON -I
import json, os, pathlib, shlex, signal, socket, subprocess, sys, time
state, name, words = pathlib.Path(STATE), os.path.basename(sys.argv[0]), sys.argv[1:]
with (state / "calls").open("a") as calls:
    print(name, *words, file=calls)
home = os.environ["HOME"]
service = next((word for word in words if word.startswith("bnn-deploy-")), "")
pids = state / f"{service}.pid"

def alive():
    if not pids.exists():
        return False
    process = pathlib.Path("/proc", pids.read_text(), "stat")
    return process.exists() and process.read_text().rpartition(")")[2].split()[0] != "Z"

def start():
    if alive():
        os.kill(int(pids.read_text()), signal.SIGKILL)
    unit = pathlib.Path(home, ".config/systemd/user", service + ".service").read_text()
    lines = [line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0] not in "#["]
    entries = {key: value for key, value in lines}
    variable, value = shlex.split(entries["Environment"])[0].split("=", 1)
    options = os.environ.get("OPTIONS_THERE", value).split()  # as `systemctl edit` would set them
    command = [word.replace("%h", home) for word in entries["ExecStart"].split()]
    assert command[-1] == "$" + variable
    said = state / f"{service}.said"
    said.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        address = f"\0bnn-deploy-{os.getpid()}"
        ready.bind(address)
        ready.settimeout(0.05)
        environment = {"HOME": home, "PATH": os.environ["PATH"], "NOTIFY_SOCKET": address.replace("\0", "@")}
        with (state / f"{service}.log").open("a") as log:
            program = subprocess.Popen([*command[:-1], *options], cwd=entries["WorkingDirectory"].replace("%h", home),
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        pids.write_text(str(program.pid))
        (state / f"{service}.started").open("a").write("x")
        keeper = os.fork()
        if not keeper:  # what systemd goes on doing: it listens, and reaps the program
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            for number in range(3, 64):
                if number != ready.fileno():
                    try:
                        os.close(number)
                    except OSError:
                        pass
            while alive():
                try:
                    message = ready.recv(100).decode()
                    with said.open("a") as file:
                        print(message, file=file)
                except TimeoutError:
                    pass
            os._exit(0)
    for _ in range(1200):
        if said.exists() and "READY=1" in said.read_text():
            sys.exit(0)
        if program.poll() is not None:
            sys.exit(1)
        time.sleep(0.05)
    sys.exit(1)

if name == "loginctl":
    if words[0] == "show-user":
        print("yes" if (state / "linger").exists() else "no")
    elif (state / "no linger").exists():
        sys.exit("Could not enable linger: Access denied")
    else:
        (state / "linger").touch()
elif name == "journalctl":
    print(*(state / f"{service}.log").read_text().splitlines()[-10:], sep="\n")
elif "show-environment" in words:
    sys.exit("Failed to connect to bus: No medium found" if (state / "no manager").exists() else 0)
elif "is-active" in words:
    sys.exit(0 if alive() else 3)
elif "restart" in words:
    start()
elif "show" in words:
    print("0" if "NRestarts" in words else "active" if alive() else "activating")
elif "enable" in words and not pathlib.Path(home, ".config/systemd/user", service + ".service").exists():
    sys.exit(f"Failed to enable unit: Unit file {service}.service does not exist.")
"""


class StandIn:
    """The programs, in a folder that comes first in a board's PATH, and what they did.

    Attributes:
        state: folder of its files; `touch` "no manager" or "no linger" there for boards that are so.
    """

    def __init__(self, tools: Path, state: Path) -> None:
        self.state = state
        state.mkdir()
        for name in ("systemctl", "loginctl", "journalctl"):
            program = tools / name
            program.write_text(_PROGRAM.replace("PYTHON", sys.executable).replace("STATE", json.dumps(str(state))))
            program.chmod(0o755)

    def calls(self) -> list[str]:
        """The command lines so far, and begin anew."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def starts(self, service: str) -> int:
        """How often a service was started."""
        path = self.state / f"{service}.started"
        return len(path.read_text()) if path.exists() else 0

    def log(self, service: str) -> list[str]:
        """What a service printed."""
        return (self.state / f"{service}.log").read_text().splitlines()

    def said(self, service: str) -> list[str]:
        """What a service told systemd since its last start."""
        return (self.state / f"{service}.said").read_text().splitlines()

    def stop(self) -> None:
        """End all services."""
        for path in self.state.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
