"""tests/benchmarks/board_memory.py: a model's weights are in what it says that the model adds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import board_memory
import numpy as np
import onnx
from onnx import helper, numpy_helper

MEGABYTES = 40


def save_linear(path: Path, megabytes: int) -> Path:
    """A linear layer of so many megabytes of weights."""
    weights = numpy_helper.from_array(np.ones((1000, 250 * megabytes), np.float32), "w")
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, None])
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1000])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "linear", [x], [y], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_the_weights_are_in_what_a_model_adds(tmp_path: Path) -> None:
    models = [save_linear(tmp_path / "small.onnx", 1), save_linear(tmp_path / "large.onnx", MEGABYTES)]
    command = [sys.executable, board_memory.__file__, *map(str, models)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    found = {row[0]: [float(cell) for cell in row[1:]] for row in rows if row[0] in ("small", "large")}
    assert list(found) == ["small", "large"]
    for file, alone, loaded, after, added in found.values():
        assert file > 0.9 and 20 < alone <= loaded <= after
        assert abs(added - (after - alone)) < 0.15
    assert found["large"][4] - found["small"][4] > 0.9 * (MEGABYTES - 1)
