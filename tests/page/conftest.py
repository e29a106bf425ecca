"""A record with all parts of the network of the demo, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.converted import Converted
from support.pages import run


@pytest.fixture(scope="session")
def record(lenet5: Converted, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What `report --json` prints of LeNet-5 with all that the other commands found out, and the page of it."""
    folder = tmp_path_factory.mktemp("record")
    model, floats, data = folder / "lenet5.onnx", folder / "lenet5_float.onnx", folder / "images.npz"
    np.savez(data, input=lenet5.images, labels=np.arange(len(lenet5.images)) % 10)
    conversion, found, page = folder / "convert.json", folder / "record.json", folder / "page.html"
    conversion.write_text(
        run("convert", lenet5.checkpoint, "--arch", "lenet5", "-o", model, "--float", floats, "--json")
    )
    proof = ["--against", floats, "--data", data]
    found.write_text(run("report", model, conversion, *proof, "--compare", floats, "--runs", 10, "--json"))
    assert run("report", found, "-o", page) == f"wrote {page}\n"
    return json.loads(found.read_text()), page
