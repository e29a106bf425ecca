"""LiftSign: a sign behind a Flatten goes in front of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy import convert, verify
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.lift_sign import LiftSign
from support.graphs import assert_same, batch_norm, copy, equal, op_types, parse, run_float, samples, weights

LAYER = "s0 = Sign(x)\nc = Conv(s0, w)\nn = BatchNormalization(c, g, b, m, v)\n"


def lift(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, LiftSign()(after).count


def graph(text: str, outputs: tuple[str, ...] = ("y",), channels: int = 32) -> ir.Model:
    values = {
        "w": weights(channels, 4, 3, 3),
        **batch_norm(channels),
        "w2": weights(channels * 16, 5),
        "w3": weights(channels * 16, 7, seed=1),
        "shape": np.array([0, -1]),
        "k": np.float32(2),
    }
    read = (LAYER + text).replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parse(LAYER + text, outputs=outputs, **{key: value for key, value in values.items() if key in read})


@pytest.mark.parametrize("flatten", ["f = Flatten(n)", "f = Reshape(n, shape)"])
def test_fires(flatten: str) -> None:
    model = graph(f"{flatten}\ns = Sign(f)\ny = MatMul(s, w2)")
    after, modified = lift(model)
    assert modified == 1
    assert op_types(after)[-3:] == ["Sign", flatten.split()[2].split("(")[0], "MatMul"]
    assert equal(run_float(after, samples(model)), run_float(model, samples(model)))
    binary = to_binary(model)[0]
    assert op_types(binary) == ["Binarize", "BinaryConvThreshold", "BinaryConv", "Flatten"]
    assert_same(model, binary)


def test_fan_out() -> None:
    """Two linear layers read the sign, and something else the map."""
    text = "f = Flatten(n)\ns = Sign(f)\ny = MatMul(s, w2)\nz = MatMul(s, w3)\nq = Relu(n)"
    model = graph(text, outputs=("y", "z", "q"))
    assert lift(model)[1] == 1
    binary = to_binary(model)[0]
    assert op_types(binary).count("BinaryConv") == 3
    x = samples(model)
    assert equal(run_float(lift(model)[0], x), run_float(model, x))


def test_shared_flatten() -> None:
    """A float layer reads the Flatten, which it keeps."""
    model = graph("f = Flatten(n)\ns = Sign(f)\ny = MatMul(s, w2)\nz = MatMul(f, w3)", outputs=("y", "z"))
    after, modified = lift(model)
    assert (modified, op_types(after).count("Flatten")) == (1, 2)
    assert equal(run_float(after, samples(model)), run_float(model, samples(model)))


@pytest.mark.parametrize(
    "text",
    [
        "f = Flatten(n)\ns = Sign(f)\ny = Mul(s, k)",  # no linear layer
        "f = Flatten(n)\ns = Sign(f)\ny = MatMul(s, w2)\nz = Mul(s, k)",  # something else too
        "f = Flatten <axis=2> (n)\ny = Sign(f)",  # not the features of a sample
    ],
)
def test_does_not_fire(text: str) -> None:
    assert lift(graph(text, outputs=("y", "z") if "z =" in text else ("y",)))[1] == 0


def test_does_not_fire_for_few_channels() -> None:
    """A picture of one channel would be one bit per word."""
    assert lift(graph("f = Flatten(n)\ns = Sign(f)\ny = MatMul(s, w2)", channels=31))[1] == 0


def test_verify_finds_the_flat_tensor(tmp_path: Path) -> None:
    model = graph("f = Flatten(n)\ns = Sign(f)\ny = MatMul(s, w2)")
    convert(model, tmp_path / "binary.onnx")
    x = samples(model, 16)
    proof = verify(tmp_path / "binary.onnx", model, data=x)
    assert proof.passed, proof.failures
    assert [layer.source for layer in proof.layers if layer.kind == "bits"] == ["s0", "s"]
    wrong = copy(model)
    value = wrong.graph.initializers["b"]
    value.const_value = ir.tensor(np.array(constant(value))[::-1].copy(), name="b")
    convert(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", model, data=x, reference_samples=0).passed


def test_does_not_fire_on_rows() -> None:
    """[N, T, C] as [N * T, C], whose first sizes are both unknown: PointNet's layers, with 32 points or more."""
    model = parse(
        "f = Reshape(x, rows)\ns = Sign(f)\na = MatMul(s, w)\ny = Reshape(a, back)",
        x=("N", 40, 33),
        w=weights(33, 7),
        rows=np.array([-1, 33]),
        back=np.array([-1, 40, 7]),
    )
    assert lift(model)[1] == 0
    binary = to_binary(model)[0]
    assert op_types(binary).count("BinaryConv") == 1 and "MatMul" not in op_types(binary)
    assert_same(model, binary)
