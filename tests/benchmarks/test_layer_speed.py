"""The layers that tests/benchmarks/layer_speed.py measures, on small ones: no time is asserted here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import layer_speed
import numpy as np
import onnx
import pytest
from layer_forms import (
    LEVELS,
    SIGNS,
    SUMS,
    Form,
    Layer,
    attention,
    becomes,
    binary_model,
    convolution,
    linear,
    source_model,
    transposed,
)

from bnn_deploy.runtime.session import library_info, load_session

CASES = [
    *((convolution(40, 5, 3, ()), form, name) for form, name in ((SIGNS, "BinaryConv"), (LEVELS, "BinaryConvLevels"))),
    *((convolution(40, 5, 3, ()), form, "BinaryConvBases") for form in SUMS),
    *((layer, layer.forms[0], "BinaryMatMul") for layer in attention(2, 5, 33)),
    (linear(3, 40, 8), SIGNS, "BinaryLinear"),
    (transposed(40, 8, 3, 4, 2), SIGNS, "4 BinaryConv"),
    (transposed(40, 8, 3, 4, 2, rank=1), SIGNS, "2 BinaryConv"),
]


def run(model: onnx.ModelProto, layer: Layer) -> np.ndarray:
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip("xz", layer.inputs, strict=False)
    }
    (y,) = load_session(model.SerializeToString(), threads=1).run(None, feeds)
    return y


@pytest.mark.parametrize(("layer", "form", "operator"), CASES, ids=lambda value: getattr(value, "name", value))
def test_the_measured_layer_computes_what_its_float_form_does(layer: Layer, form: Form, operator: str) -> None:
    binary = binary_model(layer, form)
    assert becomes(binary) == operator
    expected = run(source_model(layer, form), layer)
    # The float layer sums in float32, in an order that depends on the CPU.
    np.testing.assert_allclose(run(binary, layer), expected, atol=1e-5, rtol=1e-5)
    threshold = next(x for x in binary.graph.initializer if "threshold" in x.name)
    damaged = onnx.numpy_helper.to_array(threshold) + np.float32(0.5)
    threshold.CopyFrom(onnx.numpy_helper.from_array(damaged, threshold.name))
    assert np.abs(run(binary, layer) - expected).max() > 1e-2


def test_a_row_for_each_engine_and_instruction_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["layer_speed.py", "--only", "16 tokens", "--rounds", "1", "--json", str(tmp_path / "layers.json")]
    monkeypatch.setattr(sys, "argv", command)
    layer_speed.main()
    rows = json.loads((tmp_path / "layers.json").read_text())["rows"]
    engines = [("float32", ""), ("int8", ""), *(("signs, ±alpha", isa) for isa in library_info().isas)]
    assert [(row["form"], row["isa"]) for row in rows] == engines
    assert rows[0]["ratios"]["float32"]["median"] == 1
    assert all(row["ms"]["median"] > 0 for row in rows)
    assert capsys.readouterr().out.count("BinaryLinear") == len(engines) - 2
