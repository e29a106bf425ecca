"""Graphs in which two features meet: layouts, levels, K, binary weights and 8-bit layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from bnn_deploy.conversion import Conversion, convert
from bnn_deploy.operators.contract import is_binary_layer
from bnn_deploy.proof.margins import tie_margin
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info
from support.graphs import Array, parse, weights

INPUTS = np.random.default_rng(8).standard_normal((16, 4, 6, 6)).astype(np.float32)
BOX = np.full((1, 1, 3, 3), 1 / 9, np.float32)


def real(*shape: int) -> Array:
    values: Array = np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)
    return values


GRAPHS: dict[str, tuple[str, dict[str, Array]]] = {
    "K of a channels-last tensor": (
        """l = Transpose <perm=[0,2,3,1]> (x)
a = Mul(l, g)
s = Sign(a)
t = Transpose <perm=[0,3,1,2]> (s)
c = Conv <pads=[1,1,1,1]> (t, w)
d = Transpose <perm=[0,2,3,1]> (c)
b = Abs(a)
m = ReduceMean(b, axis)
n = Transpose <perm=[0,3,1,2]> (m)
k = Conv <pads=[1,1,1,1]> (n, box)
p = Transpose <perm=[0,2,3,1]> (k)
q = Mul(d, p)
y = Relu(q)""",
        {"g": np.float32([0.5, 2, 1, 1.5]), "w": weights(8, 4, 3, 3), "axis": np.array([3]), "box": BOX},
    ),
    "levels of a padded tensor": (
        "r = Relu(x)\np = Pad(r, pads)\ns = Sign(p)\ny = Conv(s, w)",
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": weights(8, 4, 3, 3)},
    ),
    "levels of a flat tensor": (
        "c = Conv(x, first)\nr = Relu(c)\nf = Flatten(r)\ns = Sign(f)\ny = Gemm <transB=1> (s, w)",
        {"first": real(40, 4, 3, 3), "w": weights(8, 40 * 16)},
    ),
}

EDGES: dict[str, tuple[str, dict[str, Array]]] = {
    "a binary layer in front of an 8-bit one": (
        "a = Conv <pads=[1,1,1,1]> (x, first)\ns = Sign(a)\nc = Conv <pads=[1,1,1,1]> (s, w)\ny = Conv(c, last)",
        {"first": real(8, 4, 3, 3), "w": weights(8, 8, 3, 3), "last": real(8, 8, 1, 1)},
    ),
    "and a bias": (
        "a = Conv <pads=[1,1,1,1]> (x, first)\ns = Sign(a)\nc = Conv <pads=[1,1,1,1]> (s, w)\ny = Conv(c, last, b)",
        {"first": real(8, 4, 3, 3), "w": weights(36, 8, 3, 3), "last": real(12, 36, 1, 1), "b": real(12)},
    ),
    "nothing left to quantise": (
        "a = Conv <pads=[1,1,1,1]> (x, w)\nr = Relu(a)\ny = Conv(r, v)",
        {"w": weights(64, 4, 3, 3) * np.float32(0.5), "v": weights(64, 64, 3, 3)},
    ),
}


def converted(graph: tuple[str, dict[str, Array]], folder: Path, **options: Any) -> tuple[Conversion, Path]:
    text, constants = graph
    source = folder / "float.onnx"
    ir.save(parse(text, **constants), source)
    return convert(source, folder / "binary.onnx", **options), source


def verified(model: Path, source: Path) -> Verification:
    return verify(model, source, data=INPUTS, reference_samples=1, isas=library_info().isas[:1])


def flip_a_weight(path: Path) -> None:
    model = onnx.load(path)
    node = next(node for node in model.graph.node if is_binary_layer(node) or node.op_type == "UnpackWeights")
    name = node.input[1 if is_binary_layer(node) else 0]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    words = numpy_helper.to_array(tensor).copy()
    words[tuple(0 for _ in words.shape)] ^= 2
    tensor.CopyFrom(numpy_helper.from_array(words, name))
    onnx.save(model, path)


@pytest.mark.parametrize("name", GRAPHS)
def test_it_is_converted_and_proven(name: str, tmp_path: Path) -> None:
    conversion, source = converted(GRAPHS[name], tmp_path, strict=True)
    assert len(conversion.binary_layers) == 1
    result = verified(conversion.output, source)
    assert result.passed, result.failures
    flip_a_weight(conversion.output)
    assert not verified(conversion.output, source).passed


@pytest.mark.parametrize("name", EDGES)
def test_eight_bit_edges(name: str, tmp_path: Path) -> None:
    conversion, source = converted(EDGES[name], tmp_path, calibration=INPUTS)
    result = verified(conversion.output, source)
    assert result.passed, result.failures
    flip_a_weight(conversion.output)
    assert not verified(conversion.output, source).passed


def test_a_tie_is_one_of_the_sample_alone() -> None:
    assert tie_margin(np.float32([1, 1, 0]), np.float32([1, 1, 0])) == 0
    assert tie_margin(np.float32([1, 1 + 1e-6, 0]), np.float32([1 + 1e-6, 1, 0])) < 1e-5
    # A tie of the reference excuses no output but its own.
    assert tie_margin(np.float32([1, 5, 0.2]), np.float32([1, 1 - 1e-6, 0])) > 1
    # Nor does a close output excuse a class that the reference is sure of.
    assert tie_margin(np.float32([0.9, 1, 0]), np.float32([1, 0.9, 0])) == pytest.approx(0.1, rel=1e-3)
