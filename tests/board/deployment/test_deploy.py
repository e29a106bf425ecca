"""`bnn-deploy deploy` against a real OpenSSH server on loopback. `ssh_server.py` is the board."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.board import deployment
from bnn_deploy.board.deployment import deploy
from bnn_deploy.quantities import TIMES
from bnn_deploy.runtime.profile_results import ProfileReport
from bnn_deploy.runtime.profiling import profile
from support.deployment import (
    MACHINE,
    OTHER,
    REPORT,
    MakeBundle,
    folder_of,
    installed,
    refused,
    report_of,
    reported,
    run,
    write_report,
)
from support.schemas import misfits
from support.ssh_server import HOST, SshServer

# --- it works -------------------------------------------------------------------------------------


def test_copies_runs_and_shows_both_machines(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    result = run(HOST, bundle)
    assert result.exit_code == 0, result.output
    # What run.sh prints arrives on stderr, in order, among the steps.
    lines = result.stderr.splitlines()
    assert lines.index("[1/2] installing") < lines.index("[2/2] options: ") < len(lines) - 1
    assert lines[0] == "connecting to board"
    assert json.loads(report_of(bundle).read_text()) == reported(bundle)
    assert board.tree() == installed(bundle, "report.json")
    cells = {
        line.split("  ")[0].strip(): re.split(r"  +", line.strip())[1:] for line in result.stdout.splitlines() if line
    }
    assert cells["machine"][1] == "Raspberry Pi 4 Model B"
    assert cells["ISA that ran"][1] == "neon"
    assert cells["threads"] == ["1", "1"]
    assert cells["median"][1] == "12.500 ms"
    assert cells["p10 to p90"][1] == "12.250 to 13.000 ms"
    assert cells["samples per second"][1] == "80"
    assert cells["peak memory"][1] == "98.0 MB"
    assert cells["temperature"][1] == "41 °C to 63 °C"
    assert cells["throttled"][1] == "no sign of it"
    assert cells["check"] == ["-", "PASSED"]
    assert result.stdout.splitlines()[-1] == "PASSED"


def test_shows_the_speed_up_where_the_bundle_has_the_float_model(
    board: SshServer, make: MakeBundle, small_model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = {**REPORT["profile"], "compare": [{"timing": {"median_ms": 100.0}}], "speedup": {"median": 8.0}}
    bundle = make(run=write_report({**REPORT, "profile": compared}), float_model=small_model)
    measured = []

    def measure(*given: Any, **named: Any) -> ProfileReport:
        measured.append(profile(*given, **named))
        return measured[-1]

    monkeypatch.setattr(deployment, "profile", measure)
    result = run(HOST, bundle)
    assert result.exit_code == 0, result.output
    cells = {line.split("  ")[0].strip(): re.split(r"  +", line.strip())[1:] for line in result.stdout.splitlines()}
    assert cells["float model"][1] == "100.000 ms"
    assert cells["speed-up"][1] == f"8.00{TIMES}"
    (here,) = measured
    assert here.speedup is not None
    assert cells["median"][0] == f"{here.model.timing.median_ms:.3f} ms"
    assert cells["speed-up"][0] == f"{here.speedup.median:.2f}{TIMES}"


def test_a_second_run_copies_nothing(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    assert run(HOST, bundle).exit_code == 0
    model = board.home / folder_of(bundle) / "model.onnx"
    before = model.stat().st_ino
    result = run(HOST, bundle, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["copied"] is False
    assert "the complete bundle is on the board already" in result.stderr
    assert model.stat().st_ino == before


def test_options_of_the_run_arrive_there(board: SshServer, make: MakeBundle) -> None:
    result = run(HOST, make(), "--threads", "2", "--runs", "7")
    assert "[2/2] options: --threads 2 --runs 7" in result.stderr.splitlines()


def test_json_is_all_that_is_on_stdout(board: SshServer, make: MakeBundle, tmp_path: Path) -> None:
    bundle = make()
    (tmp_path / "r.json").symlink_to("real.json")  # is followed
    result = run(HOST, bundle, "--json", "--report", tmp_path / "r.json")
    values = json.loads(result.stdout)
    assert misfits(values) == []
    assert values["passed"] is values["copied"] is True
    assert values["report"] == reported(bundle) == json.loads((tmp_path / "r.json").read_text())
    assert values["report_file"] == str(tmp_path / "r.json") and (tmp_path / "r.json").is_symlink()
    assert values["look"]["board"]["machine"] == MACHINE
    assert values["laptop"]["model"]["timing"]["median_ms"] > 0
    assert not report_of(bundle).exists()


@pytest.mark.parametrize(
    ("directory", "where"),
    [
        ("my models", "my models"),
        ("~/models", "models"),
        ("a/b/c", "a/b/c"),
        ('it\'s $HOME `id` "x" \\n; exit 3', 'it\'s $HOME `id` "x" \\n; exit 3'),
        ("-rf", "-rf"),
        ("*", "*"),
    ],
)
def test_directories(board: SshServer, make: MakeBundle, directory: str, where: str) -> None:
    bundle = make()
    result = deploy(HOST, bundle, directory=directory)
    assert result.look.folder == f"{board.home}/{folder_of(bundle, where)}"
    assert board.tree() == installed(bundle, "report.json", directory=where)


def test_an_absolute_directory(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    deploy(HOST, bundle, directory=str(board.home / "absolute"))
    assert board.tree() == installed(bundle, "report.json", directory="absolute")


def test_options_for_ssh_and_a_user_name(board: SshServer, make: MakeBundle) -> None:
    board.write_config(Port="1")
    bundle = make()
    assert "refused" in refused(bundle)
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    assert deploy(f"{user}@{HOST}", bundle, ssh_options=[f"Port={board.port}"]).passed


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_shells(board: SshServer, make: MakeBundle, shell: str) -> None:
    board.tool("sh", f'exec {shell} "$@"')
    assert deploy(HOST, make()).passed


def test_a_login_shell_that_prints_things(board: SshServer, make: MakeBundle) -> None:
    board.prelude("echo welcome; echo '@0123456789abcdef error no'; printf 'no line end' >&2\n")
    assert deploy(HOST, make()).passed


def test_control_characters_of_the_board_do_not_reach_the_terminal(board: SshServer, make: MakeBundle) -> None:
    result = run(HOST, make(r"printf '\033[2Jx\n'" + "\n" + write_report()))
    assert result.exit_code == 0
    assert "\\x1b[2Jx" in result.stderr.splitlines()
    assert "\x1b" not in result.output


def test_a_master_connection_of_the_user_is_not_started(board: SshServer, make: MakeBundle, tmp_path: Path) -> None:
    socket = tmp_path / "master"
    board.write_config(ControlMaster="auto", ControlPath=f'"{socket}"', ControlPersist="yes")
    assert deploy(HOST, make()).passed
    assert not socket.exists()


def test_one_connection_does_it_all(board: SshServer, make: MakeBundle) -> None:
    deploy(HOST, make())
    assert len(board.calls.read_text().splitlines()) == 1


# --- dry run --------------------------------------------------------------------------------------


def test_dry_run_changes_nothing(board: SshServer, make: MakeBundle, tmp_path: Path) -> None:
    bundle = make()
    result = run(HOST, bundle, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"copy {bundle.stat().st_size / 1e3:.1f}"[:7] in result.stdout
    assert f"{board.home}/{folder_of(bundle)}" in result.stdout
    assert "Nothing was changed" in result.stdout
    assert board.tree() == []
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]
    values = json.loads(run(HOST, bundle, "--dry-run", "--json").stdout)
    assert values["problems"] == [] and misfits(values) == []
    assert values["board"]["python"][0] == 3
    deploy(HOST, bundle)
    before = board.tree()
    assert "copy " not in run(HOST, bundle, "--dry-run").stdout
    assert board.tree() == before


def test_dry_run_says_all_that_is_missing(board: SshServer, make: MakeBundle) -> None:
    board.only_tools_but("python3", "flock")
    result = run(HOST, make(target=OTHER), "--dry-run")
    assert result.exit_code == 3
    missing = [line for line in result.stdout.splitlines() if line.startswith("missing: ")]
    assert len(missing) == 3
    assert f"make one for it with 'bnn-deploy bundle --target {MACHINE}'" in missing[0]
    assert "no python3: sudo apt install python3 python3-venv" in missing[1]
    assert "no flock: sudo apt install util-linux" in missing[2]
    assert "see above" in result.stderr
    assert board.tree() == []
