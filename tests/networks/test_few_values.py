"""Networks of few levels and weights of a few values, as their authors write them: converted, proven, damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from bnn_deploy.conversion import Conversion, convert
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import library_info
from support.networks import calibrate, images

BEST = list(library_info().isas[:1])


def mean_magnitude(w: Tensor) -> Tensor:
    return w.abs().mean((1, 2, 3), keepdim=True)


class AdaBin(nn.Module):
    """Tu et al. 2022: activations {b - a, b + a}, weights {beta - alpha, beta + alpha}."""

    def activation(self, x: Tensor) -> Tensor:
        a, b = torch.tensor(0.8), torch.tensor(0.13)
        return torch.sign((x - b) / a) * a + b

    def weight(self, w: Tensor) -> Tensor:
        mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True)
        return torch.sign((w - mean) / std) * std + mean * 4


class TWN(nn.Module):
    """Li et al. 2016, on signs: weights {-alpha, 0, alpha}."""

    def activation(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)

    def weight(self, w: Tensor) -> Tensor:
        mask = (w.abs() > 0.7 * mean_magnitude(w)).float()
        return torch.sign(w) * mask * (w.abs() * mask).sum((1, 2, 3), keepdim=True) / mask.sum((1, 2, 3), keepdim=True)


class TTQ(nn.Module):
    """Zhu et al. 2017: weights {-n, 0, p}, and ternary activations."""

    def activation(self, x: Tensor) -> Tensor:
        return torch.round(torch.clamp(x, -1, 1))

    def weight(self, w: Tensor) -> Tensor:
        threshold = 0.3 * w.abs().max()
        return (w > threshold).float() * 0.31 - (w < -threshold).float() * 0.17


class ABCNet(nn.Module):
    """Lin et al. 2017: sums of two binary bases, of weights and of activations."""

    def activation(self, x: Tensor) -> Tensor:
        return sum(s * (2 * (torch.clamp(x + v, 0, 1) >= 0.5).float() - 1) for s, v in ((0.7, 0.1), (0.4, 0.9)))  # type: ignore[return-value]

    def weight(self, w: Tensor) -> Tensor:
        centred, std = w - w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True)
        return 0.11 * torch.sign(centred - 0.4 * std) + 0.07 * torch.sign(centred + 0.4 * std)


class LQNet(nn.Module):
    """Zhang et al. 2018: learned bases of two bits, ±v of each filter, 0 or v of activations."""

    def activation(self, x: Tensor) -> Tensor:
        return (x > 0.3).float() * 0.55 + (x > 0.9).float() * 0.6 + (x > 1.4).float() * 0.55

    def weight(self, w: Tensor) -> Tensor:
        v = mean_magnitude(w)
        inner = torch.where(w.abs() >= v, torch.sign(w), -torch.sign(w))
        return torch.sign(w) * v + inner * v * 0.6


class FracBNN(nn.Module):
    """Zhang et al. 2021, DoReFa-Net: two bits in [-1, 1], binary weights."""

    def activation(self, x: Tensor) -> Tensor:
        return torch.round((torch.clamp(x, -1, 1) + 1) / 2 * 3) / 3 * 2 - 1

    def weight(self, w: Tensor) -> Tensor:
        return torch.where(w >= 0, mean_magnitude(w), -mean_magnitude(w))


class Layer(nn.Conv2d):
    def __init__(self, form: nn.Module, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, 3, padding=1)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        x, w = self.form.activation(x), self.form.weight(self.weight)
        return functional.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


FORMS: dict[type[nn.Module], str] = {
    AdaBin: "binary, 1 x 1 bit planes",
    TWN: "binary, 1 x 2 bit planes",
    TTQ: "binary, 2 x 2 bit planes",
    ABCNet: "binary, 2 x 2 bit planes",
    LQNet: "binary, 2 x 2 bit planes",
    FracBNN: "binary, 2 x 1 bit planes",
}


class Net(nn.Module):
    """A layer of each form behind a BatchNorm, and a linear one of AdaBin's."""

    input_shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 45, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(45) for _ in FORMS)
        self.layers = nn.ModuleList(Layer(form(), 45, 45) for form in FORMS)
        self.last_norm, self.last = nn.BatchNorm1d(45), nn.Linear(45, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(norm(x))
        x = AdaBin().activation(self.last_norm(x.mean((2, 3))))
        w = AdaBin().weight(self.last.weight[:, :, None, None])[:, :, 0, 0]
        return functional.linear(x, w, self.last.bias)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Conversion]:
    torch.manual_seed(0)
    module = Net().eval()
    calibrate(module, [], images(module.input_shape, 48), 0)
    folder = tmp_path_factory.mktemp("few_values")
    return module, convert(module, folder / "net.onnx", float_output=folder / "float.onnx", strict=True)


def check(model: Path, against: nn.Module | Path) -> Verification:
    data = images(Net.input_shape, 4, first=300).numpy()
    return verify(model, against, data=data, isas=BEST, reference_samples=0)


def test_every_layer_is_found_and_equivalent(converted: tuple[nn.Module, Conversion]) -> None:
    module, conversion = converted
    assert conversion.binary_layers == (*(f"layers.{i}" for i in range(len(FORMS))), "node_linear")
    assert [layer.status for layer in conversion.report.layers[1:-1]] == list(FORMS.values())
    result = check(conversion.output, module)
    assert result.passed, result.failures
    activations = [layer.activation for layer in conversion.report.layers[1:-1]]
    assert activations[0] == "levels -0.67, 0.93"
    assert activations[3] == "levels -1.1, -0.3, 1.1"
    assert conversion.report.layers[5].weights.endswith("4 values per filter")


def test_damage_is_found_and_named(converted: tuple[nn.Module, Conversion], tmp_path: Path) -> None:
    """A flipped bit of the weights, or a scale that is wrong by a hundredth."""
    conversion = converted[1]
    model = onnx.load(conversion.output)
    damaged = {"layers.0": 2, "layers.1": 1, "layers.3": 1, "layers.4": 2}
    for name, index in damaged.items():
        layer = next(node for node in model.graph.node if node.name == name)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == layer.input[index])
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype == np.uint32:
            array[2, 0, 0, -1] ^= 1 << 5
        else:
            array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= np.float32(1.01)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    assert conversion.float_output is not None
    result = check(tmp_path / "damaged.onnx", conversion.float_output)
    assert [layer.layer for layer in result.layers if not layer.passed] == list(damaged)


def test_inspect_and_profile_know_the_operator(converted: tuple[nn.Module, Conversion]) -> None:
    conversion = converted[1]
    layers = {layer.name: layer for layer in inspect_model(conversion.output).layers}
    assert layers["layers.2"].binary_macs == 4 * 45 * 45 * 9 * 36
    assert "BinaryConvBases" in {op.name for op in profile(conversion.output, runs=2).model.ops}
