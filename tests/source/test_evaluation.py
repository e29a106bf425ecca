"""Networks that are not the same each time, although they are in evaluation mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_deploy import InputError, convert
from bnn_deploy.source.evaluation import require_evaluation
from bnn_deploy.source.module_inputs import one_input
from support.graphs import parse, weights

EXAMPLE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm2d(3, track_running_stats=kind != "no running statistics")
        self.instance = nn.InstanceNorm2d(3)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.instance(self.norm(x)))
        if self.kind == "dropout":
            x = F.dropout(x, 0.5)
        if self.kind == "stochastic sign":
            x = torch.where(torch.rand_like(x) < torch.sigmoid(x), 1.0, -1.0)
        if self.kind == "unused noise":
            torch.rand_like(x)
        return F.batch_norm(x, None, None, training=True) if self.kind == "functional" else x


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dropout", r"^Net: test_evaluation.py, line \d+ draws random numbers \((native_dropout|bernoulli_|dropout)\)"),
        ("stochastic sign", r"^Net: test_evaluation.py, line \d+ draws random numbers \(rand_like\)"),
        ("no running statistics", r"^Net: test_evaluation.py, line \d+: BatchNorm normalises by the batch"),
        ("functional", r"^Net: test_evaluation.py, line \d+: BatchNorm normalises by the batch"),
    ],
)
def test_is_refused(kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_evaluation(Net(kind).eval(), one_input(EXAMPLE.shape[1:]), [EXAMPLE])


@pytest.mark.parametrize("kind", ["", "unused noise"])
def test_is_taken(kind: str) -> None:
    before = torch.get_rng_state()
    require_evaluation(Net(kind).eval(), one_input(EXAMPLE.shape[1:]), [EXAMPLE])
    assert torch.equal(before, torch.get_rng_state())


def test_convert_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line \d+ draws random numbers"):
        convert(Net("stochastic sign").eval(), tmp_path / "m.onnx", input_shape=(3, 6, 6))
    model = parse("r = RandomNormalLike (x)\na = Add (x, r)\ns = Sign (a)\ny = Conv (s, w)", w=weights(8, 4, 3, 3))
    with pytest.raises(InputError, match="RandomNormalLike 'r' draws random numbers"):
        convert(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
