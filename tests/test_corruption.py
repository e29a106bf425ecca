"""Damage to a converted model by the smallest step makes verify fail, with exit code 1 and the layer's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from conftest import Converted
from onnx import ModelProto, NodeProto, numpy_helper

from bnn_deploy.cli import main
from bnn_deploy.operators.bits import pack_bits, unpack_bits
from bnn_deploy.passes.fuse.fuse_conv_threshold import ALWAYS, NEVER
from bnn_deploy.proof.pieces import split
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import COMPLEMENTED
from bnn_deploy.runtime.session import library_info

BEST = list(library_info().isas[:1])


@dataclass
class Damage:
    """A converted model under change."""

    model: ModelProto

    def node(self, name: str) -> NodeProto:
        return next(node for node in self.model.graph.node if node.name == name)

    def first(self, op_type: str) -> NodeProto:
        return next(node for node in self.model.graph.node if node.op_type == op_type)

    def change(self, name: str, edit: Callable[[np.ndarray], np.ndarray | None]) -> None:
        """Apply `edit` to an initializer, in place or by returning another."""
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor).copy()
        result = edit(array)
        tensor.CopyFrom(numpy_helper.from_array(array if result is None else result, name))

    def attribute(self, node: NodeProto, name: str) -> list[int]:
        return next(a for a in node.attribute if a.name == name).ints

    def channels(self, node: NodeProto) -> int:
        per_group = next(a for a in node.attribute if a.name == "channels").i
        return int(per_group // next(a for a in node.attribute if a.name == "group").i)


def flip_weight_bit(damage: Damage, layer: str) -> None:
    def edit(words: np.ndarray) -> None:
        words[(2, *[0] * (words.ndim - 1))] ^= 1 << 5

    damage.change(damage.node(layer).input[1], edit)


def swap_input_channels(damage: Damage, layer: str) -> None:
    """Two input channels of all filters change places."""
    node = damage.node(layer)
    channels = damage.channels(node)

    def edit(words: np.ndarray) -> np.ndarray:
        signs = unpack_bits(words, channels)
        signs[..., [3, 7]] = signs[..., [7, 3]]
        return pack_bits(signs)

    damage.change(node.input[1], edit)


def move_pad(damage: Damage, layer: str) -> None:
    pads = damage.attribute(damage.node(layer), "pads")
    pads[0] += 1
    pads[2] -= 1


def move_pool_pad(damage: Damage, layer: str) -> None:
    pads = damage.attribute(damage.first("BinaryMaxPool"), "pads")
    pads[0] += 1
    pads[2] -= 1


def move_threshold(step: int) -> Callable[[Damage, str], None]:
    """Move an integer threshold by one, in a channel in which the sum takes the value that then counts otherwise.

    The sum of n products of ±1 has the parity of n. A threshold of that parity is itself a possible sum, which a step
    up loses; one of the other parity has its neighbours as possible sums, of which a step down gains one. So each
    channel has a direction that acts and one that does nothing: thresholds t and t + 1 are then the same.
    """

    def damage_it(damage: Damage, layer: str) -> None:
        node = damage.node(layer)
        terms = damage.channels(node) * int(np.prod(damage.attribute(node, "kernel_shape")))

        def edit(thresholds: np.ndarray) -> None:
            inner = (thresholds != ALWAYS) & (thresholds != NEVER)
            acts = (thresholds - terms) % 2 == (0 if step > 0 else 1)
            candidates = np.flatnonzero(inner & acts)
            # The channel whose threshold is nearest to 0, where most sums are: one of them must be just there.
            channel = candidates[np.abs(thresholds[candidates]).argmin()]
            thresholds[channel] += step

        damage.change(node.input[2], edit)

    return damage_it


def shift_binarize_threshold(damage: Damage, layer: str) -> None:
    node = damage.first("Binarize")

    def edit(thresholds: np.ndarray) -> None:
        channel = int(np.flatnonzero(np.isfinite(thresholds))[0])
        thresholds[channel] += np.float32(0.05)

    damage.change(node.input[1], edit)


def change_scale(damage: Damage, layer: str) -> None:
    def edit(scale: np.ndarray) -> None:
        scale[4] *= np.float32(1.01)

    damage.change(damage.node(layer).input[2], edit)


def change_bias(damage: Damage, layer: str) -> None:
    def edit(bias: np.ndarray) -> None:
        bias[4] += np.float32(0.05)

    damage.change(damage.node(layer).input[3], edit)


def shift_pads_out_of_shape(damage: Damage, layer: str) -> None:
    damage.attribute(damage.node(layer), "pads")[0] += 1


CASES: list[tuple[str, str, Callable[[Damage, str], None], str]] = [
    ("lenet5", "flipped weight bit", flip_weight_bit, "bin_conv2.conv"),
    ("lenet5", "flipped weight bit, linear layer", flip_weight_bit, "bin_ip1.linear"),
    ("lenet5", "threshold up by one", move_threshold(1), "bin_conv2.conv"),
    ("lenet5", "threshold down by one", move_threshold(-1), "bin_conv2.conv"),
    ("lenet5", "Binarize threshold", shift_binarize_threshold, "conv1"),
    ("lenet5", "swapped channels", swap_input_channels, "bin_conv2.conv"),
    ("lenet5", "swapped channels, linear layer", swap_input_channels, "bin_ip1.linear"),
    ("lenet5", "scale", change_scale, "bin_ip1.linear"),
    ("lenet5", "bias", change_bias, "bin_ip1.linear"),
    ("lenet5", "another output shape", shift_pads_out_of_shape, "bin_conv2.conv"),
    ("nin", "flipped weight bit", flip_weight_bit, "xnor.7.conv"),
    ("nin", "threshold up by one", move_threshold(1), "xnor.6.conv"),
    ("nin", "threshold down by one", move_threshold(-1), "xnor.6.conv"),
    ("nin", "pad", move_pad, "xnor.6.conv"),
    ("nin", "pool's pad", move_pool_pad, "xnor.4.conv"),
    ("nin", "swapped channels", swap_input_channels, "xnor.7.conv"),
    ("nin", "scale", change_scale, "xnor.8.conv"),
    ("nin", "bias", change_bias, "xnor.8.conv"),
]


def damaged(converted: Converted, edit: Callable[[Damage, str], None], layer: str, path: Path) -> Path:
    model = onnx.load(converted.model)
    edit(Damage(model), layer)
    onnx.save(model, path)
    assert path.read_bytes() != converted.model.read_bytes()
    return path


def run_verify(model: Path, converted: Converted, samples: int) -> Verification:
    return verify(model, converted.float_model, data=converted.images[:samples], isas=BEST, reference_samples=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_damage_is_found_and_named(
    case: tuple[str, str, Callable[[Damage, str], None], str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    arch, _, edit, layer = case
    converted: Converted = request.getfixturevalue(arch)
    result = run_verify(damaged(converted, edit, layer, tmp_path / "damaged.onnx"), converted, len(converted.images))
    assert not result.passed
    failed = [found.layer for found in result.layers if not found.passed]
    assert failed == [layer], "the damaged layer, and no other: each is fed with the reference's activations"
    assert [f"layer '{layer}': " in failure for failure in result.failures].count(True) == 1


@pytest.mark.parametrize("arch", ["lenet5", "nin"])
def test_the_undamaged_model_passes_the_same_check(arch: str, request: pytest.FixtureRequest) -> None:
    converted: Converted = request.getfixturevalue(arch)
    result = run_verify(converted.model, converted, 32 if arch == "lenet5" else 2)
    assert result.passed, result.failures


def test_a_step_in_the_other_direction_does_nothing(lenet5: Converted, tmp_path: Path) -> None:
    """The parity argument of `move_threshold`, shown: the same channels, moved the other way, give the same bits."""

    def edit(damage: Damage, layer: str) -> None:
        node = damage.node(layer)
        terms = 20 * 25

        def move(thresholds: np.ndarray) -> None:
            inner = (thresholds != ALWAYS) & (thresholds != NEVER)
            own_parity = (thresholds - terms) % 2 == 0
            thresholds[inner & own_parity] -= 1
            thresholds[inner & ~own_parity] += 1

        damage.change(node.input[2], move)

    path = damaged(lenet5, edit, "bin_conv2.conv", tmp_path / "damaged.onnx")
    result = run_verify(path, lenet5, 32)
    # Padding adds nothing here (pads are 0), so every sum has the parity of the number of products.
    assert result.passed, result.failures


# Channels that are stored complemented: the recipe's gammas are positive, so a network that has negative ones is made.


@pytest.fixture(scope="module")
def negative(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A small network of the recipe's form with negative gammas in front of each binary layer."""
    import torch
    from networks import images
    from torch import nn

    from bnn_deploy.conversion import convert
    from bnn_deploy.training import WeightBinarizer, sign_ste

    class Negative(nn.Module):
        input_shape = (3, 16, 16)

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
            self.conv2, self.bn2 = nn.Conv2d(12, 40, 3, padding=1), nn.BatchNorm2d(40)
            self.pool = nn.MaxPool2d(2)
            self.conv3, self.bn3 = nn.Conv2d(40, 8, 3, groups=2), nn.BatchNorm2d(8)
            self.fc = nn.Linear(8 * 25, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = sign_ste(self.bn1(self.conv1(x)))
            x = sign_ste(self.bn2(self.pool(torch.relu(self.conv2(x)))))
            x = sign_ste(self.bn3(self.conv3(x)))
            result: torch.Tensor = self.fc(x.flatten(1))
            return result

    torch.manual_seed(0)
    network = Negative()
    for norm in (network.bn1, network.bn2, network.bn3):
        norm.weight.data.uniform_(0.5, 1.5).mul_(torch.randint(2, norm.weight.shape) * 2 - 1)
        norm.bias.data.normal_(0, 0.2)
        norm.momentum = None
    with torch.no_grad(), WeightBinarizer([network.conv2.weight, network.conv3.weight, network.fc.weight]):
        for batch in images((3, 16, 16), 64).split(16):
            network(batch)
    folder = tmp_path_factory.mktemp("negative")
    torch.save({"state_dict": network.state_dict()}, folder / "negative.pth.tar")
    conversion = convert(
        network.eval(), folder / "negative.onnx", float_output=folder / "negative_float.onnx", strict=True
    )
    return Converted(folder / "negative.pth.tar", conversion, images((3, 16, 16), 32, first=300).numpy())


def complemented_nodes(model: ModelProto) -> dict[str, NodeProto]:
    """Layer name -> the node that stores channels of its bits complemented."""
    tensors = {
        node.output[0]: node for node in model.graph.node if any(p.key == COMPLEMENTED for p in node.metadata_props)
    }
    return {piece.name: tensors[piece.output.tensor] for piece in split(model) if piece.output.tensor in tensors}


def test_negative_gammas_pass_and_are_recorded(negative: Converted) -> None:
    result = run_verify(negative.model, negative, 32)
    assert result.passed, result.failures
    assert list(complemented_nodes(onnx.load(negative.model))) == ["conv1", "conv2", "conv3"]
    assert negative.conversion.binary_layers == ("conv2", "conv3", "fc")


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_a_complemented_channel_left_out_of_the_metadata(negative: Converted, layer: str, tmp_path: Path) -> None:
    model = onnx.load(negative.model)
    (entry,) = (p for p in complemented_nodes(model)[layer].metadata_props if p.key == COMPLEMENTED)
    assert "," in entry.value
    entry.value = entry.value.split(",", 1)[1]
    onnx.save(model, tmp_path / "damaged.onnx")
    result = run_verify(tmp_path / "damaged.onnx", negative, 32)
    failed = [found.layer for found in result.layers if not found.passed]
    # The layer that makes the bits, and the one that reads them.
    following = {"conv1": "conv2", "conv2": "conv3", "conv3": "fc"}[layer]
    assert layer in failed
    assert set(failed) <= {layer, following}


@pytest.mark.parametrize("layer", ["conv2", "conv3", "fc"])
def test_a_flipped_weight_bit_behind_complemented_channels(negative: Converted, layer: str, tmp_path: Path) -> None:
    result = run_verify(damaged(negative, flip_weight_bit, layer, tmp_path / "damaged.onnx"), negative, 32)
    assert [found.layer for found in result.layers if not found.passed] == [layer]


# Through the command line.


@pytest.mark.parametrize("edit", [flip_weight_bit, move_threshold(1), swap_input_channels, shift_pads_out_of_shape])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_fails_with_exit_code_1(
    lenet5: Converted, tmp_path: Path, edit: Callable[[Damage, str], None], as_json: bool
) -> None:
    import json

    np.save(tmp_path / "x.npy", lenet5.images)
    model = damaged(lenet5, edit, "bin_conv2.conv", tmp_path / "damaged.onnx")
    arguments = ["verify", str(model), "--against", str(lenet5.float_model), "--data", str(tmp_path / "x.npy")]
    arguments += ["--isa", BEST[0], "--reference-samples", "1", *(["--json"] if as_json else [])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr == ""
    if as_json:
        report = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert report["passed"] is False
        assert any("layer 'bin_conv2.conv'" in failure for failure in report["failures"])
    else:
        lines = result.stdout.splitlines()
        assert lines[-1] == "FAILED"
        assert any(line.startswith("FAILED: layer 'bin_conv2.conv'") for line in lines)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_passes_with_exit_code_0(lenet5: Converted, tmp_path: Path, as_json: bool) -> None:
    import json

    np.savez(tmp_path / "x.npz", input=lenet5.images, labels=np.zeros(len(lenet5.images), np.int64))
    arguments = [
        "verify-equivalence",
        str(lenet5.model),
        "--against",
        str(lenet5.float_model),
        "--data",
        str(tmp_path / "x.npz"),
    ]
    result = CliRunner().invoke(main, [*arguments, "--reference-samples", "1", *(["--json"] if as_json else [])])
    assert result.exit_code == 0, result.output
    if as_json:
        assert json.loads(result.stdout)["passed"] is True
    else:
        assert result.stdout.splitlines()[-1] == "PASSED"
        assert "accuracy" in result.stdout
