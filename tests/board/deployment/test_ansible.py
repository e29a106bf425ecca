"""`bundle --ansible` and `fleet`: several boards behind real OpenSSH servers, by a real ansible-playbook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from bnn_deploy.board.archive import check_bundle
from bnn_deploy.board.playbook import write_ansible
from bnn_deploy.cli import main
from support.deployment import SERVES, MakeBundle, write_report
from support.schemas import misfits
from support.ssh_server import HOST, SshServer
from support.systemd import StandIn

FAILING = {
    "format": "bnn-deploy board report",
    "version": 1,
    "passed": False,
    "model": "small net.onnx",
    "manifest_sha256": "MANIFEST",
    "golden": {"failures": ["layer conv2: 3 of 640 bits differ"]},
    "profile": None,
    "versions": {"onnxruntime": "1.27.0"},
}

RUN = f"""
echo "$*" >>"$HOME/options"
[ -e venv ] || echo '[3/5] making a virtual environment' >&2
mkdir -p venv
[ ! -e "$HOME/stuck" ] || exit 3
if [ -e "$HOME/broken" ]; then
{write_report(FAILING)}
exit 1
fi
{write_report()}"""
"""A run.sh that makes its environment once, fails on a board that is broken, and does not come to a result on one that
is stuck."""


@pytest.fixture
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SshServer]]:
    found = {name: SshServer(tmp_path_factory.mktemp(name)) for name in ("kitchen", "garage", "attic")}
    yield found
    for board in found.values():
        board.stop()


def inventory(folder: Path, boards: dict[str, SshServer], unreachable: str) -> Path:
    """As a user writes it, in the order of the boards; one of them is at a port where nobody listens."""
    hosts = {
        name: {
            "ansible_host": HOST,
            "ansible_ssh_common_args": f"-F '{board.config}'",
            "ansible_ssh_transfer_method": "piped",  # ForceCommand keeps sftp out
            "ansible_python_interpreter": sys.executable,
            "ansible_remote_tmp": str(board.folder / "ansible"),  # without the blanks of the home directory
            "ansible_port": 1 if name == unreachable else board.port,
        }
        for name, board in boards.items()
    }
    path = folder / "inventory.yml"
    path.write_text(yaml.safe_dump({"boards": {"hosts": hosts}}, sort_keys=False))
    return path


def play(folder: Path, *options: str) -> tuple[int, str, dict[str, dict[str, int]]]:
    """The exit code of a run, what it printed, and the recap: host -> what its tasks came to."""
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_HOME": str(folder / ".ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",  # quicker
        "LC_ALL": "C.UTF-8",
    }
    words = [tools / "ansible-playbook", "-i", folder / "inventory.yml", folder / "playbook.yml", *options]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=180, check=False)
    recap = done.stdout.partition("PLAY RECAP")[2]
    return (
        done.returncode,
        done.stdout + done.stderr,
        {
            line.split()[0]: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}
            for line in recap.splitlines()
            if "ok=" in line
        },
    )


def reports(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_bytes()) for path in (folder / "reports").iterdir()}


def fleet(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["fleet", *map(str, arguments)], prog_name="bnn-deploy")


def test_boards_one_after_the_other(boards: dict[str, SshServer], make: MakeBundle, tmp_path: Path) -> None:
    """One that works, one that cannot be reached, one that fails its proof, after which no other is touched."""
    bundle = make(RUN)
    folder = tmp_path / "ansible"
    write_ansible(folder, bundle, check_bundle(bundle))
    boards["last"] = SshServer(tmp_path)
    try:
        inventory(folder, boards, unreachable="garage")
        (boards["attic"].home / "broken").touch()
        code, said, recap = play(folder)
        assert code != 0, said
        assert set(reports(folder)) == {"kitchen", "attic"}, said
        assert [reports(folder)[name]["passed"] for name in ("kitchen", "attic")] == [True, False]
        assert boards["last"].tree() == []
        assert "1 of 4 boards passed." in said
        assert "FAILED: attic: layer conv2: 3 of 640 bits differ" in said
        for name in ("garage", "last"):
            assert f"NO REPORT: {name}: it was not reached" in said
        page = (folder / "fleet.html").read_text()
        assert "layer conv2: 3 of 640 bits differ" in page

        # The bundle is there; nothing is changed, and what is verified again is not a change.
        (boards["attic"].home / "broken").unlink()
        inventory(folder, boards, unreachable="")
        code, said, recap = play(folder, "-e", "bnn_deploy_runs=7 bnn_deploy_page=false bnn_deploy_serial=4")
        assert code == 0, said
        assert "4 of 4 boards passed." in said
        assert {name: recap[name]["changed"] > 0 for name in boards} == {
            "kitchen": False,
            "garage": True,
            "attic": False,
            "last": True,
        }
        assert recap["localhost"]["changed"] == 0
        options = (boards["kitchen"].home / "options").read_text()
        assert options.splitlines() == ["--threads 1 --runs 50", "--threads 1 --runs 7"]

        # A board that has passed before, and does not come to a result now.
        (boards["kitchen"].home / "stuck").touch()
        code, said, _ = play(folder, "--limit", "kitchen,localhost", "-e", "bnn_deploy_page=false")
        assert code != 0
        assert "NO REPORT: kitchen" in said
        assert reports(folder) == {}
        name = check_bundle(bundle).name_on_board
        assert [path for path in boards["last"].tree() if path.count("/") == 1 and path.startswith("bnn-deploy/")] == [
            f"bnn-deploy/{name}"
        ]
    finally:
        boards["last"].stop()


def test_services_of_boards(boards: dict[str, SshServer], make: MakeBundle, tmp_path: Path) -> None:
    """Set up once behind the proof, and left alone then; the first that does not run stops it all."""
    service, folder = "bnn-deploy-http", tmp_path / "ansible"
    bundle = make(SERVES, app="http")
    write_ansible(folder, bundle, check_bundle(bundle))
    inventory(folder, boards, unreachable="")
    systemd = {}
    try:
        for name, board in boards.items():
            board.tool("sleep", "exec /bin/sleep 0.2")
            systemd[name] = StandIn(board.tools, board.folder / "state")
        (boards["garage"].home / "dies").touch()
        quick = ("-e", "bnn_deploy_page=false")
        code, said, recap = play(folder, *quick)
        assert code != 0
        assert f"garage: error: {service} was set up and does not run, see its last lines above" in said
        assert "port 80: Permission denied" in said
        assert [systemd[name].starts(service) for name in boards] == [1, 1, 0]
        assert boards["attic"].tree() == []

        (boards["garage"].home / "dies").unlink()
        code, said, recap = play(folder, *quick)
        assert code == 0, said
        assert {name: recap[name]["changed"] > 0 for name in boards} == {
            "kitchen": False,
            "garage": True,
            "attic": True,
        }
        assert [systemd[name].starts(service) for name in boards] == [1, 2, 1]
    finally:
        for found in systemd.values():
            found.stop()


def test_fleet(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    refused = fleet(folder)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{folder}: no report of a board, HOST.json, is in it" in refused.stderr
    subprocess.run(["sh", "-c", f"cd {folder}; touch manifest.json; {write_report()}"], check=True)
    (folder / "manifest.json").unlink()
    (folder / "report.json").rename(folder / "kitchen.json")
    result = fleet(folder, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert misfits(document) == []
    (board,) = document["boards"]
    assert (board["host"], board["verdict"], board["board"]) == ("kitchen", "passed", "Raspberry Pi 4 Model B")
    assert (board["isa"], board["median_ms"], board["temperature_c"]) == ("neon", 12.5, 63.4)
    (folder / "attic.json").write_text(json.dumps(FAILING))
    result = fleet(folder, "--host", "kitchen", "--host", "roof")
    assert result.exit_code == 1
    assert "1 of 3 boards passed." in result.stdout
    assert result.stdout.index("kitchen") < result.stdout.index("roof") < result.stdout.index("attic")
    assert "FAILED: attic: layer conv2: 3 of 640 bits differ" in result.stdout
    assert "NO REPORT: roof: " in result.stdout
    (folder / "attic.json").write_text("{}")
    broken = fleet(folder)
    assert (broken.exit_code, broken.stdout) == (3, "")
    assert f"{folder / 'attic.json'}: its report does not say whether the check passed" in broken.stderr


def test_the_page_of_a_fleet(tmp_path: Path) -> None:
    hostile = {**FAILING, "golden": {"failures": ["<script>alert(1)</script>"]}}
    (tmp_path / "x.json").write_text(json.dumps(hostile))
    page = tmp_path / "fleet.html"
    assert fleet(tmp_path, "-o", page).exit_code == 1
    text = page.read_text()
    assert "0 of 1 board passed" in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text


def test_a_folder_for_a_playbook_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["bundle", "m.onnx", "--target", "aarch64", "-o", tmp_path / "b.tar.gz", "--ansible", tmp_path / "file"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2
    assert f"{tmp_path / 'file'}: it is no folder" in result.stderr
