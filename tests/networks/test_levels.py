"""Networks with 1-bit weights and activations of 2 and 3 bits, as their authors write them: converted and proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from bnn_deploy.architectures import ARCHITECTURES
from bnn_deploy.architectures.dorefa_vgg import DoReFaConv2d, quantize_activations
from bnn_deploy.conversion import convert
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.cuts import cuts
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from bnn_deploy.proof.margins import differences, magnitudes, relative_margin
from bnn_deploy.proof.pieces import load_model
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import Levels, Place
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import library_info, load_session
from support.converted import Converted
from support.networks import calibrate, images

BEST = list(library_info().isas[:1])


class HWGQ(nn.Module):
    """Half-wave Gaussian quantisation to 2 bits: 0, d, 2 d, 3 d, by comparisons."""

    step = 0.538

    def forward(self, x: Tensor) -> Tensor:
        count = (x > 0.5 * self.step).float() + (x > 1.5 * self.step).float() + (x > 2.5 * self.step).float()
        return count * self.step


class BinaryWeights(nn.Conv2d):
    """±alpha per filter, as a latent weight in front of every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        weight = torch.where(self.weight >= 0, alpha, -alpha)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class HWGQNet(nn.Module):
    """conv -> BatchNorm -> quantise -> pool, with negative gammas and a bias; groups; a residual; a linear layer."""

    input_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = BinaryWeights(24, 40, 3, padding=1), nn.BatchNorm2d(40)
        self.conv3, self.bn3 = BinaryWeights(40, 40, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(40)
        self.conv4 = BinaryWeights(40, 10, 7)
        self.pool, self.quantize = nn.MaxPool2d(3, 2, padding=1), HWGQ()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.quantize(self.bn1(self.conv1(x))))
        x = self.quantize(self.bn2(self.conv2(x)))
        x = self.quantize(self.bn3(self.conv3(x)) + x)
        return self.conv4(x).flatten(1)


class DoReFaNet(nn.Module):
    """Three bits, pools in front of the BatchNorm, and Heaviside activations in front of the last layer."""

    input_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.conv2, self.bn2 = DoReFaConv2d(20, 33), nn.BatchNorm2d(33)
        self.conv3, self.bn3 = DoReFaConv2d(33, 16), nn.BatchNorm2d(16)
        self.conv4 = BinaryWeights(16, 10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = quantize_activations(self.bn1(functional.max_pool2d(self.conv1(x), 2)), 3)
        x = quantize_activations(torch.relu(self.bn2(self.conv2(x))), 3)
        x = functional.max_pool2d(self.bn3(self.conv3(x)), 2)
        return self.conv4((x > 0).float()).flatten(1)


NETWORKS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "hwgq": (HWGQNet, ("conv2", "conv3", "conv4")),
    "dorefa": (DoReFaNet, ("conv2", "conv3", "conv4")),
}


def make(name: str, folder: Path) -> Converted:
    torch.manual_seed(0)
    module = NETWORKS[name][0]()
    calibrate(module, [], images((3, 16, 16), 48), 0)
    if name == "hwgq":
        assert isinstance(module, HWGQNet)
        module.bn2.weight.data[::3] *= -1
        module.bn1.weight.data[4] = 0
    torch.save(module, folder / "module.pt")
    conversion = convert(module, folder / f"{name}.onnx", float_output=folder / "float.onnx", strict=True)
    return Converted(folder / "module.pt", conversion, images((3, 16, 16), 8, first=300).numpy())


@pytest.fixture(scope="module")
def hwgq(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return make("hwgq", tmp_path_factory.mktemp("hwgq"))


@pytest.fixture(scope="module")
def dorefa(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return make("dorefa", tmp_path_factory.mktemp("dorefa"))


def check(converted: Converted, model: Path, samples: int = 8) -> Verification:
    return verify(model, converted.float_model, data=converted.images[:samples], isas=BEST, reference_samples=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_found_and_equivalent(name: str, request: pytest.FixtureRequest) -> None:
    """Against PyTorch itself, by all backends."""
    converted: Converted = request.getfixturevalue(name)
    assert converted.conversion.binary_layers == NETWORKS[name][1]
    assert [decline.node for decline in converted.conversion.left_float] == ["conv1"]
    module = torch.load(converted.checkpoint, weights_only=False)
    result = verify(converted.model, module, data=converted.images, reference_samples=1)
    assert result.passed, result.failures
    counts = [(count, channels) for _, count, channels in converted.conversion.constant_channels]
    assert counts == ([(1, 24)] if name == "hwgq" else []), "the channel whose gamma is 0"
    kinds = [layer.kind for layer in result.layers]
    assert kinds.count("levels") == 3
    assert all(layer.values > 0 for layer in result.layers)
    assert {operator.op_type for operator in result.operators} == {
        "DirectConv",
        "QuantizeLevels",
        "BinaryConvLevels",
    }
    assert not any("pre-activations are exactly 0" in note for note in result.notes), "levels of 0 are no exact zeros"


def test_the_levels_are_all_used(hwgq: Converted, dorefa: Converted) -> None:
    """No proof about levels that do not occur."""
    for converted, highest in ((hwgq, 3), (dorefa, 7)):
        model = load_model(converted.model)
        cut = next(cut for cut in cuts(model) if cut.levels is not None)
        assert isinstance(cut.levels, Levels)
        copy = ModelProto()
        copy.CopyFrom(model)
        copy.graph.output.append(helper.make_tensor_value_info(cut.tensor, onnx.TensorProto.UINT32, None))
        session = load_session(copy.SerializeToString(), 1)
        planes = session.run([cut.tensor], {session.get_inputs()[0].name: converted.images})[0]
        channels = {"hwgq": 24, "dorefa": 20}[converted.model.stem]
        levels = cut.decode_levels(planes, (len(planes), channels, *planes.shape[1:3]))
        assert set(np.unique(levels)) == set(range(highest + 1))


def node(model: ModelProto, op_type: str, index: int = 0) -> NodeProto:
    return [node for node in model.graph.node if node.op_type == op_type][index]


def change(model: ModelProto, name: str, edit: Callable[[np.ndarray], None]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def flip_weight_bit(model: ModelProto) -> str:
    layer = node(model, "BinaryConvLevels", 1)

    def edit(words: np.ndarray) -> None:
        words[2, 0, 0, 0] ^= 1 << 5

    change(model, layer.input[1], edit)
    return layer.name


def shift_threshold(model: ModelProto) -> str:
    def edit(thresholds: np.ndarray) -> None:
        thresholds[1, 3] = (thresholds[1, 3] + thresholds[2, 3]) / 2

    change(model, node(model, "QuantizeLevels").input[1], edit)
    return "conv1"


def swap_planes(model: ModelProto) -> str:
    """The planes change places on their way into a layer."""
    layer = node(model, "BinaryConvLevels")
    bits = next(a.i for a in layer.attribute if a.name == "bits")
    order = np.arange(bits)[::-1].copy()  # one word per plane
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    gather = helper.make_node("Gather", [layer.input[0], "order"], ["swapped"], "swap", axis=-1)
    model.graph.value_info.append(helper.make_tensor_value_info("swapped", onnx.TensorProto.UINT32, [None] * 4))
    layer.input[0] = "swapped"
    model.graph.node.insert(list(model.graph.node).index(layer), gather)
    return layer.name


def double_scale(model: ModelProto) -> str:
    def edit(scale: np.ndarray) -> None:
        scale[4] *= np.float32(1.01)

    layer = node(model, "BinaryConvLevels", 2)
    change(model, layer.input[2], edit)
    return layer.name


DAMAGES = [flip_weight_bit, shift_threshold, swap_planes, double_scale]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NETWORKS)
def test_damage_is_found_and_named(
    name: str, damage: Callable[[ModelProto], str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    converted: Converted = request.getfixturevalue(name)
    model = onnx.load(converted.model)
    layer = damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    result = check(converted, tmp_path / "damaged.onnx")
    failed = [found.layer for found in result.layers if not found.passed]
    assert failed == [layer]
    assert any(f"layer '{layer}': " in failure for failure in result.failures)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_undamaged_model_passes_the_same_check(name: str, request: pytest.FixtureRequest) -> None:
    converted: Converted = request.getfixturevalue(name)
    result = check(converted, converted.model)
    assert result.passed, result.failures


def test_a_level_may_differ_only_beside_a_threshold_that_it_passes() -> None:
    """Margins are those of the thresholds between the two levels, in units of the root mean square around each."""
    levels = Levels(2, 0.5, np.float32([[0.25], [0.75], [1.25]]))
    cut = cuts_of(levels)
    before = np.float32([[0.1, 0.3, 0.7499999, 2.0]]).T
    scale = magnitudes(before)

    def distance(threshold: float) -> np.ndarray:
        return relative_margin(before - np.float32(threshold), scale.rms(threshold))

    expected = levels_of(before, levels) * np.float32(0.5)
    assert expected.ravel().tolist() == [0, 0.5, 0.5, 1.5]
    got = np.uint32([[0, 0], [1, 0], [0, 1], [1, 1]])  # planes of one word: levels 0, 1, 2, 3
    flips = differences(cut, got, expected, before, scale)
    assert [axis.tolist() for axis in flips.places] == [[2], [0]]
    assert flips.margins[0] == distance(0.75)[2, 0] < 1e-6
    # Two levels further: the other threshold is far.
    got[2] = [1, 1]
    flips = differences(cut, got, expected, before, scale)
    assert flips.margins[0] == distance(1.25)[2, 0] > 0.1
    # A level that the reference does not have.
    three = Levels(2, 0.5, np.float32([[0.25], [0.75]]))
    flips = differences(cuts_of(three), got, np.minimum(expected, 1), before, scale)
    assert dict(zip(flips.places[0].tolist(), flips.margins, strict=True))[3] == np.inf


def cuts_of(levels: Levels) -> object:
    from bnn_deploy.proof.cuts import Cut

    return Cut("planes", Place("source"), True, (), 2, onnx.TensorProto.UINT32, levels=levels)


def levels_of(before: np.ndarray, levels: Levels) -> np.ndarray:
    return (before[np.newaxis] >= levels.columns(before.ndim)).sum(axis=0)


def test_golden_results(hwgq: Converted, tmp_path: Path) -> None:
    golden = tmp_path / "golden.npz"
    write_golden(make_golden(hwgq.model, hwgq.images[:4]), golden)
    result = check_golden(hwgq.model, golden, body_samples=1)
    assert result.passed, result.failures
    assert [layer.made_from for layer in result.layers] == ["floats"] * 3
    assert result.layers[0].layer == "conv1"
    assert result.layers[0].bits == 4 * 7 * 7 * 24 * 2
    assert {floats.layer for floats in result.float_layers} == {"conv2", "conv3", "conv4"}


@pytest.mark.parametrize("damage", [flip_weight_bit, shift_threshold])
def test_golden_results_show_damage(hwgq: Converted, damage: Callable[[ModelProto], str], tmp_path: Path) -> None:
    import dataclasses
    import hashlib

    model = onnx.load(hwgq.model)
    layer = damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    digest = hashlib.sha256((tmp_path / "damaged.onnx").read_bytes()).hexdigest()
    golden = dataclasses.replace(make_golden(hwgq.model, hwgq.images[:4]), model_sha256=digest)
    write_golden(golden, tmp_path / "golden.npz")
    result = check_golden(tmp_path / "damaged.onnx", tmp_path / "golden.npz", isas=BEST, body_samples=0)
    assert not result.passed
    assert any(f"layer '{layer}': " in failure for failure in result.failures)


def test_inspect_counts_each_plane(hwgq: Converted) -> None:
    report = inspect_model(hwgq.model)
    layers = {layer.name: layer for layer in report.layers}
    assert layers["conv2"].binary_macs == 2 * 40 * 7 * 7 * 24 * 9
    assert layers["conv3"].binary_macs == 2 * 40 * 7 * 7 * 20 * 9
    quantizer = next(layer for layer in report.layers if layer.op_type == "QuantizeLevels")
    assert quantizer.output.shape is not None
    assert quantizer.output.shape[1:] == (7, 7, 2)
    assert quantizer.output_bits == 24
    assert report.uncounted == ()


def test_profile(hwgq: Converted) -> None:
    names = {op.name for op in profile(hwgq.model, runs=2).model.ops}
    assert {"QuantizeLevels", "BinaryConvLevels"} <= names


def test_the_architecture_converts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ARCHITECTURES["dorefa-vgg"]()
    calibrate(network, [], images(network.input_shape, 16), 0)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "v.pth.tar")
    conversion = convert(tmp_path / "v.pth.tar", tmp_path / "v.onnx", arch="dorefa-vgg", strict=True)
    assert conversion.binary_layers == (*(f"convs.{i}" for i in range(5)), "linear")
    data = images(network.input_shape, 2, first=200).numpy()
    result = verify(tmp_path / "v.onnx", tmp_path / "v.pth.tar", data=data, isas=BEST, reference_samples=0)
    assert result.passed, result.failures
