"""What rounding and exact zeros excuse, and what they do not."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto
from torch import nn

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.proof.margins import Magnitudes, agreeing, magnitudes, relative_margin
from bnn_deploy.proof.results import Tolerances
from bnn_deploy.proof.verification import verify
from bnn_deploy.training import binarize_weight
from support.converted import Converted, check
from support.golden_files import BEST
from support.graphs import parse, weights


class Tiny(nn.Module):
    """y = conv(sign(x * 1 + shift)), bits of 4 channels."""

    input_shape = (4, 3, 3)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bn = nn.BatchNorm2d(4, eps=0)
        self.conv = nn.Conv2d(4, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(torch.sign(self.bn(x))).flatten(1)
        return result


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[nn.Module, Path]:
    module = Tiny().eval()
    return module, convert(module, tmp_path / "tiny.onnx", weights="xnor-centred").output


def test_a_flip_within_the_margin_passes_and_is_listed(tiny: tuple[nn.Module, Path], rng: np.random.Generator) -> None:
    """The pre-activation is 1e-6 in the reference; the converted model sees -1e-6, as rounding might have it."""
    module, model = tiny
    x = rng.choice(np.float32([-1, 1]), (5, 4, 3, 3))
    x[2, 1, 0, 2] = 1e-6
    moved = copy.deepcopy(module)
    with torch.no_grad():
        moved.bn.bias[1] = -2e-6  # type: ignore[index,union-attr]
    result = verify(model, moved, data=x)
    assert result.passed, result.failures
    bits = result.layers[0]
    assert (bits.kind, bits.differing, bits.zeros) == ("bits", 1, 0)
    assert bits.margin == pytest.approx(1e-6, rel=0.1)
    assert bits.worst.startswith("worst at sample 2, channel 1, position [0, 2]: pre-activation -1e-06 (")
    # Sample 2 has another output, and if that changes its class, the flip explains it.
    assert all(d.sample == 2 and d.explained and d.layer == bits.layer for d in result.disagreements)
    assert not verify(model, moved, data=x, tolerances=Tolerances(flip_margin=1e-7)).passed


class Deep(nn.Module):
    """y = BatchNorm(conv(sign(x))) and its mean, or a binary layer of its sign: 4608 products of one magnitude."""

    input_shape = (512, 3, 4)

    def __init__(self, sign: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sign = sign
        self.weight = nn.Parameter(0.00037 * torch.sign(torch.rand(4, 512, 3, 3) - 0.02))
        self.bn = nn.BatchNorm2d(4, affine=False, momentum=None)
        self.last = nn.Parameter(torch.sign(torch.randn(3, 4, 1, 1)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y: torch.Tensor = self.bn(nn.functional.conv2d(torch.sign(x), self.weight))
        return (nn.functional.conv2d(torch.sign(y), self.last).flatten(1),) if self.sign else (y, y.mean((2, 3)))


@pytest.mark.parametrize("sign", [False, True])
def test_the_order_of_the_references_sums_is_no_error(sign: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    """The tolerances are smaller than the rounding of PyTorch's sums on this machine, a shift as large as it fails."""
    module = Deep(sign)
    x = rng.normal(2, 2, (12, 512, 3, 4)).astype(np.float32)
    with torch.no_grad():
        module(torch.from_numpy(x))
        module.eval()
        signs = torch.sign(torch.from_numpy(x))
        y = nn.functional.conv2d(signs, module.weight).flatten(2)
        exact = nn.functional.conv2d(signs.double(), module.weight.double()).flatten(2)
        off = float(((y - exact).abs().amax((0, 2)) / y.std((0, 2))).max())
        if sign:  # a threshold between a sum and the exact one, so that their bits differ
            sample, position = divmod(int((y - exact)[:, 0].abs().argmax()), y.shape[2])
            module.bn.running_mean[0] = (y + exact)[sample, 0, position] / 2  # type: ignore[index]
    model = convert(module, tmp_path / "deep.onnx", weights="as-is").output
    tolerances = Tolerances(flip_margin=off / 8, float_relative=off / 8)
    result = verify(model, module, data=x, reference_samples=1, tolerances=tolerances)
    assert result.passed, result.failures
    assert max(layer.reference_rounding for layer in result.layers) > off / 8
    assert any("comes from the order in which PyTorch" in note for note in result.notes)
    with torch.no_grad():
        module.bn.running_mean += 20 * 0.00037 if sign else off * y.std((0, 2))  # type: ignore[operator,assignment]
    result = verify(model, module, data=x, reference_samples=1, tolerances=tolerances)
    assert not result.passed


def test_a_flip_outside_the_margin_fails(tiny: tuple[nn.Module, Path], rng: np.random.Generator) -> None:
    module, model = tiny
    x = rng.choice(np.float32([-1, 1]), (5, 4, 3, 3))
    x[2, 1, 0, 2] = 1e-3
    moved = copy.deepcopy(module)
    with torch.no_grad():
        moved.bn.bias[1] = -2e-3  # type: ignore[index,union-attr]
    result = verify(model, moved, data=x)
    assert not result.passed
    assert [
        f"layer '{result.layers[0].layer}': 1 of 180 bits differ from the reference, by up to 0.001" in f
        for f in result.failures[:1]
    ] == [True]
    assert verify(model, moved, data=x, tolerances=Tolerances(flip_margin=1e-2)).passed


def test_exact_zeros_are_counted(tiny: tuple[nn.Module, Path], rng: np.random.Generator) -> None:
    module, model = tiny
    x = rng.choice(np.float32([-1, 1]), (5, 4, 3, 3))
    result = verify(model, module, data=x)
    assert (result.layers[0].zeros, result.notes) == (0, [])
    x[1, 2] = 0
    result = verify(model, module, data=x)
    assert result.layers[0].zeros == 9
    assert ["9 pre-activations are exactly 0: PyTorch's sign gives 0 there" in note for note in result.notes] == [True]
    # What reads them lies between what -1 and +1 give; so does the output, whose class is not rounding's fault.
    assert result.passed, result.failures
    assert sum(layer.behind_zeros for layer in result.layers[1:]) > 0
    assert all(d.sample == 1 and d.explained for d in result.disagreements)


def test_exact_zeros_excuse_nothing_else(tiny: tuple[nn.Module, Path], rng: np.random.Generator) -> None:
    module, model = tiny
    x = rng.choice(np.float32([-1, 1]), (5, 4, 3, 3))
    x[:, 2] = 0  # in every sample
    assert verify(model, module, data=x, tolerances=Tolerances(min_agreement=0)).passed
    wrong = copy.deepcopy(module)
    with torch.no_grad():
        wrong.conv.weight[0, 1] *= -1  # type: ignore[index,union-attr,operator]
    result = verify(model, wrong, data=x)
    assert [layer.passed for layer in result.layers][:2] == [True, False]


def attention(scale: float = 1) -> ModelProto:
    """sign(Q) sign(K)^T, whose signs are 0 in the same places."""
    body = (
        "m = Mul(x, w)\nt = Transpose <perm=[0, 2, 1]> (m)\ns = Sign(x)\nq = Mul(s, c)\nk = Sign(t)\ny = MatMul(q, k)"
    )
    return ir.to_proto(parse(body, ("N", 4, 33), w=weights(33), c=np.float32(scale)))


def test_exact_zeros_in_both_operands_of_a_product(tmp_path: Path, rng: np.random.Generator) -> None:
    """-1 times -1 is +1 times +1, but 0 times 0 is 0."""
    path = convert(attention(), tmp_path / "m.onnx").output
    x = rng.standard_normal((5, 4, 33)).astype(np.float32)
    x[:, :, ::4] = 0
    options = {"data": x, "isas": BEST, "reference_samples": 0, "tolerances": Tolerances(min_agreement=0)}
    layers = verify(path, attention(), **options).layers
    assert all(layer.passed for layer in layers) and layers[-1].behind_zeros > 0
    assert not verify(path, attention(scale=10), **options).layers[-1].passed


def raw_pixels() -> ModelProto:
    """A network that takes the sign of its input, without BatchNorm."""
    body = "s = Sign (x)\nc = Conv (s, w)\nr = ReduceMean <keepdims=0> (c, axes)\ny = MatMul (r, last)"
    return ir.to_proto(
        parse(
            body, ("N", 4, 6, 6), w=weights(8, 4, 3, 3), axes=np.array([2, 3]), last=weights(8, 5, seed=2, alpha=0.25)
        )
    )


def test_explained_differences_may_not_add_up_to_another_network(tmp_path: Path, rng: np.random.Generator) -> None:
    """Dark pixels are 0, and so is torch.sign of them: each bit is explained, but nothing is left of the outputs."""
    model = raw_pixels()
    path = convert(model, tmp_path / "m.onnx").output
    x = rng.standard_normal((20, 4, 6, 6)).astype(np.float32)
    x[:, :, :, 1:] = 0
    result = verify(path, model, data=x, isas=BEST, reference_samples=0)
    assert all(layer.passed for layer in result.layers) and all(d.explained for d in result.disagreements)
    for output, failure in zip(result.outputs, result.failures, strict=True):
        assert output.agreeing < 10 and output.zeros == 20 - output.agreeing
        assert f"only {output.agreeing} of 20 samples agree with the reference (needed: 75%)" in failure
        assert f"in {output.zeros} of the other {output.zeros} PyTorch's sign is exactly 0" in failure
        assert "sign_zero='exact'" in failure
    asked = CliRunner().invoke(main, arguments(path, model, x, tmp_path))
    assert (asked.exit_code, "a sign of 0" in asked.stdout) == (1, True)
    accepted = CliRunner().invoke(main, [*arguments(path, model, x, tmp_path), "--min-agreement", "0"])
    assert (accepted.exit_code, accepted.stdout.splitlines()[-1]) == (0, "PASSED")
    x[x == 0] = 1e-3
    assert verify(path, model, data=x, isas=BEST, reference_samples=0).passed


def arguments(path: Path, model: ModelProto, x: np.ndarray, folder: Path) -> list[str]:
    np.save(folder / "x.npy", x)
    onnx.save(model, folder / "float.onnx")
    files = [str(path), "--against", str(folder / "float.onnx"), "--data", str(folder / "x.npy")]
    return ["verify", *files, "--isa", BEST[0], "--reference-samples", "1"]


def test_agreeing() -> None:
    """Unrelated outputs are 1.4 standard deviations apart; the same class is not enough."""
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((50, 10))
    scale = magnitudes(expected)
    assert agreeing(expected + 0.1 * rng.standard_normal((50, 10)) * (expected < 1), expected, scale, 50).mean() > 0.9
    other = np.where(expected == expected.max(1, keepdims=True), expected, rng.standard_normal((50, 10)) - 6)
    assert (other.argmax(1) == expected.argmax(1)).all() and not agreeing(other, expected, scale, 50).any()
    swapped = expected.copy()
    swapped[0, [expected[0].argmax(), expected[0].argmin()]] = 0
    assert agreeing(swapped, expected, scale, 50).tolist() == [False] + [True] * 49
    indices = np.arange(20).reshape(2, 10)
    wrong = indices + (np.arange(20).reshape(2, 10) < 3)
    assert agreeing(wrong, indices, magnitudes(indices), 2).tolist() == [False, True]
    assert not agreeing(indices[:1], indices, magnitudes(indices), 2).any()
    assert (Tolerances().may_differ(1), Tolerances().may_differ(20)) == (1, 5)
    assert Tolerances(min_agreement=1).may_differ(8) == 0


def test_float_tolerance(lenet5: Converted) -> None:
    assert check(lenet5, lenet5.float_model, 4, isas=BEST, tolerances=Tolerances(float_relative=1e-5)).passed
    result = check(lenet5, lenet5.float_model, 4, isas=BEST, tolerances=Tolerances(float_relative=0))
    assert [f.split(":")[0] for f in result.failures] == ["layer 'bin_ip1.linear'", "layer 'ip2'"]


def test_relative_margin() -> None:
    before = np.array([[1.0, 10], [-1, -20], [1, 10], [-1, 20]])
    scale = Magnitudes()
    scale.add(before[:3])
    scale.add(before[3:])  # two batches, one unit
    margin = relative_margin(before, scale.rms())
    np.testing.assert_allclose(margin[:, 0], 1)
    np.testing.assert_allclose(margin[:2, 1], [10 / np.sqrt(250), 20 / np.sqrt(250)])
    threshold = np.array([[0.5, -3]])
    np.testing.assert_allclose(scale.rms(threshold), magnitudes(before - threshold).rms())
    assert (relative_margin(np.zeros((2, 3)), magnitudes(np.zeros((2, 3))).rms()) == 0).all()


def first_output(module: Tiny, x: np.ndarray) -> float:
    """The first output of the network as it is converted, with binary weights."""
    own = copy.deepcopy(module)
    own.conv.weight.copy_(binarize_weight(own.conv.weight))
    return float(own(torch.from_numpy(x))[0, 0])


def test_one_sample_has_the_tolerance_of_many(tmp_path: Path, rng: np.random.Generator) -> None:
    """An output near 0 is no small channel: the unit of its error is what the channel usually holds."""
    module = Tiny().eval()
    x = rng.standard_normal((1, 4, 3, 3)).astype(np.float32)
    with torch.no_grad():
        usual = 6 * float(module.conv.weight.abs().mean())  # of a sum of 36 products
        module.conv.bias[0] += 1e-3 * usual - first_output(module, x)
        model = convert(module, tmp_path / "tiny.onnx", weights="xnor-centred").output
        module.conv.bias[0] += 1e-5 * usual
        assert verify(model, module, data=x, isas=BEST).passed, "a hundredth of the output, but not of the channel"
        module.conv.bias[0] += 1e-2 * usual
        assert not verify(model, module, data=x, isas=BEST).passed
