"""The ways in which people write a sign in PyTorch, from each source: each converts and computes what the source does.

`pytest -m full_matrix` runs parts of the sources that take longest, and what is refused; tests/idiom_table.py runs and
prints all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info
from bnn_deploy.source import torch_export, torch_module
from support.idioms import IDIOMS, SOURCES, NotMadeError, groups, outcome

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

    def forward(self, x):
        x = self.norm(self.first(x))
        {statements}
        x = nn.functional.conv2d({activation}, self.weight.sign(), padding=1)
        return self.last(torch.relu(self.behind(x)).mean((2, 3)))
'''


def network(activation: str, statements: str = "pass") -> nn.Module:
    """The network with a sign so written, with calibrated BatchNorm."""
    scope: dict[str, Any] = {}
    exec(NETWORK.format(statements=statements, activation=activation), scope)
    torch.manual_seed(0)
    module: nn.Module = scope["Net"]()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, 3, 6, 6))
    return module.eval()


def cases(*sources: str) -> list[tuple[str, int]]:
    """The groups of idioms of these sources."""
    return [(source, i) for source in sources for i in range(len(groups(source)))]


@pytest.mark.parametrize(("source", "group"), cases("module", "ONNX, TorchScript"))
def test_signs_as_people_write_them(source: str, group: int, tmp_path: Path) -> None:
    check(source, groups(source)[group], tmp_path)


@pytest.mark.parametrize("source", ["checkpoint", "TorchScript", "ONNX, dynamo"])
def test_two_signs_from_other_sources(source: str, tmp_path: Path) -> None:
    check(source, ["mask, both", "straight-through"], tmp_path)


PARTLY = [source for source in SOURCES if source not in ("module", "exported program", "ONNX, TorchScript")]
"""Sources of which the full matrix takes a part each, another one; tests/idiom_table.py takes all."""


@pytest.mark.full_matrix
@pytest.mark.parametrize(
    ("source", "group"), [*cases("exported program"), *((source, i) for i, source in enumerate(PARTLY))]
)
def test_signs_from_other_sources(source: str, group: int, tmp_path: Path) -> None:
    check(source, groups(source)[group], tmp_path)


def check(source: str, names: list[str], folder: Path) -> None:
    assert dict(zip(names, outcome(source, names, folder), strict=True)) == dict.fromkeys(names, "")


REFUSED = [
    (source, name)
    for name, idiom in IDIOMS.items()
    for source in idiom.refused
    if source not in ("checkpoint", "module, recorded")  # where it is as of a module
]


@pytest.mark.full_matrix
@pytest.mark.parametrize(("source", "name"), REFUSED)
def test_what_is_refused_is_named(source: str, name: str, tmp_path: Path) -> None:
    with pytest.raises((BnnDeployError, NotMadeError), match=IDIOMS[name].refused[source]):
        outcome(source, [name], tmp_path)


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.export alone has it, the assignment to `.data` vanishes."""
    monkeypatch.setattr(torch_export, "_Data", _OnlyCopies)
    module = network("x", "x.data = torch.sign(x.data)")
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
            network("(x - x.flatten(2).median(2, True).values[..., None]).sign()"),
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
    inner = network("x", "x.data = x.data.sign()")
    module = ThreeOutputs(inner)
    outputs = [info.name for info in onnx.load(convert(module, tmp_path / "m.onnx").output).graph.output]
    options: dict[str, Any] = {"reference_samples": 0, "isas": library_info().isas[:1]}
    result = verify(tmp_path / "m.onnx", module, **options)
    assert result.passed
    found = [(source.backend, source.output, source.close) for source in result.source]
    assert found == [("PyTorch's forward()", output, result.samples) for output in outputs]
    real = torch_module.eager
    offset = ThreeOutputs(inner, offset=1)
    monkeypatch.setattr(torch_module, "eager", lambda module, inputs, copied: real(offset, inputs))
    failures = verify(tmp_path / "m.onnx", module, **options).failures
    assert len(failures) == 2
    for output, failure in zip(outputs[1:], failures, strict=True):
        assert failure.startswith(
            "PyTorch's forward() gives other outputs than its export, against which the layers were held: of "
            f"{output}, only 0 of 32 samples agree within 0.0001 (needed: 50%)"
        )
    monkeypatch.setattr(torch_module, "eager", lambda module, inputs, copied: real(inner, inputs))
    with pytest.raises(InputError, match=r"PyTorch's forward\(\) gives 1 outputs, its export 3"):
        verify(tmp_path / "m.onnx", module, **options)
