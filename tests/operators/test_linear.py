"""BinaryLinear: its body and kernels against plain numpy, exactly; what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.runtime.session import library_info, load_session
from support.bodies import Array, equal, make_model, run_everywhere

SHAPES = [(3,), (2, 5), (2, 3, 7), (1, 2, 1, 4), (0, 5)]


def linear_model(x: Array, w: Array, scale: Array, bias: Array, channels: int) -> bytes:
    node = helper.make_node(
        "BinaryLinear", ["X", "W", "scale", "bias"], ["Y"], "linear", domain=DOMAIN, channels=channels
    )
    return make_model([node], x, {"W": w, "scale": scale, "bias": bias}, {"Y": TensorProto.FLOAT}, x.ndim)


def everywhere(model: bytes, x: Array) -> dict[str, Array]:
    """Where the bodies run, and on each instruction set of this machine."""
    results = {place: outputs[0] for place, outputs in run_everywhere(model, x).items()} if x.size else {}
    for isa in library_info().isas:
        before = library_info().calls[isa]
        results[isa] = load_session(model, 1, isa=isa).run(None, {"X": x})[0]
        assert library_info().calls[isa] > before or not x.size
    return results


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 200])
@pytest.mark.parametrize("lead", SHAPES, ids=str)
def test_against_numpy(lead: tuple[int, ...], channels: int, rng: np.random.Generator) -> None:
    outputs = 37
    signs, filters = rng.random((*lead, channels)) < 0.5, rng.random((outputs, channels)) < 0.5
    scale, bias = (rng.standard_normal(outputs).astype(np.float32) for _ in range(2))
    x = pack_bits(signs)
    acc = (np.where(signs, 1, -1) @ np.where(filters, 1, -1).T).astype(np.float32)
    expected = scale * acc + bias
    w = pack_bits(filters)
    for place, got in everywhere(linear_model(x, w, scale, bias, channels), x).items():
        assert equal(got, expected), place
    if x.size == 0:
        return
    wrong = w.copy()
    wrong[5, (channels - 1) // 32] ^= np.uint32(1) << np.uint32((channels - 1) % 32)
    for place, got in everywhere(linear_model(x, wrong, scale, bias, channels), x).items():
        assert not equal(got, expected), place


def fails(model: bytes, x: Array) -> str:
    with pytest.raises(Exception) as error:  # onnxruntime's exception types are not public
        load_session(model).run(None, {"X": x})
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 65}, "channels = 65 needs [output channels, ceil(65 / 32) = 3]"),
        ({"channels": 40}, "input W has bits set beyond channel 39"),
        ({"scale": np.ones(3, np.float32)}, "input scale has shape [3], but W has 4 output channels and needs [4]"),
        ({"bias": np.ones((4, 1), np.float32)}, "input bias has shape [4,1], but W has 4 output channels"),
    ],
    ids=str,
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    constants: dict[str, Any] = {"w": np.full((4, 2), 2**32 - 1, np.uint32), "channels": 64}
    constants |= {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    x = np.zeros((2, 3, 2), np.uint32)
    assert linear_model(x, **constants)  # sound
    model = onnx.load_from_string(linear_model(x, **constants))
    if "channels" in change:
        model.graph.node[0].attribute[0].i = change["channels"]
    for name in change.keys() - {"channels"}:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(change[name], name))
    text = fails(model.SerializeToString(), x).replace(", ", ",")
    assert message.replace(", ", ",") in text and "linear" in text


def test_refuses_other_inputs() -> None:
    model = linear_model(np.zeros((2, 3, 2), np.uint32), np.zeros((4, 2), np.uint32), *[np.ones(4, np.float32)] * 2, 64)
    content = onnx.load_from_string(model)
    content.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "words"
    assert "input X has shape" in fails(content.SerializeToString(), np.zeros((2, 3, 3), np.uint32))
