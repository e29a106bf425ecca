"""DequantizeParameters and RestoreQuantized: weights in few bits are floats for the passes, and stay so in the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.normalise.dequantize_parameters import DequantizeParameters
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import assert_same, copy, equal, op_types, parse, run_binary, run_float, samples, weights

W = weights(8, 4, 3, 3)
FLOAT8 = numpy_helper.to_array(
    onnx.helper.make_tensor("f", TensorProto.FLOAT8E4M3FN, W.shape, W.ravel().tolist())
)  # ±1/2, which no integer is
CONSTANTS: dict[str, Any] = {
    "w": W,
    "bits": np.sign(W).astype(np.int8),
    "real": np.random.default_rng(0).integers(-90, 90, (4, 4, 3, 3)).astype(np.int8),
    "scales": np.float32([0.5, 0.25, 1, 0.125]),
    "zeros": np.zeros(4, np.int8),
    "half": np.float32(0.5),
    "five": np.int8(5),
    "shift": np.float32(60),
    "eighth": FLOAT8,
    "b_scale": np.float32([0.5, 0.25, 1, 0.125]),
}
FLOAT = (
    "f = DequantizeLinear<axis=0>(real, scales, zeros)\n"
    "c = Conv<pads=[1,1,1,1]>(x, f)\na = Add(c, shift)\ns = Sign(a)\n"
)
GRAPHS = {
    "binary weights": "s = Sign(x)\nf = DequantizeLinear(bits, half)\ny = Conv(s, f)",
    "weights of float8": "s = Sign(x)\nf = DequantizeLinear(eighth, half)\ny = Conv(s, f)",
    "float weights": f"{FLOAT}y = Conv(s, w)",
    "an axis from behind": f"{FLOAT.replace('axis=0', 'axis=-4')}y = Conv(s, w)",
    "the default axis, of as many": f"{FLOAT.replace('<axis=0>', '')}y = Conv(s, w)",
    "weights of two layers": (
        "f = DequantizeLinear(bits, half)\ns = Sign(x)\na = Conv(s, f)\nb = Conv(x, f)\ny = Add(a, b)"
    ),
    "a number that is its zero point": (
        "k = DequantizeLinear(five, half, five)\ns = Sign(x)\nc = Conv(s, w)\ny = Max(c, k)"
    ),
    "a name that a binary layer takes": f"{FLOAT.replace('scales', 'b_scale')}b = Conv(s, w)\ny = Relu(b)",
}


def model(text: str, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parse(text, outputs=outputs, **{key: value for key, value in CONSTANTS.items() if key in read})


@pytest.mark.parametrize("name", GRAPHS)
def test_computes_the_same(name: str) -> None:
    before = model(GRAPHS[name])
    binary, _, _ = to_binary(before)
    assert op_types(binary).count("BinaryConv") == 1
    assert op_types(binary).count("DequantizeLinear") == ("Conv" in op_types(binary) or "Max" in op_types(binary))
    assert_same(before, binary)


@pytest.mark.parametrize("name", ["binary weights", "float weights"])
def test_weights_that_are_an_output_too(name: str) -> None:
    before = model(GRAPHS[name], outputs=("y", "f"))
    binary, _, _ = to_binary(before)
    assert "BinaryConv" in op_types(binary)
    assert_same(before, binary)


def test_a_changed_scale_is_seen() -> None:
    """What is restored is what the float layer computes with."""
    before = model(GRAPHS["float weights"])
    binary, _, _ = to_binary(before)
    scale = binary.graph.initializers["scales"]
    scale.const_value = ir.tensor(np.float32([0.5, 0.25, 1, 0.25]), name="scales")
    x = samples(before)
    assert not equal(run_binary(binary, x, kernels=True), run_float(before, x))


def test_levels_in_float8_are_not_evaluated() -> None:
    """Its rounding is none of integers; the layer stays float, with a reason."""
    zero = numpy_helper.to_array(onnx.helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    text = "g = Greater(x, half)\nq = Cast<to=1>(g)\na = QuantizeLinear(q, half, zero)\n"
    before = parse(f"{text}b = DequantizeLinear(a, half, zero)\ny = Conv(b, w)", w=W, half=np.float32(0.5), zero=zero)
    binary, (left,), _ = to_binary(before)
    assert left.node == "y" and left.reason
    assert equal(run_binary(binary, samples(before), kernels=True), run_float(before, samples(before)))


@pytest.mark.parametrize(
    "text",
    [
        "f = DequantizeLinear(bits, k)\ny = Conv(x, f)",  # a scale that is computed
        "q = QuantizeLinear(x, half)\nf = DequantizeLinear(q, half)\ny = Conv(f, w)",
    ],
)
def test_does_not_fire_on_what_is_computed(text: str) -> None:
    before = model("k = ReduceMean<keepdims=0>(x)\n" + text)
    after = copy(before)
    assert DequantizeParameters()(after).modified is False
    assert op_types(after) == op_types(before)


def test_values() -> None:
    after = copy(model(GRAPHS["float weights"]))
    DequantizeParameters()(after)
    found = constant(after.graph.initializers["f"])
    expected = CONSTANTS["real"].astype(np.float32) * CONSTANTS["scales"].reshape(4, 1, 1, 1)
    assert found is not None and np.array_equal(found, expected)
