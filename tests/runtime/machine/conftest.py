"""A folder that stands for /, and one that is all of PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.machines import Plant


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Writes files by path into a folder that stands for /."""
    root = tmp_path / "root"
    root.mkdir()

    def write(files: dict[str, str]) -> Path:
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root

    return write


@pytest.fixture(autouse=True)
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in PATH; empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder
