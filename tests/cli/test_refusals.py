"""Every way in `refusals` to break a checkpoint or a graph: its one line, its exit code, and no file left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from refusals import REFUSALS, Refusal, graph, refuse


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str, tmp_path: Path) -> None:
    refusal = REFUSALS[case]
    refusal.make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    result = refuse(refusal, tmp_path)
    assert (result.exit_code, result.stdout) == (refusal.code, ""), result.output
    (line,) = result.stderr.splitlines()
    expected = "error: " + refusal.line.replace("FOLDER", re.escape(str(tmp_path)))
    assert re.fullmatch(expected, line), line
    assert "Traceback" not in line and "internal error" not in line
    after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {path.name for path in after} == {path.name for path in before}
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_what_is_not_broken_is_converted(tmp_path: Path) -> None:
    """Each line above is about what was broken, not about the network that was broken."""
    assert refuse(Refusal(graph(), ""), tmp_path).exit_code == 0
    assert (tmp_path / "out.onnx").exists()
