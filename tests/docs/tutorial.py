"""The tutorial, docs/tutorial.ipynb, which is stored as it was executed.

python tests/docs/tutorial.py    execute it, and store what it prints and draws
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"

SECONDS = 300
"""The time after which a cell is given up."""


def execute(folder: Path, notebook: Any = None) -> Any:
    """The notebook with what its cells print, when they run one after the other in a folder.

    Raises:
        CellExecutionError: a cell fails.
    """
    notebook = notebook or nbformat.read(TUTORIAL, as_version=4)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a cell calls bnn-deploy
        "BNN_DEPLOY_CACHE": str(folder / "cache"),
    }
    place = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=SECONDS, record_timing=False, resources=place).execute(env=environment)


def text(notebook: Any) -> str:
    """All that the cells print, and the values that they end with."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def main() -> None:
    """Execute the tutorial, and store it."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(Path(folder)), TUTORIAL)


if __name__ == "__main__":
    main()
