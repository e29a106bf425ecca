"""Damage to a converted model by the smallest step makes verify fail, with exit code 1 and the layer's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, NodeProto

from bnn_deploy.cli import main
from bnn_deploy.operators.contract import ALWAYS, NEVER
from bnn_deploy.proof.pieces import split
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import COMPLEMENTED
from bnn_deploy.runtime.session import library_info
from support.converted import Converted
from support.damage import (
    CASES,
    Damage,
    damaged,
    flip_weight_bit,
    move_threshold,
    shift_pads_out_of_shape,
    swap_input_channels,
)

BEST = list(library_info().isas[:1])


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
    from torch import nn

    from bnn_deploy.conversion import convert
    from bnn_deploy.training import WeightBinarizer, sign_ste
    from support.networks import images

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
        network.eval(),
        folder / "negative.onnx",
        float_output=folder / "negative_float.onnx",
        weights="xnor-centred",
        strict=True,
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
