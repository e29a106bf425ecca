"""Networks as their authors wrote them: the small ones of dialect_table.py, and their architectures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dialect_table
from bnn_deploy.architectures import BinaryNetMLP, BinaryNetVGG, Network, ReActNet
from bnn_deploy.architectures.reactnet import ReActBlock
from dialect_table import CASES, Case

pytestmark = pytest.mark.usefixtures("seeded_torch")

ELSEWHERE = ("XNOR", "Bi-Real", "DoReFa")
"""Other test files have these, and the files of tests/exports."""

SMALL = [case for case in CASES if not case.full and case.data is None and not case.name.startswith(ELSEWHERE)]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_binary_layer_is_found_and_exact(case: Case, tmp_path: Path) -> None:
    row = dialect_table.run(case, tmp_path, samples=4)
    assert row.found == case.binary
    assert not dialect_table.passed(replace(case, binary=case.binary + 1), row), "a missing layer is not seen"
    assert row.proof.complete and row.proof.passed, row.proof.failures
    assert row.caught, "a complemented filter was not seen"


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        # Weights, biases and BatchNorms, by hand from the papers' layer lists.
        (
            lambda: BinaryNetVGG(),
            sum(i * o * 9 + 3 * o for i, o in [(3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)])
            + sum(i * o + 3 * o for i, o in [(8192, 1024), (1024, 1024)])
            + 1024 * 10
            + 10,
        ),
        (lambda: BinaryNetMLP(), sum(i * o + 3 * o for i, o in [(784, 4096), (4096, 4096), (4096, 4096), (4096, 10)])),
        (
            lambda: ReActNet(),
            # Per block: two RSigns, the 3x3 convolution and its BatchNorm, RPReLU; per 1x1 convolution the same.
            sum(
                2 * i + 9 * i * i + 2 * i + 3 * i + copies * (i * i + 2 * i + 3 * i)
                for i, copies in zip(
                    [32, 64, 128, 128, 256, 256, *[512] * 6, 1024], [2, 2, 1, 2, 1, 2, *[1] * 5, 2, 1], strict=True
                )
            )
            + (3 * 32 * 9 + 2 * 32)
            + (1024 * 1000 + 1000),
        ),
    ],
)
def test_parameters(network: type[Network], parameters: int) -> None:
    with torch.device("meta"):
        model = network()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    "make",
    [lambda: BinaryNetVGG(8), lambda: BinaryNetMLP(24), lambda: ReActNet(4, (1, 3, 1)), lambda: ReActNet(8, (2,))],
)
def test_a_checkpoint_says_how_large_its_network_is(make: type[Network]) -> None:
    model = make()
    other = type(model).for_state_dict(model.state_dict())
    other.load_state_dict(model.state_dict(), strict=True)
    assert type(model).for_state_dict({}) is not None


def test_a_reactnet_block_keeps_or_doubles_its_channels() -> None:
    with pytest.raises(ValueError, match="a block of 8 channels can make 8 or 16, not 24"):
        ReActBlock(8, 24, 1)
    x = torch.randn(2, 8, 6, 6)
    assert ReActBlock(8, 16, 2)(x).shape == (2, 16, 3, 3)
    assert ReActBlock(8, 8, 1)(x).shape == x.shape


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BinaryNetVGG(4), (3, 32, 32)),
        (lambda: BinaryNetMLP(16), (1, 28, 28)),
        (lambda: ReActNet(4, (1, 1)), (3, 16, 16)),
    ],
)
def test_gradients_reach_every_weight(make: type[Network], shape: tuple[int, ...]) -> None:
    """The straight-through estimators let the networks be trained."""
    model = make()
    model.train()(torch.randn(4, *shape)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
