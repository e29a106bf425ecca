"""The command that adds an extra works from where bnn-deploy was installed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy import installation
from bnn_deploy.installation import install_command, origin, requirements

METADATA = """Metadata-Version: 2.4
Name: bnn-deploy
Version: 0.1.0
Requires-Dist: click>=8.1
Requires-Dist: winonly>=1; sys_platform == "none"
Requires-Dist: tomli>=2; python_version >= "3"
Provides-Extra: convert
Requires-Dist: onnx>=1.18; extra == "convert"
Requires-Dist: torch>=2.13; python_version >= "3" and extra == "convert"
Provides-Extra: test
Requires-Dist: pytest; extra == "test"
"""


def installed_from(folder: Path, monkeypatch: pytest.MonkeyPatch, direct: dict[str, Any] | None) -> None:
    """Let an installation have this direct_url.json."""
    info = folder / "bnn_deploy-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    if direct is not None:
        (info / "direct_url.json").write_text(json.dumps(direct))
    monkeypatch.setattr(installation, "distribution", lambda name: PathDistribution(info))


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "the source"
    source.mkdir()
    installed_from(tmp_path, monkeypatch, {"url": source.as_uri(), "dir_info": {}})
    assert install_command("convert") == f"pip install '{source}[convert]'"
    (source / "constraints.txt").touch()
    assert install_command("convert") == f"pip install -c '{source}/constraints.txt' '{source}[convert]'"
    source.rename(tmp_path / "elsewhere")
    assert install_command("convert") == "pip install 'onnx>=1.18' 'torch>=2.13'"


def test_a_folder_that_stays_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(tmp_path, monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert install_command("convert") == f"pip install -e '{tmp_path}[convert]'"
    assert origin() == (str(tmp_path), True)


@pytest.mark.parametrize("name", ["bnn_deploy-0.1.0-py3-none-linux_x86_64.whl", "bnn_deploy-0.1.0.tar.gz"])
def test_a_wheel_or_an_archive(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).touch()
    installed_from(tmp_path, monkeypatch, {"url": (tmp_path / name).as_uri(), "archive_info": {}})
    assert install_command("convert") == f"pip install '{tmp_path / name}[convert]'"


def test_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vcs = {"vcs": "git", "commit_id": "ab12"}
    installed_from(tmp_path, monkeypatch, {"url": "https://example.org/x.git", "vcs_info": vcs})
    assert install_command("convert") == "pip install 'bnn-deploy[convert] @ git+https://example.org/x.git@ab12'"


def test_an_index_or_a_folder_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pip had it from is not recorded, so the packages are named."""
    installed_from(tmp_path, monkeypatch, None)
    assert origin() is None
    assert install_command("convert") == "pip install 'onnx>=1.18' 'torch>=2.13'"
    assert install_command("test") == "pip install pytest"
    assert [(extra, need.name) for extra, need in requirements()] == [
        (None, "click"),
        (None, "tomli"),
        ("convert", "onnx"),
        ("convert", "torch"),
        ("test", "pytest"),
    ]


def test_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise installation.PackageNotFoundError(name)

    monkeypatch.setattr(installation, "distribution", missing)
    assert install_command("convert").endswith(f"{Path(installation.__file__).parents[1]}[convert]'".lstrip("'"))
    assert requirements() == []


def metadata_wheel(path: Path, *more: str) -> Path:
    """A wheel without content that pip takes."""
    path.parent.mkdir(exist_ok=True)
    name, version, *_ = path.name.split("-")
    with zipfile.ZipFile(path, "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *more]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return path


def test_pip_takes_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip would install what the extra needs, and says that it cannot where that is not to be had."""
    extra = ("Provides-Extra: x", 'Requires-Dist: onlyhere; extra == "x"')
    wheel = metadata_wheel(tmp_path / "a folder" / "bnn_deploy-0.1.0-py3-none-any.whl", *extra)
    installed_from(tmp_path, monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    words = shlex.split(install_command("x"))
    pip = [sys.executable, "-m", *words, "--dry-run", "--no-index", "--find-links", str(tmp_path), "--ignore-installed"]
    failed = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert failed.returncode != 0 and "onlyhere" in failed.stderr
    metadata_wheel(tmp_path / "onlyhere-1.0-py3-none-any.whl")
    done = subprocess.run(pip, capture_output=True, text=True, check=True)
    assert "Would install bnn-deploy-0.1.0 onlyhere-1.0" in done.stdout.replace("bnn_deploy", "bnn-deploy")


def missing(source: Path, installed: Path) -> set[str]:
    """The files of a source tree's package that an installed one lacks, but for what is compiled."""
    files = (path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix in DATA)
    return {file.as_posix() for file in files if not (installed / file).is_file()}


DATA = {".py", ".typed", ".html", ".css", ".sh", ".onnx", ".npz", ".tar"}
"""The ends of the names of the package's files: modules, and what they read."""


def test_what_is_installed_has_all_files(tmp_path: Path) -> None:
    """In CI, that is what the README's command installed from a wheel."""
    source, package = Path(__file__).parents[1] / "bnn_deploy", Path(installation.__file__).parent
    assert missing(source, package) == set()
    lacking = missing(source, tmp_path)
    assert lacking >= {"py.typed", "page/templates/page.html", "page/templates/page.css", "_lib/bound_binary.onnx"}
    assert lacking >= {"board/scripts/deploy.sh", "demo_data/lenet5.pth.tar", "demo_data/mnist_1000.npz"}
