"""From the model to the board's report, with the real wheel and no network."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from bnn_deploy.board.archive import check_bundle
from bnn_deploy.board.bundle import write_bundle
from bnn_deploy.board.manifest import FOLDER, MODEL, RUN
from bnn_deploy.board.wheels import DEMO_DATA, collect_wheels
from support.bundles import change
from support.converted import Converted

ROOT = Path(__file__).parents[3]


def test_from_the_model_to_the_report(lenet5: Converted, all_wheels: Path, tmp_path: Path) -> None:
    target = os.uname().machine
    output = tmp_path / "b.tar.gz"
    manifest = write_bundle(lenet5.model, output, target=target, samples=4, wheels=all_wheels)
    assert manifest.offline
    assert manifest == check_bundle(output)
    subprocess.run(["tar", "-xzf", str(output)], cwd=tmp_path, check=True)
    folder = tmp_path / FOLDER
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    environment |= {"PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9", "PYTHONPATH": "/nowhere"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(folder / RUN), "--runs", "3"], capture_output=True, text=True, env=environment, cwd="/"
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert "[4/5] installing bnn-deploy from the bundle" in done.stderr.splitlines()
    assert "PASSED" in done.stdout.splitlines()
    report = json.loads((folder / "report.json").read_text())
    assert (report["passed"], report["target"], report["model"]) == (True, target, "lenet5.onnx")
    assert report["versions"]["bnn_deploy"] == manifest.bnn_deploy
    assert {name: report["versions"][name] for name in ("onnxruntime", "numpy")} == {
        name: manifest.made_with[name] for name in ("onnxruntime", "numpy")
    }
    assert report["manifest_sha256"] == manifest.sha256
    assert report["profile"]["runs"] == 3
    assert all(result["identical"] == result["samples"] for result in report["golden"]["outputs"])
    # There is no torch and no onnx in the environment that it ran in.
    code = (
        "import importlib.util as u; print([n for n in ('torch', 'onnx', 'onnx_ir', 'bnn_deploy') if u.find_spec(n)])"
    )
    found = subprocess.run([str(folder / "venv/bin/python"), "-I", "-c", code], capture_output=True, text=True)
    assert found.stdout == "['bnn_deploy']\n"
    (folder / "report.json").unlink()
    done = run()
    assert done.returncode == 0, done.stderr
    assert "[3/5] the virtual environment is there" in done.stderr
    assert (folder / "report.json").exists()
    change(folder / MODEL)
    done = run()
    assert done.returncode == 2
    assert "the bundle is damaged, nothing was run" in done.stderr


def test_the_boards_wheel_is_the_wheel_without_the_demo(all_wheels: Path) -> None:
    """Its RECORD lists what is in it, no more and no less, with the sizes that are there."""
    _, name, contents = collect_wheels(all_wheels, os.uname().machine)
    with zipfile.ZipFile(all_wheels / name) as built, zipfile.ZipFile(io.BytesIO(contents[name])) as packed:
        left_out = set(built.namelist()) - set(packed.namelist())
        assert left_out == {found for found in built.namelist() if found.startswith(DEMO_DATA)} != set()
        record = next(found for found in packed.namelist() if found.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(packed.read(record).decode().splitlines()))
        assert sorted(row[0] for row in rows) == sorted(packed.namelist())
        assert all(row[0] == record or packed.getinfo(row[0]).file_size == int(row[2]) for row in rows)
    assert len(contents[name]) < (all_wheels / name).stat().st_size / 2


def test_the_wheel_has_run_sh(all_wheels: Path) -> None:
    (wheel,) = all_wheels.glob("bnn_deploy-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"bnn_deploy/board/scripts/{RUN}") == (ROOT / "bnn_deploy/board/scripts" / RUN).read_bytes()
