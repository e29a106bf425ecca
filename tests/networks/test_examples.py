"""The NIN that was trained on CIFAR-10: its log, its checkpoint and the binary model say the same."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from bnn_deploy.conversion import convert
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info

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
