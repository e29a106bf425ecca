"""From the wheel to the report, with nothing replaced."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bnn_deploy
from bnn_deploy.board import bundle as bundles
from bnn_deploy.board.deployment import deploy
from bnn_deploy.errors import SetupError
from support.bundles import DEPENDENCIES, NEEDED_HERE
from support.converted import Converted
from support.deployment import MACHINE, cut_at, run
from support.ssh_server import HOST, SshServer, wait_for


def write_wheel(folder: Path, name: str, files: dict[str, bytes | Path]) -> None:
    """Write a wheel, stored without compression: that is quick."""
    with zipfile.ZipFile(folder / name, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content if isinstance(content, bytes) else content.read_bytes())
        info = next(inside.rpartition("/")[0] for inside in files if inside.endswith(".dist-info/METADATA"))
        archive.writestr(f"{info}/RECORD", "".join(f"{inside},,\n" for inside in [*files, f"{info}/RECORD"]))


def needed_packages() -> list[metadata.Distribution]:
    """What bnn-deploy needs on a board, and what that needs, as it is installed here."""
    names, found = list(NEEDED_HERE), []
    for name in names:
        distribution = metadata.distribution(name)
        found.append(distribution)
        for requirement in map(Requirement, distribution.requires or []):
            if (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ) and requirement.name not in names:
                names.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all packages that a board needs, made from what is installed here."""
    folder = tmp_path_factory.mktemp("wheels")
    for distribution in needed_packages():
        files = {
            str(file): Path(str(distribution.locate_file(file)))
            for file in distribution.files or []
            if ".." not in file.parts and "__pycache__" not in file.parts and file.name not in ("RECORD", "INSTALLER")
        }
        info = next(file for inside, file in files.items() if inside.endswith(".dist-info/WHEEL")).read_text()
        tags = [tag.split("-") for tag in re.findall(r"^Tag: (.*)$", info, re.MULTILINE)]
        tag = "-".join(".".join(dict.fromkeys(tag[i] for tag in tags)) for i in range(3))
        name = distribution.metadata["Name"].replace("-", "_")
        write_wheel(folder, f"{name}-{distribution.version}-{tag}.whl", files)
    version = "1" if bnn_deploy.__version__ == "0+unknown" else bnn_deploy.__version__
    info = f"bnn_deploy-{version}.dist-info"
    required = "".join(f"Requires-Dist: {line}\n" for line in DEPENDENCIES)
    package = Path(bnn_deploy.__file__).parent
    own: dict[str, bytes | Path] = {
        f"bnn_deploy/{path.relative_to(package)}": path
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "demo_data" not in path.parts
    }
    own |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: bnn-deploy\nVersion: {version}\n{required}".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-linux_{MACHINE}\n".encode(),
        f"{info}/entry_points.txt": b"[console_scripts]\nbnn-deploy = bnn_deploy.cli:main\n",
    }
    write_wheel(folder, f"bnn_deploy-{version}-py3-none-linux_{MACHINE}.whl", own)
    return folder


@pytest.fixture(scope="module")
def lenet5_bundle(tmp_path_factory: pytest.TempPathFactory, lenet5: Converted, wheels: Path) -> Path:
    """An offline bundle of the trained LeNet-5 for this machine."""
    path = tmp_path_factory.mktemp("bundle") / "lenet5.tar.gz"
    manifest = bundles.write_bundle(lenet5.model, path, target=MACHINE, samples=8, wheels=wheels)
    assert manifest.offline
    return path


def test_lenet5_from_the_wheel_to_the_report(board: SshServer, lenet5_bundle: Path, tmp_path: Path) -> None:
    """All of it, with nothing replaced: install into a virtual environment, verify, profile, report; then once more."""
    board.tool("python3", f'exec "{sys.executable}" "$@"')
    report = tmp_path / "report.json"
    result = run(HOST, lenet5_bundle, "--runs", "20", "--report", report)
    assert result.exit_code == 0, result.output
    steps = [line for line in result.stderr.splitlines() if line.startswith("[")]
    assert [step[:5] for step in steps] == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
    assert "installing bnn-deploy from the bundle" in steps[3]
    values = json.loads(report.read_text())
    assert values["passed"] is True
    assert values["profile"]["runs"] == 20
    assert values["profile"]["isa"] is not None
    # The board's environment has no torch and no onnx: what verified there is the golden file.
    environment = next(board.home.glob("bnn-deploy/lenet5-*/venv/lib/python3*/site-packages"))
    assert {"onnxruntime", "numpy", "bnn_deploy"} <= {path.name for path in environment.iterdir()}
    assert not {"torch", "onnx"} & {path.name for path in environment.iterdir()}
    again = run(HOST, lenet5_bundle, "--runs", "20", "--report", report)
    assert again.exit_code == 0, again.output
    assert "the complete bundle is on the board already" in again.stderr
    assert "the virtual environment is there" in again.stderr
    assert "-" not in [line.split()[-1] for line in again.stdout.splitlines() if line.startswith(("median", "peak"))]


@pytest.mark.parametrize("step", ["[3/5]", "[4/5]"])
def test_lost_in_the_middle_of_the_installation(
    board: SshServer, lenet5_bundle: Path, tmp_path: Path, step: str
) -> None:
    board.tool("python3", f'exec "{sys.executable}" "$@"')
    report = tmp_path / "report.json"
    with pytest.raises(SetupError, match=r"the connection was lost while run\.sh ran"):
        deploy(HOST, lenet5_bundle, report=report, output=cut_at(board, step))
    wait_for(lambda: not board.left_over(), "run.sh has been stopped")
    assert not any("venv" in path for path in board.tree())
    assert any(path.endswith("/run.sh") for path in board.tree())
    assert not report.exists()
