"""`convert --web`: the float model's bits in stock onnxruntime, from a file with one bit per binary weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from bnn_deploy.conversion import Conversion, convert
from bnn_deploy.image_input import ImageInput
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.proof.verification import verify
from support.damage import Damage, flip_weight_bit
from support.networks import checkpoint, inputs

LARQ = Path(__file__).parent / "exports" / "larq_ternary_weights.onnx"


def stock(model: Path, x: NDArray[Any]) -> NDArray[Any]:
    """What onnxruntime makes of it, without the library."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(found)


def converted(folder: Path, source: Any, **options: Any) -> Conversion:
    files = {"float_output": folder / "float.onnx", "web_output": folder / "web.onnx"}
    return convert(source, folder / "m.onnx", **files, **options)


def packed(model: Path) -> int:
    return sum(node.op_type == "UnpackWeights" for node in onnx.load(model).graph.node)


@pytest.fixture(scope="module")
def lenet5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    made = converted(
        folder, checkpoint("lenet5", folder), arch="lenet5", output_names=("scores",), classes=list("abcdefghij")
    )
    assert (made.web_output, len(made.binary_layers)) == (folder / "web.onnx", 2)
    return folder


def damaged(folder: Path) -> Path:
    damage = Damage(onnx.load(folder / "web.onnx"))
    node = damage.node("bin_conv2.conv.weight")
    node.input.insert(0, "")  # of a layer the bits are the second input, of UnpackWeights the first
    flip_weight_bit(damage, node.name)
    del node.input[0]
    onnx.save(damage.model, folder / "damaged.onnx")
    return folder / "damaged.onnx"


def test_its_bits_are_the_float_models(lenet5: Path) -> None:
    x = inputs("lenet5", 8, first=500).numpy()
    expected = stock(lenet5 / "float.onnx", x)
    np.testing.assert_array_equal(stock(lenet5 / "web.onnx", x), expected)
    assert (stock(damaged(lenet5), x) != expected).any()
    assert packed(lenet5 / "web.onnx") == 2
    assert (lenet5 / "web.onnx").stat().st_size < (lenet5 / "float.onnx").stat().st_size / 10


def test_it_says_what_the_converted_model_says(lenet5: Path) -> None:
    model, web = (onnx.load(lenet5 / name) for name in ("m.onnx", "web.onnx"))
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["bnn_deploy.classes"] and {entry.key: entry.value for entry in web.metadata_props} == said
    assert (web.graph.name, web.producer_version) == (model.graph.name, model.producer_version)
    assert [info.name for info in web.graph.output] == ["scores"]
    assert {node.domain for node in web.graph.node} == {"", "bnn_deploy"}


def test_verify_judges_it(lenet5: Path, tmp_path: Path) -> None:
    source = checkpoint("lenet5", tmp_path)
    x = inputs("lenet5", 4, first=500).numpy()
    result = verify(lenet5 / "web.onnx", source, data=x, reference_samples=1)
    assert result.passed
    assert {layer.layer for layer in result.layers} >= {"bin_conv2.conv", "bin_ip1.linear"}
    wrong = verify(damaged(lenet5), source, data=x, reference_samples=1)
    assert [layer.layer for layer in wrong.layers if not layer.passed] == ["bin_conv2.conv"]


def test_images_of_bytes(tmp_path: Path) -> None:
    image = ImageInput((0.1307,), (0.3081,), "nhwc")
    converted(tmp_path, checkpoint("lenet5", tmp_path), arch="lenet5", image_input=image)
    x = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    found = stock(tmp_path / "web.onnx", x)
    np.testing.assert_array_equal(found, stock(tmp_path / "float.onnx", x))
    assert packed(tmp_path / "web.onnx") == 2
    assert (found != stock(tmp_path / "web.onnx", 255 - x)).any()


def test_weights_of_exactly_0_stay_floats_unless_they_are_filled(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, *_shape(LARQ))).astype(np.float32)
    converted(tmp_path, LARQ)
    assert packed(tmp_path / "web.onnx") == 0
    np.testing.assert_array_equal(stock(tmp_path / "web.onnx", x), stock(tmp_path / "float.onnx", x))
    converted(tmp_path, LARQ, zero_weights="plus")
    assert packed(tmp_path / "web.onnx") == 3
    assert (stock(tmp_path / "web.onnx", x) != stock(tmp_path / "float.onnx", x)).any()
    np.testing.assert_allclose(stock(tmp_path / "web.onnx", x), stock(tmp_path / "m.onnx", x), rtol=1e-4, atol=1e-4)
    result = verify(tmp_path / "web.onnx", LARQ, samples=4, reference_samples=1)
    assert result.layers and all(layer.passed for layer in result.layers)


def _shape(model: Path) -> tuple[int, ...]:
    (info,) = onnx.load(model).graph.input
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)[1:]


def test_signs_keep_their_0(tmp_path: Path) -> None:
    """The converted model's are +1 there; those of the float model's own operators are not touched."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.sign(torch.randn(16, 16, 3, 3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(torch.sign(x), self.weight)

    converted(tmp_path, Net(), input_shape=(16, 5, 5), preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)))
    x = np.random.default_rng(0).integers(-1, 2, (2, 16, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(stock(tmp_path / "web.onnx", x), stock(tmp_path / "float.onnx", x))
    assert (stock(tmp_path / "m.onnx", x) != stock(tmp_path / "float.onnx", x)).any()
