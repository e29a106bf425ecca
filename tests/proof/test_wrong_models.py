"""Wrong models that the equivalence proof must not let pass, and right ones that it must not fail."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof import verification
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import BEFORE, SOURCE
from bnn_deploy.runtime.session import library_info
from bnn_deploy.training import sign_ste
from support.converted import Converted

BEST = [library_info().isas[0]]


class Stack(nn.Module):
    """BatchNorm -> sign -> the given layers, on 4x8x8."""

    input_shape = (4, 8, 8)

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bn = nn.BatchNorm2d(4)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = sign_ste(self.bn(x))
        for layer in self.layers:
            x = layer(x)
        return x


def inputs(count: int = 16) -> Any:
    return np.random.default_rng(3).standard_normal((count, 4, 8, 8)).astype(np.float32)


def change(model: Path, name: str, edit: Any) -> Path:
    """A copy of a model with one constant changed."""
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name.endswith(name))
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(edit(array), tensor.name))
    path = model.with_name("changed.onnx")
    onnx.save(proto, path)
    return path


def prove(model: Path, module: nn.Module) -> Verification:
    return verify(model, module, data=inputs(), isas=BEST, reference_samples=1)


def test_a_wrong_filter_with_a_small_alpha(tmp_path: Path) -> None:
    conv = nn.Conv2d(4, 8, 3, bias=False)
    with torch.no_grad():  # two-valued already, alphas over four decades
        alphas = torch.logspace(-4, 0, 8).reshape(8, 1, 1, 1)
        conv.weight.copy_(torch.where(torch.rand(8, 4, 3, 3) < 0.5, -1.0, 1.0) * alphas)
    net = Stack(conv, nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    model = convert(net, tmp_path / "model.onnx", weights="xnor-centred").output
    assert prove(model, net).passed

    def flip(bits: Any) -> Any:
        bits[0] ^= np.uint32(1)
        return bits

    result = prove(change(model, "conv2d_weight_bits", flip), net)
    assert not result.passed
    assert "layer 'layers.0'" in result.failures[0]


def test_a_pool_of_signs_with_moved_padding_fails(tmp_path: Path) -> None:
    """There is no pre-activation behind a pool of signs, so no margin excuses a bit."""
    net = Stack(nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 5)).eval()
    model = convert(net, tmp_path / "model.onnx", weights="xnor-centred").output
    assert prove(model, net).passed
    proto = onnx.load(model)
    pool = next(node for node in proto.graph.node if node.op_type == "BinaryMaxPool")
    next(a for a in pool.attribute if a.name == "pads").ints[:] = [0, 0, 2, 2]
    onnx.save(proto, tmp_path / "moved.onnx")
    result = prove(tmp_path / "moved.onnx", net)
    assert not result.passed


def test_padding_same_does_not_confuse_the_names(tmp_path: Path) -> None:
    net = Stack(nn.Conv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 5)).eval()
    model = convert(net, tmp_path / "model.onnx", weights="xnor-centred").output
    assert prove(model, net).passed


def test_weights_as_is_are_verified_as_they_are(tmp_path: Path) -> None:
    net = Stack(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), Sign(), nn.Conv2d(4, 8, 3), nn.Flatten()).eval()
    with pytest.raises(InputError, match="one input channel per filter"):
        convert(net, tmp_path / "model.onnx", weights="xnor-centred")
    with torch.no_grad():
        net.layers[3].weight.copy_(net.layers[3].weight.sign() * 0.25)
    result = convert(net, tmp_path / "model.onnx", weights="as-is")
    assert result.binary_layers == ("layers.3",)
    assert prove(result.output, net).passed


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


def test_an_output_that_is_a_map_has_no_classes(tmp_path: Path) -> None:
    net = Stack(nn.Conv2d(4, 8, 3)).eval()
    result = prove(convert(net, tmp_path / "model.onnx", weights="xnor-centred").output, net)
    assert result.passed
    assert [output.same_class for output in result.outputs] == [None] * 3


def test_outputs_alone_see_a_wrong_model(lenet5: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx, a model whose classes still agree but whose outputs do not is not the same model."""
    proto: ModelProto = onnx.load(lenet5.model)
    tensor = next(t for t in proto.graph.initializer if t.name == "linear_weight_bits")
    bits = numpy_helper.to_array(tensor).copy()
    bits[:200, 0, 0, 0] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(bits, tensor.name))
    onnx.save(proto, tmp_path / "flipped.onnx")
    real = verification.importlib.util.find_spec
    monkeypatch.setattr(verification.importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    assert verify(lenet5.model, lenet5.float_model, data=lenet5.images).passed
    result = verify(tmp_path / "flipped.onnx", lenet5.float_model, data=lenet5.images)
    assert result.disagreements == []
    assert "samples have outputs within" in result.failures[0]


def test_labels_are_those_of_the_first_output_with_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded_torch: None
) -> None:
    """Also without onnx: a map in front of the scores has none."""

    class MapAndScores(nn.Module):
        input_shape = (4, 5, 5)

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 3, bias=False)
            self.second.weight.data.sign_()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.first(x)
            return features, self.second(torch.sign(features)).flatten(1)

    net, path = MapAndScores().eval(), tmp_path / "model.onnx"
    convert(net, path, weights="as-is", float_output=tmp_path / "float.onnx")
    x = np.random.default_rng(0).standard_normal((40, 4, 5, 5)).astype(np.float32)
    with torch.no_grad():
        labels = net(torch.from_numpy(x))[1].argmax(dim=1).numpy()
    labels[:10] += 1
    found = [verify(path, tmp_path / "float.onnx", data=x, labels=labels, reference_samples=0)]
    real = verification.importlib.util.find_spec
    monkeypatch.setattr(verification.importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    found.append(verify(path, tmp_path / "float.onnx", data=x, labels=labels))
    for result in found:
        assert result.passed, result.failures
        names = list(dict.fromkeys(output.output for output in result.outputs))
        assert [(output.output, output.correct) for output in result.outputs[:2]] == [(names[0], None), (names[1], 30)]
        assert [(one.output, one.correct) for one in result.classification] == [(names[1], 30)] * 2


def test_inputs_that_are_not_numbers_are_refused(lenet5: Converted) -> None:
    images = lenet5.images[:2].copy()
    images[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="the inputs hold NaN or infinity"):
        verify(lenet5.model, lenet5.float_model, data=images)


def test_an_output_does_not_overwrite_the_checkpoint(lenet5: Converted, tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.pth"
    checkpoint.write_bytes(lenet5.checkpoint.read_bytes())
    with pytest.raises(InputError, match="is the checkpoint itself"):
        convert(checkpoint, checkpoint, arch="lenet5")


class Cropping(nn.Module):
    """A network that needs images of at least 7x7."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("weight", torch.randn(8, 4, 3, 3).sign())
        self.linear = nn.Linear(8 * 5 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(sign_ste(self.bn(x)), self.weight)
        return self.linear(x[..., :5, :5].flatten(1))


def test_a_size_that_the_network_does_not_take_is_named_with_its_file(tmp_path: Path, capfd: Any) -> None:
    module = Cropping().eval()
    model, original, data = (tmp_path / name for name in ("m.onnx", "f.onnx", "small.npy"))
    convert(module, model, input_shape=(4, None, None), float_output=original)
    np.save(data, np.zeros((3, 4, 6, 6), np.float32))
    for against, runs in ((module, "PyTorch"), (original, "onnxruntime")):
        message = rf"^{re.escape(str(data))}: {runs} .*does not run on inputs \[1, 4, 6, 6\]: .*another size$"
        with pytest.raises(InputError, match=message) as error:
            verify(model, against, data=data)
        assert "200" in str(error.value), "the number of features"
    assert capfd.readouterr().err == "", "onnxruntime logs nothing"
    assert verify(model, module, data=inputs(), isas=BEST).passed, "8x8"


@pytest.mark.parametrize("text", ["5", "[]", "[[1]]"])
def test_metadata_of_another_form_is_an_error(text: str, lenet5: Converted, tmp_path: Path) -> None:
    """JSON, but no place in the float graph."""
    proto = onnx.load(lenet5.model)
    places = [node for node in proto.graph.node if any(entry.key == SOURCE for entry in node.metadata_props)]
    assert places
    for node in places:
        node.metadata_props.add(key=BEFORE, value=text)
    onnx.save(proto, tmp_path / "wrong.onnx")
    with pytest.raises(InputError, match=r"wrong.onnx: its metadata is damaged"):
        verify(tmp_path / "wrong.onnx", lenet5.float_model, samples=1)
    with pytest.raises(InputError, match=r"wrong.onnx: its metadata is damaged"):
        make_golden(tmp_path / "wrong.onnx", lenet5.images[:1])
