"""The ways in which people write a sign in PyTorch: each converts and computes what the module itself does, eagerly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info, load_session
from bnn_deploy.source import torch_export, torch_module

pytestmark = pytest.mark.usefixtures("own_exports")

NETWORK = '''
import torch
from torch import nn

class Net(nn.Module):
    """Convolution -> BatchNorm -> sign -> binary convolution -> BatchNorm -> ReLU -> mean -> linear layer."""
    input_shape = (3, 6, 6)
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.weight, self.behind = nn.Parameter(torch.randn(32, 32, 3, 3) * 0.1), nn.BatchNorm2d(32)
        self.last = nn.Linear(32, 5)
        self.register_buffer("calls", torch.zeros(()))

    def binarize(self, x):
        {statements}
        return {result}

    def forward(self, x):
        x = self.norm(self.first(x))
        x = nn.functional.conv2d({activation}, {weight}, padding=1)
        return self.last(torch.relu(self.behind(x)).mean((2, 3)))
'''

IDIOMS: dict[str, tuple[str, str]] = {
    "x.sign()": ("", "x.sign()"),
    "torch.sgn": ("", "torch.sgn(x)"),
    ".data =, torch.sign": ("x.data = torch.sign(x.data)", "x"),
    ".data =, method": ("x.data = x.data.sign()", "x"),
    ".data in place": ("x.data.sign_()", "x"),
    "in place": ("x = x.clone(); x.sign_()", "x"),
    "mask, zeros": ("o = x.sign(); o[o == 0] = 1", "o"),
    "mask, both": ("o = x.clone(); o[x >= 0] = 1; o[x < 0] = -1", "o"),
    "mask, zeros_like": ("o = torch.zeros_like(x); o[x >= 0] = 1; o[x < 0] = -1", "o"),
    "mask, new": ("o = x.new(x.size()); o[x.ge(0)] = 1; o[x.lt(0)] = -1", "o"),
    "mask, new_ones": ("o = x.new_ones(x.shape); o[x.lt(0)] = -1", "o"),
    "masked_fill": ("o = x.sign(); o = o.masked_fill(o == 0, 1)", "o"),
    "masked_fill_": ("o = x.sign(); o.masked_fill_(o == 0, -1)", "o"),
    "where": ("", "torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))"),
    "x / |x|": ("", "x / x.abs()"),
    "a table": ("table = torch.tensor([-1.0, 1.0])", "table[(x >= 0).long()]"),
    "heaviside": ("", "2 * torch.heaviside(x, torch.ones(())) - 1"),
    "copysign": ("", "torch.copysign(torch.ones(()), x)"),
    "signbit": ("", "1 - 2 * torch.signbit(x).float()"),
    "clamp of a sign": ("", "torch.clamp(x.sign(), -1, 1)"),
    "ceil": ("", "2 * torch.ceil(torch.clamp(x, 0, 1)) - 1"),
    "floor": ("", "2 * torch.floor(torch.clamp(x + 1, 0, 1.5)) - 1"),
    "to int and back": ("", "x.sign().int().float()"),
    "comparison": ("", "(x > 0).float() * 2 - 1"),
    "two comparisons": ("", "(x >= 0).type_as(x) - (x < 0).type_as(x)"),
    "mul_, sub_": ("o = (x >= 0).float(); o.mul_(2).sub_(1)", "o"),
    "straight-through": ("", "(x.sign() - x).detach() + x"),
    "straight-through tanh": ("", "(x.sign() - torch.tanh(x)).detach() + torch.tanh(x)"),
    "hardtanh first": ("", "nn.functional.hardtanh(x).sign()"),
    "print, assert and a counter": ("self.calls += 1; print(x.shape); assert x.dim() == 4", "x.sign()"),
}


def network(idiom: tuple[str, str], where: str) -> nn.Module:
    """The network with a sign so written, with calibrated BatchNorm."""
    scope: dict[str, Any] = {}
    activation, weight = ("self.binarize(x)", "self.weight.sign()")
    if where == "weight":
        activation, weight = "x.sign()", "self.binarize(self.weight)"
    text = NETWORK.format(statements=idiom[0] or "pass", result=idiom[1], activation=activation, weight=weight)
    exec(text, scope)
    torch.manual_seed(0)
    module: nn.Module = scope["Net"]()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, 3, 6, 6))
    return module.eval()


def relative_difference(model: Path, module: nn.Module) -> float:
    """The largest difference of a converted model's outputs from the module's own, in standard deviations."""
    x = torch.randn(6, 3, 6, 6)
    with torch.no_grad():
        expected: NDArray[np.float32] = module(x).numpy()
    (got,) = load_session(model, 1).run(None, {"input": x.numpy()})
    return float(np.abs(got - expected).max() / expected.std())


@pytest.mark.parametrize("where", ["activation", "weight"])
@pytest.mark.parametrize("name", IDIOMS)
def test_a_sign_as_people_write_it(name: str, where: str, tmp_path: Path) -> None:
    module = network(IDIOMS[name], where)
    result = convert(module, tmp_path / "m.onnx")
    assert len(result.binary_layers) == 1, [str(left.why) for left in result.left_float]
    assert relative_difference(tmp_path / "m.onnx", module) < 1e-3
    model = onnx.load(tmp_path / "m.onnx")
    (layer,) = (node for node in model.graph.node if node.op_type == "BinaryConv")
    (bits,) = (tensor for tensor in model.graph.initializer if tensor.name == layer.input[1])
    wrong = onnx.numpy_helper.to_array(bits).copy()
    wrong.flat[0] ^= 1
    bits.CopyFrom(onnx.numpy_helper.from_array(wrong, bits.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    assert relative_difference(tmp_path / "wrong.onnx", module) > 1e-3


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.export alone has it, the assignment to `.data` vanishes."""
    monkeypatch.setattr(torch_export, "_Data", _OnlyCopies)
    module = network(IDIOMS[".data =, torch.sign"], "activation")
    with pytest.raises(
        InputError, match=r"^Net: forward\(\) and its export differ, by up to [\d.]+ standard deviations"
    ):
        convert(module, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class _OnlyCopies(torch.overrides.TorchFunctionMode):
    """`.data` as a copy, and assignments to it as torch.export takes them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def test_an_operator_without_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot export Net: No ONNX function found for .*median") as caught:
        convert(
            network(("", "(x - x.flatten(2).median(2, True).values[..., None]).sign()"), "activation"),
            tmp_path / "m.onnx",
        )
    assert "\x1b" not in str(caught.value)


class ThreeOutputs(nn.Module):
    """A network, the squares of its outputs, and its class."""

    input_shape = (3, 6, 6)

    def __init__(self, network: nn.Module, offset: int = 0) -> None:
        super().__init__()
        self.network, self.offset = network, offset

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.network(x)
        return [y, y * y + self.offset, y.argmax(1) + self.offset]


def test_verify_holds_the_model_against_the_module_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers are held against the export; if an output of that differs from forward()'s, verify says so."""
    inner = network(IDIOMS[".data =, method"], "activation")
    module = ThreeOutputs(inner)
    outputs = [info.name for info in onnx.load(convert(module, tmp_path / "m.onnx").output).graph.output]
    options: dict[str, Any] = {"reference_samples": 0, "isas": library_info().isas[:1]}
    result = verify(tmp_path / "m.onnx", module, **options)
    assert result.passed
    found = [(source.backend, source.output, source.close) for source in result.source]
    assert found == [("PyTorch's forward()", output, result.samples) for output in outputs]
    real = torch_module.eager
    monkeypatch.setattr(torch_module, "eager", lambda module: real(ThreeOutputs(inner, offset=1)))
    failures = verify(tmp_path / "m.onnx", module, **options).failures
    assert len(failures) == 2
    for output, failure in zip(outputs[1:], failures, strict=True):
        assert failure.startswith(
            "PyTorch's forward() gives other outputs than its export, against which the layers were held: of "
            f"{output}, only 0 of 32 samples agree within 0.0001 (needed: 50%)"
        )
    monkeypatch.setattr(torch_module, "eager", lambda module: real(inner))
    with pytest.raises(InputError, match=r"PyTorch's forward\(\) gives 1 outputs, its export 3"):
        verify(tmp_path / "m.onnx", module, **options)
