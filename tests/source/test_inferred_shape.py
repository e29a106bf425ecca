"""The input's shape where nobody says it: taken where it can be only one, asked for where it could be several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bnn_deploy import convert
from bnn_deploy.errors import InputError
from bnn_deploy.source.inferred_shape import infer_shape
from support.networks import Signed

CLASSIFIER = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))

FOUND = {
    "linear": (nn.Sequential(nn.Linear(784, 10)), (784,)),
    "convolution and linear": (CLASSIFIER, (3, 32, 32)),
    "one dimension": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 94, 2)), (2, 96)),
}

ASKED = {
    "any size": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)),
        "runs at 3,28,28 and 3,32,32 and",
    ),
    "no size": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)), "runs at none that was tried:"),
    "no layer": (nn.Sequential(nn.ReLU()), r"no layer that says its input: give input_shape=\(C, H, W\)$"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_only_shape_that_runs_is_taken(case: str) -> None:
    module, shape = FOUND[case]
    assert infer_shape(module.eval()) == shape


@pytest.mark.parametrize("case", ASKED)
def test_else_the_user_is_asked(case: str) -> None:
    module, message = ASKED[case]
    with pytest.raises(InputError, match=f"^Sequential has no attribute input_shape, and {message}"):
        infer_shape(module.eval())


def test_convert_says_which_shape_it_took(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 8)
    layer.weight.data.sign_()
    result = convert(Signed(layer).eval(), tmp_path / "m.onnx")
    assert result.report.notes == ("the shape of the input was taken from the network: input_shape=(40,)",)
