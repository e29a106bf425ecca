"""Modules as their users have them, in wrappers, half precision or with parts that resist a copy, become plain ones."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info
from bnn_deploy.source.module_inputs import one_input
from bnn_deploy.source.torch_module import eager, own_copy
from bnn_deploy.source.torch_source import torch_source

pytestmark = pytest.mark.usefixtures("own_exports")


class Net(nn.Module):
    """Linear layer -> BatchNorm -> sign -> binary linear layer with a scale."""

    input_shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 32), nn.BatchNorm1d(32)
        self.weight, self.scale = nn.Parameter(torch.randn(8, 32)), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.norm(self.first(x)).sign(), self.weight.sign()) * self.scale


def net() -> Net:
    """A network with calibrated BatchNorm whose parameters half precision can hold."""
    torch.manual_seed(0)
    module = Net()
    with torch.no_grad():
        for _ in range(20):
            module(torch.randn(64, 4))
        for value in (*module.parameters(), module.norm.running_mean, module.norm.running_var):
            value.copy_(value.half())
    return module.eval()


class Ema(nn.Module):
    """A holder of averaged weights, as in many training scripts: without a forward() of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.decay = 0.999


WRAPPERS: dict[str, Any] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "an EMA holder": Ema,
    "several": lambda module: torch.optim.swa_utils.AveragedModel(nn.DataParallel(torch.compile(module))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off_with_a_word(wrapper: str) -> None:
    plain = net()
    source = torch_source(WRAPPERS[wrapper](plain), None, None)
    assert source.module.state_dict().keys() == plain.state_dict().keys()
    assert source.name == "Net" and len(source.notes) == (3 if wrapper == "several" else 1)
    assert source.notes[-1].endswith(" was taken off: converted is the Net inside it")


@pytest.mark.parametrize(
    "module", [net(), nn.Sequential(net()), nn.ModuleDict({"module": net()})], ids=lambda module: type(module).__name__
)
def test_a_module_with_one_child_is_no_wrapper(module: nn.Module) -> None:
    source = torch_source(module, None, None)
    assert source.module is module and source.notes == ()


@pytest.fixture(scope="module")
def plain_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The converted network as it is."""
    path = tmp_path_factory.mktemp("plain") / "m.onnx"
    convert(net(), path)
    return path.read_bytes()


def compiled_inside(module: Net) -> nn.Module:
    module.first.compile()
    module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
    return module


def with_attributes(module: Net) -> nn.Module:
    """What copy.deepcopy cannot copy: a computed tensor, a lock, and a part that raises while it is being copied."""
    module.last_output = module(torch.randn(2, 4))
    module.lock = threading.Lock()
    object.__setattr__(module, "container", Container(module.norm))
    return module


class Container:
    """As bitorch's containers of exchangeable layers: it shows its layer's class, and raises before it has one."""

    def __init__(self, held: nn.Module) -> None:
        self._held = held

    @property
    def __class__(self) -> Any:
        return type(self.__dict__["_held"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_held"], name)


CASES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "compiled inside": (compiled_inside, ()),
    "in training mode, double, with attributes": (
        lambda module: with_attributes(module).double().train(),
        ("its parameters are float64: converted in float32",),
    ),
    "wrapped and half": (
        lambda module: WRAPPERS["several"](module.half()),
        (
            "AveragedModel was taken off: converted is the DataParallel inside it",
            "DataParallel was taken off: converted is the OptimizedModule inside it",
            "OptimizedModule was taken off: converted is the Net inside it",
            "its parameters are float16: converted in float32",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_converts_to_the_same_bytes_as_the_plain_network(case: str, plain_bytes: bytes, tmp_path: Path) -> None:
    change, notes = CASES[case]
    module = change(net())
    before = {name: (value.dtype, value.clone()) for name, value in module.state_dict().items()}
    report = convert(module, tmp_path / "m.onnx", input_shape=(4,)).report
    assert (tmp_path / "m.onnx").read_bytes() == plain_bytes
    assert report.notes == notes
    assert report.to_json()["notes"] == list(notes)
    after = module.state_dict()
    assert all(
        after[name].dtype == dtype and torch.equal(after[name], value) for name, (dtype, value) in before.items()
    )


def test_verify_takes_them_and_sees_a_corruption(plain_bytes: bytes, tmp_path: Path) -> None:
    options: dict[str, Any] = {"reference_samples": 0, "isas": library_info().isas[:1]}
    (tmp_path / "m.onnx").write_bytes(plain_bytes)
    assert verify(tmp_path / "m.onnx", nn.DataParallel(with_attributes(net()).half()), **options).passed
    wrong = net()
    with torch.no_grad():
        wrong.weight[0, 0].neg_()
    assert not verify(tmp_path / "m.onnx", nn.DataParallel(with_attributes(wrong).half()), **options).passed


def test_a_rebuilt_copy_is_whole_and_apart() -> None:
    module = with_attributes(net())
    with pytest.raises(Exception, match=r"."):
        copy.deepcopy(module)
    module.tied = module.weight  # type: ignore[assignment]
    made: Any = own_copy(module)
    assert made.tied is made.weight and type(made.weight) is nn.Parameter and made.weight is not module.weight
    assert made.container._held is made.norm and made.norm is not module.norm
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(made(x), module(x))
        made.weight.neg_()
        assert not torch.equal(made(x), module(x))


def test_eager_runs_a_copy_in_float32() -> None:
    module = net()
    expected = module(torch.ones(1, 4)).detach().numpy()
    half = net().half().train()
    (got,) = eager(half, one_input((4,)))([torch.ones(1, 4).numpy()])
    assert (got == expected).all()
    assert half.training and half.norm.num_batches_tracked == module.norm.num_batches_tracked


def test_a_state_dict_with_its_architecture(plain_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import test_torch_module\nclass Net(test_torch_module.Net): pass\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        convert(net().state_dict(), tmp_path / "m.onnx", arch=f"{tmp_path}/net.py:Net")
    found, plain = onnx.load(tmp_path / "m.onnx"), onnx.load_from_string(plain_bytes)
    # This one remembers its architecture, and its weights' scheme.
    assert found.graph.node == plain.graph.node
    assert found.graph.initializer == plain.graph.initializer


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Net, "^Net is a class: give a module made of it, with its weights loaded; sources are a torch.nn.Module or "),
        ({}, "^dict is no source: give a torch.nn.Module or "),
        ({"lr": 3}, "^the state dict: say which architecture it is"),
        (
            3,
            "^int is no source: give a torch.nn.Module or ExportedProgram, a checkpoint's path or state dict with "
            "arch=, or an ONNX model",
        ),
        ({"a": torch.ones(1)}, "^the state dict: say which architecture it is: lenet5, .* or FILE.py:NAME"),
    ],
)
def test_what_is_no_source(source: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
