"""A residual that nothing reads later gives its memory to the sum, and only then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from support.kernels import DOMAIN, make_model, make_session

CHANNELS = 32
OUTPUTS = 64
# In a process of its own: prints the results, and by how many bytes running raised the peak of its memory.
SCRIPT = """
import pathlib, sys, numpy, onnx
from support.kernels import make_session
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
session = make_session(onnx.load(sys.argv[1]), None)
feeds = {"X": numpy.full((1, 512, 512, 1), 2**32 - 1, numpy.uint32), "V": numpy.array([1.5], numpy.float32)}
before = peak()
print(*(float(value.max()) for value in session.run(None, feeds)), peak() - before)
"""


def residual_model(size: int, outputs: list[str], *later: onnx.NodeProto) -> onnx.ModelProto:
    """R, all V, plus a 1x1 convolution of X [1, size, size, 1] with weights of +1, both in [1, 64, size, size]."""
    inputs = ["X", "W", "scale", "bias", "pad", "R", "threshold"]
    window = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
    nodes = [
        helper.make_node("Expand", ["V", "shape"], ["R"]),
        helper.make_node("BinaryConvResidual", inputs, outputs, domain=DOMAIN, channels=CHANNELS, **window),
        *later,
    ]
    graph_inputs = [
        helper.make_tensor_value_info("X", TensorProto.UINT32, [1, size, size, 1]),
        helper.make_tensor_value_info("V", TensorProto.FLOAT, [1]),
    ]
    constants = {
        "shape": np.array([1, OUTPUTS, size, size]),
        "W": np.full((OUTPUTS, 1, 1, 1), 2**32 - 1, np.uint32),
        "scale": np.ones(OUTPUTS, np.float32),
        "bias": np.zeros(OUTPUTS, np.float32),
        "pad": np.zeros(1, np.float32),
        "threshold": np.full(OUTPUTS, 33.5, np.float32),
    }
    last = [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output if name]
    return make_model(nodes, graph_inputs, last, constants)


def rise_of_peak(model: onnx.ModelProto, tmp_path: Path) -> tuple[float, float]:
    """The result, and the peak's rise in tensors of 64 x 512 x 512 floats."""
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    tests = Path(__file__).resolve().parents[1]  # has `support`
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path], stdout=subprocess.PIPE, text=True, check=True, cwd=tests
    )
    result, rise = map(float, done.stdout.split())
    return result, rise / (OUTPUTS * 512 * 512 * 4)


def test_the_last_reader_writes_in_place(tmp_path: Path) -> None:
    read_once = residual_model(512, ["Y"], helper.make_node("ReduceMax", ["Y"], ["M"]))
    result, tensors = rise_of_peak(read_once, tmp_path)
    assert result == CHANNELS + 1.5
    assert tensors < 1.5
    # Y - R reads R once more, so the two lie apart.
    read_twice = residual_model(
        512, ["Y"], helper.make_node("Sub", ["Y", "R"], ["D"]), helper.make_node("ReduceMax", ["D"], ["M"])
    )
    result, tensors = rise_of_peak(read_twice, tmp_path)
    assert result == CHANNELS
    assert tensors > 1.5


@pytest.mark.parametrize("outputs", [["Y", "B"], ["Y"], ["", "B"]])
def test_in_place_with_any_outputs(outputs: list[str]) -> None:
    x = np.full((1, 9, 9, 1), 2**32 - 1, np.uint32)
    x[0, 4, 4] = 0
    got = dict(
        zip(
            [name for name in outputs if name],
            make_session(residual_model(9, outputs), None).run(None, {"X": x, "V": np.array([1.5], np.float32)}),
            strict=True,
        )
    )
    inside = np.ones((9, 9), bool)
    inside[4, 4] = False
    if "Y" in got:
        assert (got["Y"][0] == np.where(inside, 33.5, -30.5)).all()
    if "B" in got:
        assert (got["B"][0] == np.where(inside, 2**32 - 1, 0)[..., None]).all()
