"""The tutorial runs, proves what it says, and is stored as it was executed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from docs.commands import shape
from docs.tutorial import TUTORIAL, execute, text


def without_profile(printed: str) -> str:
    """Without the line that says whether the runs were disturbed."""
    return re.sub(r"<ProfileReport: .*>", "", printed)


def test_the_tutorial(tmp_path: Path) -> None:
    stored = nbformat.read(TUTORIAL, as_version=4)
    executed = execute(tmp_path)
    printed = text(executed)
    accuracy = re.search(r"([\d.]+)% of 200 images", printed)
    assert accuracy is not None and float(accuracy[1]) > 85  # a tenth would be chance
    assert re.search(r"<Verification: digits\.onnx PASSED .* 200 samples", printed)
    assert re.search(r"<Verification: digits\.onnx FAILED .* 20 samples", printed)
    assert re.search(r"<ProfileReport: digits\.onnx: .*, ratio \d", printed)
    # What is stored came from these cells: python tests/docs/tutorial.py
    assert shape(without_profile(text(stored))) == shape(without_profile(printed))
    for cell in stored.cells:
        assert cell.cell_type != "code" or cell.execution_count


def test_a_cell_that_fails_is_found(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('no')")])
    with pytest.raises(CellExecutionError, match="no"):
        execute(tmp_path, notebook)
