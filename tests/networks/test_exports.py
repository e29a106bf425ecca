"""Models of Larq, Brevitas and bitorch as tf2onnx, QONNX and PyTorch's two exporters wrote them (see tests/exports)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnn_deploy.conversion import Conversion, convert
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info, load_session

EXPORTS = Path(__file__).parents[1] / "exports"
BINARY_LAYERS = {
    "larq_one_padding": 3,
    "larq_zero_padding": 3,
    "larq_alpha": 3,
    "larq_swish_sign": 3,
    "larq_quicknet": 5,
    "larq_heaviside": 3,
    "larq_ternary_weights": 3,
    "larq_dorefa_2_bits": 3,
    "larq_dorefa_3_bits": 3,
    "brevitas_bipolar": 3,
    "brevitas_2_bits": 3,
    "bitorch_dynamo": 3,
    "bitorch_torchscript": 3,
}
"""How many layers have binary weights and binary inputs: all of them must be found."""


def converted(name: str, folder: Path) -> Conversion:
    return convert(EXPORTS / f"{name}.onnx", folder / "binary.onnx")


def verified(name: str, model: Path) -> Verification:
    source, data = EXPORTS / f"{name}.onnx", EXPORTS / f"{name}.npz"
    return verify(model, source, data=data, reference_samples=1, isas=library_info().isas[:1])


@pytest.mark.parametrize("name", BINARY_LAYERS)
def test_every_binary_layer_is_found_and_exact(name: str, tmp_path: Path) -> None:
    conversion = converted(name, tmp_path)
    assert len(conversion.binary_layers) == BINARY_LAYERS[name]
    assert not [decline for decline in conversion.left_float if decline.has_sign_input]
    # All of them say what they read: a sign, or levels.
    assert all(layer.activation for layer in conversion.layers if layer.status.startswith("binary"))
    result = verified(name, conversion.output)
    assert result.passed, result.failures
    # What the framework itself computed, before any exporter had its hands on it.
    with np.load(EXPORTS / f"{name}.npz") as data:
        inputs, expected = data["x"], data["output"]
    session = load_session(conversion.output)
    name_in = session.get_inputs()[0].name
    # QONNX fixes the batch.
    output = np.concatenate([session.run(None, {name_in: image[None]})[0] for image in inputs])
    np.testing.assert_allclose(output, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", BINARY_LAYERS)
def test_one_flipped_weight_bit_shows(name: str, tmp_path: Path) -> None:
    conversion = converted(name, tmp_path)
    model = onnx.load(conversion.output)
    layer = next(node for node in model.graph.node if node.name == conversion.binary_layers[0])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == layer.input[1])
    words = numpy_helper.to_array(tensor).copy()
    words[(3, *[0] * (words.ndim - 1))] ^= 1 << 7
    tensor.CopyFrom(numpy_helper.from_array(words, tensor.name))
    onnx.save(model, conversion.output)
    result = verified(name, conversion.output)
    assert not result.passed and any(layer.name in line for line in result.failures)


def test_binary_weights_on_real_inputs(tmp_path: Path) -> None:
    conversion = converted("larq_binary_weights", tmp_path)
    assert (len(conversion.binary_layers), len(conversion.binary_weights)) == (0, 3)
    assert conversion.output.stat().st_size < (EXPORTS / "larq_binary_weights.onnx").stat().st_size / 3
    result = verified("larq_binary_weights", conversion.output)
    assert result.passed, result.failures
    model = onnx.load(conversion.output)
    packed = next(node.input[0] for node in model.graph.node if node.op_type == "UnpackWeights")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == packed)
    words = numpy_helper.to_array(tensor).copy()
    words[3, 0] ^= 1 << 7
    tensor.CopyFrom(numpy_helper.from_array(words, packed))
    onnx.save(model, conversion.output)
    assert not verified("larq_binary_weights", conversion.output).passed
