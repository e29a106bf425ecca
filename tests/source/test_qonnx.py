"""QONNX's Quant in standard operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.source.onnx_file import read
from bnn_deploy.source.qonnx import QONNX


def quant_model(bits: float = 2, zero: float = 0, constant_bits: bool = True, **attributes: object) -> onnx.ModelProto:
    """x -> Quant -> Conv with ±0.5."""
    weight = np.where(np.random.default_rng(0).random((8, 4, 3, 3)) < 0.5, -0.5, 0.5).astype(np.float32)
    constants = {"scale": np.float32(0.4), "zero": np.float32(zero), "w": weight}
    nodes = [
        helper.make_node("Quant", ["x", "scale", "zero", "bits"], ["q"], "quant", domain=QONNX[0], **attributes),
        helper.make_node("Conv", ["q", "w"], ["y"], "conv"),
    ]
    if constant_bits:
        constants["bits"] = np.float32(bits)
    else:
        nodes.insert(0, helper.make_node("ReduceMax", ["x"], ["bits"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(QONNX[0], 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def quantised(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    expanded = read(model)
    expanded.graph.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, None))
    session = ort.InferenceSession(expanded.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["q"], {"x": x})[0]


X = np.random.default_rng(1).uniform(-4, 4, (2, 4, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("bits", "attributes", "low", "high"),
    [
        (2, {"signed": 0}, 0, 3),
        (3, {"signed": 0, "narrow": 1}, 0, 6),
        (3, {"signed": 1}, -4, 3),
        (3, {}, -4, 3),
        (3, {"signed": 1, "narrow": 1}, -3, 3),
    ],
)
def test_the_range_of_integers(bits: int, attributes: dict[str, int], low: int, high: int) -> None:
    got = quantised(quant_model(bits, **attributes), X)
    scale = np.float32(0.4)
    assert np.array_equal(got, np.clip(np.rint(X / scale), low, high).astype(np.float32) * scale)
    assert set(np.rint(got / scale).astype(int).ravel()) == set(range(low, high + 1))


@pytest.mark.parametrize(("mode", "function"), [("CEIL", np.ceil), ("FLOOR", np.floor), ("HALF_EVEN", np.rint)])
def test_rounding_and_zero_point(mode: str, function: np.ufunc) -> None:
    got = quantised(quant_model(4, zero=2, signed=0, rounding_mode=mode), X)
    scale = np.float32(0.4)
    expected = (np.clip(function(X / scale + np.float32(2)), 0, 15) - 2).astype(np.float32) * scale
    assert np.array_equal(got, expected)
    without = quantised(quant_model(4, zero=1, signed=0, rounding_mode=mode), X)
    assert not np.array_equal(got, without), "the zero point matters"


@pytest.mark.parametrize("name", ["Quant", "IntQuant"])
def test_a_layer_behind_it_converts(name: str, tmp_path: Path) -> None:
    model = quant_model(signed=0)
    (quant,) = (node for node in model.graph.node if node.op_type == "Quant")
    quant.op_type = name
    onnx.save(model, tmp_path / "float.onnx")
    conversion = convert(tmp_path / "float.onnx", tmp_path / "binary.onnx", strict=True)
    assert conversion.binary_layers == ("conv",)
    result = verify(tmp_path / "binary.onnx", tmp_path / "float.onnx", data=X, reference_samples=1)
    assert result.passed, result.failures
    assert [layer.kind for layer in result.layers] == ["levels", "floats"]


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match=r"Quant 'quant' has rounding_mode STOCHASTIC; known: ROUND, HALF_EVEN, CEIL"):
        read(quant_model(rounding_mode="STOCHASTIC"))
    with pytest.raises(InputError, match=r"Quant 'quant': its bit width 'bits' is no constant"):
        read(quant_model(constant_bits=False))
