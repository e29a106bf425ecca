"""Modules whose inputs leave sizes open: converted from an example, verified at others, refused where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnn_deploy.cli.convert import parse_shapes
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import load_session
from bnn_deploy.source import open_sizes
from bnn_deploy.source.module_inputs import ModuleInput, ModuleInputs, module_inputs
from support.golden_files import BEST
from support.graphs import eighths, parse


class Net(nn.Module):
    """Convolution -> BatchNorm -> sign -> binary convolution down -> sign -> binary convolution -> up, with a skip."""

    def __init__(self, end: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.end = end
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.last = nn.Linear(8 * 64, 3)
        for layer in (self.down, self.second):
            layer.weight.data.sign_().mul_(0.25)
        self.register_buffer("flag", torch.ones(()))
        for _ in range(9):
            self.norm(self.first(torch.randn(16, 3, 6, 6)))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm(self.first(x))
        b = self.second((self.down(a.sign()) + 0.1).sign())
        y = a + F.interpolate(b, size=a.shape[2:])
        if self.end == "view":
            return y.view(-1, 8, 8, 8)
        if self.end == "linear":
            y = self.last(y.flatten(1))
        if (self.end == "branch on a size" and x.shape[2] > 8) or (self.end == "branch on a value" and self.flag < 0):
            return -y
        return torch.cat([y, F.interpolate(b, scale_factor=2)], 1) if self.end == "even" else y


def images(*size: int) -> Tensor:
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))


def test_runs_at_every_size(tmp_path: Path) -> None:
    net = Net("even")  # both sizes must be even
    result = convert(
        net,
        tmp_path / "m.onnx",
        example_inputs=images(8, 8),
        input_shape=(3, None, None),
        float_output=tmp_path / "f.onnx",
    )
    assert len(result.binary_layers) == 2, result.left_float
    content = inspect_model(tmp_path / "m.onnx")
    assert content.inputs[0].shape == ("batch", 3, "input_2", "input_3")
    assert content.metadata["bnn_deploy.input_shape"] == "3,8,8"
    assert profile(tmp_path / "m.onnx", tmp_path / "f.onnx", runs=1).input_shapes == {"input": (1, 3, 8, 8)}
    wrong = onnx.load(tmp_path / "m.onnx")
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith("weight_bits"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) ^ 1, tensor.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    quick: dict[str, Any] = {"isas": BEST, "reference_samples": 0}
    for size in ((8, 8), (20, 14)):
        data = images(*size)
        with torch.no_grad():
            expected = net(data).numpy()
        (got,) = load_session(tmp_path / "m.onnx").run(None, {"input": data.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-5)
        proof = verify(tmp_path / "m.onnx", net, data=data.numpy(), **quick)
        assert proof.passed, proof.failures
        assert not verify(tmp_path / "wrong.onnx", net, data=data.numpy(), **quick).passed


def test_sizes_without_an_example_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(open_sizes, "TRIED", (9, 10))
    convert(Net("even"), tmp_path / "m.onnx", input_shape=parse_shapes(["3,?,?"]))
    assert inspect_model(tmp_path / "m.onnx").metadata["bnn_deploy.input_shape"] == "3,10,10"
    monkeypatch.setattr(open_sizes, "TRIED", (9, 11))
    with pytest.raises(InputError, match=r"^Net: input_shape leaves sizes open, and it runs at none of 9, 11 \(test_o"):
        convert(Net("even"), tmp_path / "no.onnx", input_shape=(3, None, None))
    assert parse_shapes(["x=3x?x8"]) == {"x": (3, None, 8)}


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            "view",
            r"^Net: .* at input float32\[N, 3, 16, 12\] its export does not run, unlike forward\(\), such as by a view",
        ),
        (
            "linear",
            r"^Net: .* open, but forward\(\) runs at no other ones than those of input float32\[N, 3, 8, 8\] that we",
        ),
        (
            "branch on a size",
            r"^Net: .* at input float32\[N, 3, 16, 12\] its export gives something else than forward\(\), by up to",
        ),
        (
            "branch on a value",
            r"^torch.export cannot trace Net: .*; traced by running it, it has fixed sizes: give input",
        ),
    ],
)
def test_what_takes_one_size_alone_is_refused(end: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        convert(Net(end), tmp_path / "m.onnx", example_inputs=images(8, 8), input_shape=(3, None, None))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_said_of_the_sizes(tmp_path: Path) -> None:
    inputs = module_inputs(Net(), "net", {"x": (3, None, 5)}, {"x": images(4, 5)})
    assert [(item.shape, item.open) for item in inputs.items] == [((3, 4, 5), (1,))]
    for shape in ((3, None, 6), (3, None), {"y": (3, None, 5)}):
        with pytest.raises(InputError, match=r"^net: input_shape \w+ \[3, None.*\] does not fit the example inputs, "):
            module_inputs(Net(), "net", shape, images(4, 5))
    model = parse("y = Conv (x, w)", ("N", 3, "H", "W"), w=eighths(4, 3, 3, 3))
    with pytest.raises(
        InputError, match=r"an ONNX model says itself which sizes are open: give input_shape in numbers"
    ):
        convert(model, tmp_path / "m.onnx", input_shape=(3, None, None))


def test_a_size_that_torch_fixed_is_refused() -> None:
    """torch.export fixes an open size, and says nothing, where forward() needs it."""
    inputs = ModuleInputs((ModuleInput("x", (3, 8, 8), open=(1, 2)),))
    with pytest.raises(
        InputError, match=r"^net: forward\(\) takes the size 8 alone in dimension 3 of x float32\[N, 3, 8, 8"
    ):
        open_sizes.name_sizes(parse("y = Relu (x)", ("N", 3, "s7", 8)), inputs, "net")
    model = parse("y = Relu (x)", ("N", 3, "s7", "s8"))
    open_sizes.name_sizes(model, inputs, "net")
    assert str(model.graph.outputs[0].shape) == "[N,3,x_2,x_3]"
