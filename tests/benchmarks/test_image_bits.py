"""tests/benchmarks/image_bits.py: no time is asserted here."""

from __future__ import annotations

import json
from pathlib import Path

import image_bits
import numpy as np
import onnx
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.image_input import ImageInput
from bnn_deploy.runtime.session import library_info
from support.converted import Converted
from support.direct_conv import BY_INTEGERS


@pytest.fixture(scope="module")
def lenet5_of_bytes(lenet5: Converted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    image = ImageInput((0.1307,), (0.3081,), "nhwc")
    convert(lenet5.checkpoint, folder / "m.onnx", arch="lenet5", image_input=image)
    images = np.clip(np.rint((lenet5.images * 0.3081 + 0.1307) * 255), 0, 255).astype(np.uint8)
    np.save(folder / "x.npy", np.moveaxis(images[:150], 1, -1))
    return folder


def test_no_bit_differs(lenet5_of_bytes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [str(lenet5_of_bytes / "m.onnx"), str(lenet5_of_bytes / "x.npy"), "--rounds", "1"]
    assert image_bits.main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    text = capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    count = len(np.load(lenet5_of_bytes / "x.npy"))
    assert [found["isa"] for found in results] == list(library_info().isas)
    for found in results:
        assert found["bits"] == count * 12 * 12 * 20 and found["differing"] == 0
        assert (found["undecided"] is not None) == (found["isa"] in BY_INTEGERS)
        assert f"{found['isa']}: 0 of {found['bits']:,} bits differ" in text


def test_a_bit_that_differs_shows(lenet5_of_bytes: Path, tmp_path: Path) -> None:
    model = onnx.load(lenet5_of_bytes / "m.onnx")
    (levels,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("_levels"))
    levels.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(levels) + np.float32(0.1), levels.name))
    onnx.save(model, tmp_path / "m.onnx")
    assert image_bits.main([str(tmp_path / "m.onnx"), str(lenet5_of_bytes / "x.npy"), "--rounds", "1"]) == 1
