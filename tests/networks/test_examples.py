"""The trained networks of examples/: what their logs say, and what the binary models do."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from bnn_deploy.conversion import convert
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info, load_session

NIN = Path(__file__).parents[2] / "examples" / "nin"
CHECKPOINT = NIN / "nin.pth.tar"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nin") / "nin.onnx"
    conversion = convert(CHECKPOINT, path, arch="nin")
    assert len(conversion.binary_layers) == 7
    return path


def verified(model: Path, samples: int) -> Verification:
    isas = library_info().isas[:1]
    data = NIN / "cifar10_100.npz"
    return verify(model, CHECKPOINT, data=data, samples=samples, reference_samples=0, isas=isas)


def test_the_checkpoint_is_the_best_epoch_of_the_log() -> None:
    log = (NIN / "train.log").read_text()
    epochs = [float(accuracy) for accuracy in re.findall(r"test accuracy (\S+) %  ", log)]
    assert len(epochs) == 320
    best = torch.load(CHECKPOINT, weights_only=True)["best_acc"]
    assert round(best, 2) == max(epochs) >= 85


def test_the_binary_model_classifies_as_pytorch_does(model: Path) -> None:
    result = verified(model, 100)
    assert result.passed, result.failures
    for output in result.outputs:
        assert output.same_class == output.samples == 100
        # 100 images say little of 10,000, but a network that is wrongly loaded is right for one in ten.
        assert output.correct == output.reference_correct and output.correct >= 75


def test_one_flipped_weight_bit_shows(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    layer = next(node for node in proto.graph.node if node.name == "xnor.6.conv")
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == layer.input[1])
    words = numpy_helper.to_array(tensor).copy()
    words[3, 2, 2, 0] ^= 1 << 7
    tensor.CopyFrom(numpy_helper.from_array(words, tensor.name))
    onnx.save(proto, tmp_path / "flipped.onnx")
    result = verified(tmp_path / "flipped.onnx", 10)
    assert not result.passed and any("xnor.6.conv" in line for line in result.failures)


SHAPES = NIN.parent / "darknet"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "shapes.onnx"
    cfg, weights = SHAPES / "shapes_xnor.cfg", SHAPES / "shapes_xnor.weights"
    conversion = convert(cfg, path, darknet_weights=weights, decode=True, strict=True)
    assert len(conversion.binary_layers) == cfg.read_text().count("xnor=1") == 6
    return path


def found(detector: Path, mirrored: bool) -> tuple[int, int, int]:
    """How many shapes there are, how many boxes are chosen, and how many of these are of a shape."""
    spec = importlib.util.spec_from_file_location("boxes", SHAPES / "boxes.py")
    assert spec is not None and spec.loader is not None
    boxes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(boxes)
    with np.load(SHAPES / "pictures.npz") as data:
        pictures, shapes = data["input"], data["shapes"]
    places, scores = load_session(detector).run(["boxes", "scores"], {"input": pictures[..., :: -1 if mirrored else 1]})
    chosen = [(i, *box) for i in range(len(pictures)) for box in boxes.pick(places[i], scores[i])]
    right = [
        (boxes.overlap(box, shapes[(shapes[:, :2] == (i, kind)).all(1), 2:]) >= 0.5).any() for i, kind, _, box in chosen
    ]
    return len(shapes), len(chosen), sum(right)


def test_the_detector_finds_the_shapes(detector: Path) -> None:
    shapes, boxes, right = found(detector, mirrored=False)
    assert shapes == boxes == right
    shapes, boxes, right = found(detector, mirrored=True)
    assert right < boxes / 2, "the shapes are elsewhere"
