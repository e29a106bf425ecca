"""XNOR-Net with K, from the module to the bundle's golden results: small networks of the blocks of `xnor-alexnet`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnn_deploy.architectures import XnorAlexNet
from bnn_deploy.architectures.xnor_alexnet import XnorConv2d
from bnn_deploy.conversion import Conversion, convert
from bnn_deploy.errors import BnnDeployError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.outcome import display_name
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import library_info
from support import networks
from support.graphs import batch_norm, eighths, op_types, parse, run_binary, run_float, weights

BINARY = ("1", "3", "4")
"""The names of the small network's binary layers."""


class Small(nn.Module):
    """A float convolution, three blocks, of which the last covers its whole input, and a float layer."""

    input_shape = (3, 14, 14)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 40, 3),
            XnorConv2d(40, 33, 3, padding=1),
            nn.MaxPool2d(2),
            XnorConv2d(33, 64, 3, padding=1),
            XnorConv2d(64, 50, 6),
            nn.Flatten(),
            nn.Linear(50, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


@dataclass(frozen=True)
class Converted:
    module: Small
    conversion: Conversion
    images: NDArray[np.float32]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    torch.manual_seed(5)
    module = Small()
    networks.calibrate(module, [], networks.images(module.input_shape, 32), seed=5)
    for block in module.modules():
        if isinstance(block, XnorConv2d):
            block.bn.weight.data[::3] *= -1  # a trained gamma may be negative
    folder = tmp_path_factory.mktemp("xnor")
    conversion = convert(module, folder / "small.onnx", float_output=folder / "float.onnx", strict=True)
    return Converted(module, conversion, networks.images(module.input_shape, 12, first=500).numpy())


def broken(path: Path, target: Path, op_type: str, place: int, factor: float = 1.5) -> Path:
    """A copy of a model with one constant of its first operator of a type changed in its first value."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == op_type)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[place])
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] = array.flat[0] ^ 1 if array.dtype == np.uint32 else array.flat[0] * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, target)
    return target


# --- the module -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_block_is_equation_11() -> None:
    torch.manual_seed(1)
    block = XnorConv2d(8, 6, 3, padding=1).eval()
    block.bn.running_mean.normal_()  # type: ignore[union-attr]
    block.weight[0, 0, 0, 0] = 0  # the paper's sign(0) is +1
    x = torch.randn(2, 8, 5, 7)
    i = nn.functional.batch_norm(x, block.bn.running_mean, block.bn.running_var, eps=1e-4)
    box = torch.full((1, 1, 3, 3), 1 / 9)
    k = nn.functional.conv2d(i.abs().sum(1, keepdim=True) / 8, box, padding=1)
    signs = torch.where(block.weight < 0, -1.0, 1.0)
    alpha = block.weight.abs().mean((1, 2, 3)).reshape(1, -1, 1, 1)
    expected = nn.functional.conv2d(i.sign(), signs, padding=1) * k * alpha
    assert torch.allclose(block(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(block(x), expected / k, rtol=1e-1)


def test_gradients_reach_the_latent_weights_and_the_input() -> None:
    torch.manual_seed(1)
    block = XnorConv2d(4, 3, 3)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    block(x).square().sum().backward()
    assert block.weight.grad is not None and block.weight.grad.abs().min() > 0
    assert x.grad is not None and x.grad.abs().max() > 0


def test_the_alexnet_of_the_paper() -> None:
    with torch.device("meta"):
        network = XnorAlexNet().eval()
        assert network(torch.empty(2, *network.input_shape)).shape == (2, 1000)
    blocks = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, XnorConv2d)]
    convolutions = [(256, 96, 5, 5), (384, 256, 3, 3), (384, 384, 3, 3), (256, 384, 3, 3)]
    assert blocks == [*convolutions, (4096, 256, 6, 6), (4096, 4096, 1, 1)]
    assert network.binary_weights() == []  # binarised in the forward pass


def test_the_alexnet_of_the_paper_converts(tmp_path: Path) -> None:
    """With fewer outputs of its fully connected layers, which are most of its weights and so of this test's time."""
    torch.manual_seed(0)
    network = XnorAlexNet()
    network.features[10], network.features[11] = XnorConv2d(256, 64, 6), XnorConv2d(64, 48, 1)
    network.classifier = nn.Sequential(nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    networks.calibrate(network, [], networks.images(network.input_shape, 4), seed=0)
    images = networks.images(network.input_shape, 1, first=500).numpy()
    conversion = convert(network, tmp_path / "alexnet.onnx", strict=True)
    assert conversion.binary_layers == tuple(f"features.{i}" for i in (4, 6, 7, 8, 10, 11))
    result = verify(conversion.output, network, data=images, isas=[library_info().selected], reference_samples=0)
    assert result.passed, result.failures
    assert sum(layer.kind == "bits" for layer in result.layers) == 6


# --- conversion and verification ------------------------------------------------------------------------------------


def test_every_binary_layer_and_every_k_is_found(small: Converted) -> None:
    assert small.conversion.binary_layers == tuple(f"layers.{i}" for i in BINARY)
    assert [decline.has_sign_input for decline in small.conversion.left_float] == [False, False]
    types = [node.op_type for node in onnx.load(small.conversion.output).graph.node]
    assert types.count("BinarizeAbsMean") == types.count("BinaryConvScaled") == 3
    assert not {"Abs", "ReduceMean", "Sign", "Mul", "BatchNormalization", "Binarize", "BinaryConv"} & set(types)


def test_the_layers_are_those_of_the_network(small: Converted) -> None:
    result = verify(small.conversion.output, small.module, data=small.images, reference_samples=1)
    assert result.passed, result.failures
    assert {layer.source.rstrip("_0123456789") for layer in result.layers} == {"sign", "mean", "mul", "linear"}
    means = [op for op in result.operators if op.tolerance]
    assert len(means) == 3 and all(op.node.endswith("(output 1)") and op.tolerance < 5e-6 for op in means)
    assert all(layer.relative_error < 1e-5 for layer in result.layers)
    assert json.dumps(result.to_json())


@pytest.mark.parametrize(
    ("op_type", "place"), [("BinarizeAbsMean", i) for i in (1, 2, 3)] + [("BinaryConvScaled", i) for i in (1, 2)]
)
def test_verify_catches_a_wrong_constant(small: Converted, op_type: str, place: int, tmp_path: Path) -> None:
    model = broken(small.conversion.output, tmp_path / "broken.onnx", op_type, place)
    result = verify(model, small.module, data=small.images, isas=[library_info().selected], reference_samples=0)
    assert not result.passed
    assert not [op for op in result.operators if not op.passed]  # kernel and body agree on it


def test_operators_are_compared_within_the_bound_of_a_mean(small: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that leaves out the division by C is no rounding."""
    from bnn_deploy.proof import pieces

    selected = [library_info().selected]
    monkeypatch.setattr(pieces, "load_model", wrong_mean)
    result = verify(small.conversion.output, small.module, data=small.images, isas=selected, reference_samples=0)
    wrong = {op.node for op in result.operators if not op.passed}
    assert len(wrong) == 3 and all(name.endswith("(output 1)") for name in wrong)


def wrong_mean(path: Path) -> onnx.ModelProto:
    """The model with function bodies whose mean is a hundred-thousandth too large."""
    model = onnx.load(path)
    (body,) = (function for function in model.functions if function.name == "BinarizeAbsMean")
    for index, node in enumerate(body.node):
        if node.op_type == "Abs":
            number = onnx.numpy_helper.from_array(np.float32(1.00001))
            constant = onnx.helper.make_node("Constant", [], ["larger"], value=number)
            product = onnx.helper.make_node("Mul", [node.output[0], "larger"], ["product"])
            for later in body.node:
                later.input[:] = ["product" if name == node.output[0] else name for name in later.input]
            body.node.insert(index + 1, product)
            body.node.insert(index + 1, constant)
            return model
    raise AssertionError("there is no Abs")


BOX = np.full((1, 1, 3, 3), 1 / 9, np.float32)
BLOCK = """
n = BatchNormalization(x, g, b, m, v)
a0 = Abs(n)
a = ReduceMean(a0, axes)
s = Sign(n)
c = Conv <pads=[1,1,1,1]> (s, w)
k = Conv <pads=[1,1,1,1]> (a, box)
"""


def block(last: str, **extra: NDArray[np.float32]) -> ir.Model:
    axes = np.array([1])
    return parse(BLOCK + last, ("N", 8, 9, 9), axes=axes, box=BOX, w=weights(6, 8, 3, 3), **batch_norm(8), **extra)


@pytest.mark.parametrize(
    "last",
    ["y = Mul(c, k)", "y = Mul(k, c)", "d = Mul(c, alpha)\ny = Mul(d, k)", "f = Mul(alpha, k)\ny = Mul(f, c)"],
)
def test_k_as_a_box_convolution_in_onnx(last: str) -> None:
    """In any order of the products; the box has two values but a real input, and was never meant to be binary."""
    extra = {"alpha": eighths(1, 6, 1, 1)} if "alpha" in last else {}
    model = block(last, **extra)
    binary, left_float, _ = to_binary(model)
    assert sorted(op_types(binary)) == ["BinarizeAbsMean", "BinaryConvScaled", "Conv"]
    (decline,) = left_float
    assert not decline.has_sign_input
    assert decline.reason.endswith("which scales that layer (K of XNOR-Net)")
    x = np.random.default_rng(2).standard_normal((5, 8, 9, 9)).astype(np.float32)
    (expected,) = run_float(model, x)
    for kernels in (False, True):
        (got,) = run_binary(binary, x, kernels)
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_strict_takes_a_network_with_a_box(tmp_path: Path) -> None:
    proto = ir.to_proto(block("y = Mul(c, k)"))
    assert convert(proto, tmp_path / "box.onnx", strict=True).binary_layers
    real = ir.to_proto(
        parse(
            "s = Sign(x)\nc = Conv(s, w)\ny = Conv(s, u)", ("N", 8, 9, 9), w=weights(6, 8, 3, 3), u=eighths(1, 8, 3, 3)
        )
    )
    with pytest.raises(BnnDeployError):
        convert(real, tmp_path / "real.onnx", strict=True, weights="as-is")


def test_eight_bit_edges_leave_the_box_in_float(tmp_path: Path) -> None:
    text = f"x0 = Conv <pads=[1,1,1,1]> (input, w0)\n{BLOCK.replace('(x, g', '(x0, g')}y0 = Mul(c, k)\ny = Conv(y0, w1)"
    constants = {"w0": eighths(8, 8, 3, 3), "w1": eighths(5, 6, 1, 1), "axes": np.array([1]), "box": BOX}
    text = text.replace("(input,", "(x,")
    model = parse(text, ("N", 8, 9, 9), w=weights(6, 8, 3, 3), **constants, **batch_norm(8))
    x = np.random.default_rng(2).standard_normal((8, 8, 9, 9)).astype(np.float32)
    output = tmp_path / "int8.onnx"
    convert(ir.to_proto(model), output, calibration=x)
    nodes = onnx.load(output).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    convolutions = {node.name: node.input[0] in dequantized for node in nodes if node.op_type == "Conv"}
    assert list(convolutions.values()) == [True, False, True]


# --- the other commands ---------------------------------------------------------------------------------------------


def test_inspect_knows_the_operators(small: Converted) -> None:
    report = inspect_model(small.conversion.output)
    layers = {layer.name: layer for layer in report.layers}
    scaled = layers["layers.1"]
    assert scaled.output.shape == ("batch", 33, 12, 12) and scaled.binary_macs == 40 * 9 * 33 * 144
    mean = next(layer for layer in report.layers if layer.op_type == "BinarizeAbsMean")
    assert (mean.output.shape, mean.output_bits) == (("batch", 12, 12, 2), 40)
    assert report.uncounted == ()


def test_profile_runs(small: Converted) -> None:
    result = profile(small.conversion.output, runs=3)
    assert {"BinarizeAbsMean", "BinaryConvScaled"} <= {node.op_type for node in result.model.nodes}


def test_golden_results(small: Converted, tmp_path: Path) -> None:
    model, golden = small.conversion.output, tmp_path / "golden.npz"
    write_golden(make_golden(model, small.images), golden)
    result = check_golden(model, golden)
    assert result.passed, result.failures
    assert [layer.layer for layer in result.float_layers] == [f"layers.{i}" for i in BINARY]
    assert all(layer.near is not None and layer.made_from == "floats" for layer in result.layers)


@pytest.mark.parametrize(
    ("op_type", "place"),
    [("BinarizeAbsMean", 1), ("BinarizeAbsMean", 2), ("BinaryConvScaled", 1), ("BinaryConvScaled", 2)],
)
def test_golden_results_catch_a_wrong_constant(
    small: Converted, op_type: str, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine would that computes with another number than the file holds."""
    golden, content = tmp_path / "golden.npz", small.conversion.output.read_bytes()
    write_golden(make_golden(small.conversion.output, small.images), golden)
    model = broken(small.conversion.output, tmp_path / "broken.onnx", op_type, place)

    class Digest:
        def hexdigest(self) -> str:
            return real(content).hexdigest()

    from bnn_deploy.proof.golden import check

    real = check.hashlib.sha256
    monkeypatch.setattr(check.hashlib, "sha256", lambda _: Digest())
    assert not check_golden(model, golden, body_samples=0).passed


def test_names_are_unique(small: Converted) -> None:
    model = ir.load(small.conversion.output)
    assert len({display_name(node) for node in model.graph}) == len(list(model.graph))
    assert {node.domain for node in model.graph} == {"", DOMAIN}
