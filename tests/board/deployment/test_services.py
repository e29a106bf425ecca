"""`deploy --install-service`: after the proof alone, and what becomes of a service that does not run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnn_deploy.board.deployment import deploy
from bnn_deploy.errors import SetupError
from support.deployment import (
    SERVES,
    MakeBundle,
    cut_at,
    folder_of,
    refused,
    report_of,
    reported,
    run,
)
from support.schemas import misfits
from support.ssh_server import HOST, SshServer, wait_for
from support.systemd import StandIn

SERVICE = "bnn-deploy-http"


@pytest.fixture
def systemd(board: SshServer) -> Iterator[StandIn]:
    board.tool("sleep", "exec /bin/sleep 0.2")
    board.tool("sudo", "exit 1")
    systemd = StandIn(board.tools, board.tools / "state")
    yield systemd
    systemd.stop()


def test_it_is_set_up_after_the_proof(board: SshServer, systemd: StandIn, make: MakeBundle) -> None:
    bundle = make(SERVES, app="http")
    result = run(HOST, bundle, "--install-service")
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert lines.index("[2/2] options: ") < lines.index(f"starting {SERVICE}") < lines.index(f"{SERVICE} runs")
    assert result.stdout.splitlines()[-2:] == [f"The service {SERVICE}: running.", "PASSED"]
    unit = board.home / ".config/systemd/user" / f"{SERVICE}.service"
    assert unit.read_bytes() == (board.home / folder_of(bundle) / "app.service").read_bytes()
    calls = [call.replace("--user ", "") for call in systemd.calls()]
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    assert calls[1:3] == [f"loginctl enable-linger {user}", "systemctl show-environment"]
    assert calls[3:6] == [
        "systemctl daemon-reload",
        f"systemctl enable --quiet {SERVICE}",
        f"systemctl restart {SERVICE}",
    ]
    # Once more, nothing is copied, and the service goes on.
    document = json.loads(run(HOST, bundle, "--install-service", "--json").stdout)
    assert misfits(document) == []
    output = [f"{SERVICE} runs, and is of this bundle"]
    assert document["service"] == {"name": SERVICE, "state": "running", "output": output}
    assert systemd.starts(SERVICE) == 1
    # Another bundle takes its place.
    other = make(SERVES, app="http", name="other.tar.gz", ballast=999)
    assert run(HOST, other, "--install-service").exit_code == 0
    assert systemd.starts(SERVICE) == 2
    assert (board.home / ".local/share/bnn-deploy/http").resolve() == board.home / folder_of(other)


def test_without_the_option_nothing_of_it_is_done(board: SshServer, systemd: StandIn, make: MakeBundle) -> None:
    bundle = make(SERVES, app="http")
    document = json.loads(run(HOST, bundle, "--json").stdout)
    assert document["service"] is None and document["look"]["service"] is None
    assert systemd.calls() == [] and not (board.home / ".config").exists()


def test_not_after_a_proof_that_failed(board: SshServer, systemd: StandIn, make: MakeBundle) -> None:
    result = run(
        HOST, make(SERVES.replace('"passed": true', '"passed": false') + "exit 1\n", app="http"), "--install-service"
    )
    assert result.exit_code == 1, result.output
    assert result.stdout.splitlines()[-1] == "FAILED"
    assert "service" not in result.stdout and systemd.calls() == []


def test_a_service_that_dies(board: SshServer, systemd: StandIn, make: MakeBundle) -> None:
    """Its last lines are shown; the proof and its report stay."""
    (board.home / "dies").touch()
    bundle = make(SERVES, app="http")
    result = run(HOST, bundle, "--install-service")
    assert result.exit_code == 3, result.output
    lines = result.stderr.splitlines()
    assert "error: 0.0.0.0, port 80: Permission denied: give --host and --port" in lines
    assert lines[-1].startswith(f"error: board: {SERVICE} was set up and does not run, see its last lines above; ")
    assert result.stdout.splitlines()[-2:] == [f"The service {SERVICE}: failed.", "PASSED"]
    assert json.loads(report_of(bundle).read_text()) == reported(bundle)
    result = run(HOST, bundle, "--install-service", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 3 and misfits(document) == []
    assert document["passed"] is True and document["service"]["state"] == "failed"
    # It does not die any more.
    (board.home / "dies").unlink()
    assert run(HOST, bundle, "--install-service").exit_code == 0


def test_a_board_that_cannot_have_it(board: SshServer, systemd: StandIn, make: MakeBundle) -> None:
    """What only the attempt shows leaves the proof as it is."""
    (systemd.state / "no linger").touch()
    bundle = make(SERVES, app="http")
    result = run(HOST, bundle, "--install-service")
    assert result.exit_code == 3, result.output
    assert result.stdout.splitlines()[-2:] == [f"The service {SERVICE}: not set up.", "PASSED"]
    assert result.stderr.splitlines()[-1].startswith(
        f"error: board: {SERVICE} was not set up: it would end with the login"
    )
    assert json.loads(report_of(bundle).read_text())["passed"] is True
    assert not (board.home / ".config").exists()


def test_what_is_known_before(board: SshServer, make: MakeBundle) -> None:
    """A board without systemd, and a bundle without a service, are refused before anything is copied."""
    message = refused(make(), "--install-service", code=2)
    assert message.endswith("bundle.tar.gz: it has no service to install: make it with 'bnn-deploy bundle --app'")
    assert not board.calls.exists()
    board.only_tools_but()
    bundle = make(SERVES, app="http")
    missing = f"no systemd, which runs {SERVICE}: leave out --install-service, and start the program there"
    assert refused(bundle, "--install-service") == f"error: board: cannot run bundle.tar.gz: {missing}".replace(
        ": cannot", " cannot"
    )
    found = run(HOST, bundle, "--install-service", "--dry-run")
    assert found.exit_code == 3 and f"missing: {missing}" in found.stdout.splitlines()
    assert board.tree() == []
    assert run(HOST, bundle, "--dry-run").exit_code == 0


def test_a_dry_run_says_it(board: SshServer, systemd: StandIn, make: MakeBundle) -> None:
    bundle = make(SERVES, app="http")
    assert (
        f"  5. if it passed, set up and start the service {SERVICE}"
        in run(HOST, bundle, "--install-service", "--dry-run").stdout.splitlines()
    )
    document = json.loads(run(HOST, bundle, "--install-service", "--dry-run", "--json").stdout)
    assert document["service"] == SERVICE and misfits(document) == []
    assert "service" not in run(HOST, bundle, "--dry-run").stdout
    assert systemd.calls() == [] and board.tree() == []


def test_a_connection_that_is_lost_meanwhile(
    board: SshServer, systemd: StandIn, make: MakeBundle, tmp_path: Path
) -> None:
    """The report is here, and what was begun there is finished."""
    bundle = make(SERVES, app="http")
    with pytest.raises(SetupError, match="the connection was lost while setting up the service"):
        deploy(HOST, bundle, install_service=True, output=cut_at(board, f"starting {SERVICE}"))
    assert json.loads(report_of(bundle).read_text())["passed"] is True
    wait_for((board.home / ".local/share/bnn-deploy/http.started").exists, "the service is set up")
    assert systemd.starts(SERVICE) == 1
