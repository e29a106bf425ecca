"""Stand-ins for run.sh, the place of a bundle on the board, and the command `deploy`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from bnn_deploy import cli
from bnn_deploy.board.archive import check_bundle
from support.ssh_server import HOST, SshServer

MACHINE = os.uname().machine
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]

REPORT = {
    "format": "bnn-deploy board report",
    "version": 1,
    "passed": True,
    "model": "small net.onnx",
    "target": MACHINE,
    "manifest_sha256": "MANIFEST",
    "golden": {"failures": []},
    "profile": {
        "model": {
            "timing": {"median_ms": 12.5, "p10_ms": 12.25, "p90_ms": 13.0, "samples_per_second": 80.0},
            "memory": {"peak_bytes": 98_000_000},
        },
        "isa": "neon",
        "threads": 1,
        "runs": 2,
        "machine": {"cpu": "Cortex-A72", "cpus": 4, "onnxruntime": "1.27.0"},
        "board": {
            "model": "Raspberry Pi 4 Model B",
            "before": {"temperature_c": 41.2},
            "after": {"temperature_c": 63.4},
        },
        "throttled": [],
    },
}
"""A report that a board could write."""


def write_report(report: object = REPORT) -> str:
    """Lines of sh that write a report like run.sh; MANIFEST in the report becomes the manifest's checksum."""
    checksum = "$(sha256sum manifest.json | cut -c 1-64)"
    return f'printf %s {shlex.quote(json.dumps(report))} | sed "s/MANIFEST/{checksum}/" >report.json\n'


WORKS = f'echo "[1/2] installing" >&2\necho "[2/2] options: $*"\n{write_report()}'
"""A run.sh that succeeds."""

# Like the real run.sh, it creates `venv` and removes it when interrupted; "started" tells the test that it runs.
WAITS = f"""
trap 'rm -rf venv' EXIT
trap 'exit 143' HUP INT TERM PIPE
mkdir -p venv/bin
echo started
while [ ! -e "$HOME/../go" ]; do sleep 0.05; done
{write_report()}
trap - EXIT
"""


_SERVED = """#!/bin/sh
# The environment's Python: of service.sh's own questions, or as the program of the service, which says that it works.
case $2 in
-m) [ ! -e "$HOME/dies" ] || { echo 'error: 0.0.0.0, port 80: Permission denied: give --host and --port'; exit 3; }
    set -- -I -c '
import os, socket, time
address = os.environ["NOTIFY_SOCKET"]
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", "\\0" + address[1:])
time.sleep(600)' ;;
esac
exec PYTHON "$@"
"""

SERVES = f"""{WORKS}
mkdir -p venv/bin
cat >venv/bin/python <<'EOF'
{_SERVED.replace("PYTHON", sys.executable)}EOF
chmod +x venv/bin/python
echo "of this bundle" >venv/complete
"""
"""A run.sh that succeeds, for a bundle with an application: its environment has a Python."""

MakeBundle = Callable[..., Path]


def folder_of(bundle: Path, directory: str = "bnn-deploy") -> str:
    """The folder of a bundle on the board."""
    return f"{directory}/small_net-{check_bundle(bundle).sha256[:12]}"


def installed(bundle: Path, *more: str, directory: str = "bnn-deploy") -> list[str]:
    """`SshServer.tree` with this bundle complete, and `more` in its folder."""
    folder = folder_of(bundle, directory)
    above = ["/".join(folder.split("/")[:i]) for i in range(1, folder.count("/") + 2)]
    manifest = check_bundle(bundle)
    names = ["SHA256SUMS", "manifest.json", "wheels", *manifest.files, *more]
    return sorted([*above, *(f"{folder}/{name}" for name in names)])


def run(*arguments: str | Path) -> Result:
    """Run `bnn-deploy deploy` with these arguments."""
    return CliRunner().invoke(cli.main, ["deploy", *map(str, arguments)], prog_name="bnn-deploy")


def refused(bundle: Path, *options: str, code: int = 3) -> str:
    """The error, in one line, of a deployment that must fail and leave no report."""
    result = run(HOST, bundle, *options)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert not report_of(bundle).exists()
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "internal error" not in last
    return last


def report_of(bundle: Path) -> Path:
    return bundle.with_name(bundle.name.replace(".tar.gz", ".report.json"))


def reported(bundle: Path, report: dict[str, Any] = REPORT) -> dict[str, Any]:
    """The report of a board on which `write_report` ran."""
    return {**report, "manifest_sha256": check_bundle(bundle).sha256}


# --- a lost connection ----------------------------------------------------------------------------


def cut_at(board: SshServer, text: str) -> Callable[[str], None]:
    """An `output` callback that breaks the connection at a line with `text`."""

    def output(line: str) -> None:
        if text in line:
            board.cut()

    return output
