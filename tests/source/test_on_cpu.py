"""Networks that were written for a GPU run on the CPU, whatever in them asks for an accelerator."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bnn_deploy.conversion import convert
from bnn_deploy.runtime.session import load_session
from bnn_deploy.source.network_file import build
from bnn_deploy.source.on_cpu import OnCpu
from bnn_deploy.source.torch_module import own_copy

FORMS: dict[str, Callable[[], Tensor]] = {
    "cuda()": lambda: torch.tensor([2.0]).cuda(),
    "cuda(0)": lambda: torch.tensor([2.0]).cuda(0),
    "to a name": lambda: torch.tensor([2.0]).to("cuda:1", torch.float64),
    "to a device": lambda: torch.tensor([2]).to(torch.device("cuda"), dtype=torch.float32, non_blocking=True),
    "to a number": lambda: torch.tensor([2.0]).to(0),
    "to a keyword": lambda: torch.tensor([2.0]).to(device="mps"),
    "made there": lambda: torch.full((1,), 2.0, device="cuda"),
    "made on a number": lambda: torch.full((1,), 2.0, device=0),
    "made where another is": lambda: torch.full((1,), 2.0, device=torch.zeros(1).get_device()),
    "to a number by keyword": lambda: torch.tensor([2.0]).to(device=1),
    "made there of data": lambda: torch.tensor([2.0], device=torch.device("cuda", 0)),
    "made there like another": lambda: torch.zeros(3).new_tensor([2.0], device="cuda"),
    "a type": lambda: torch.tensor([2]).type("torch.cuda.FloatTensor"),
    "a parameter": lambda: nn.Parameter(torch.tensor([2.0]).cuda()),
    "a module": lambda: next(nn.ParameterList([torch.tensor([2.0])]).cuda().to("cuda").parameters()),
    "on the CPU": lambda: torch.tensor([2.0], device="cpu").to("cpu").to(torch.float32).to(torch.zeros(1)).cpu(),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_asks_for_an_accelerator(form: str) -> None:
    with OnCpu():
        made = FORMS[form]()
    assert made.device.type == "cpu" and made.tolist() == [2.0]


def test_meta_tensors_stay_what_they_are() -> None:
    with OnCpu():
        assert torch.ones(2, device="meta").is_meta and torch.ones(2).to("meta").is_meta


FILE = """
import argparse
import sys
import torch
from torch import nn

options = argparse.ArgumentParser()
options.add_argument("--width", type=int, default=32)
width = options.parse_args().width
print("width", width)

class Net(nn.Module):
    input_shape = (4,)

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, width).cuda(), nn.BatchNorm1d(width)
        self.weight = nn.Parameter(torch.ones(8, width).cuda())
        self.k = torch.tensor([3]).float().cuda()

    def forward(self, x):
        print("forward", tuple(x.shape), sys.argv[1:])
        half = torch.tensor([0.5], device="cuda")
        return nn.functional.linear(self.norm(self.first(x)).sign(), self.weight.sign()) * self.k.cuda() * half
"""


def test_a_checkpoint_of_such_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(FILE)
    monkeypatch.setattr(sys, "argv", ["bnn-deploy", "convert", "--width", "31"])
    arch = f"{tmp_path}/net.py:Net"
    torch.manual_seed(0)
    net = build(arch, {})
    with torch.no_grad(), OnCpu():
        net.weight.copy_(torch.randn(8, 32))  # type: ignore[operator]
        net(torch.randn(64, 4))
    state, data = net.state_dict(), torch.randn(64, 4)
    capfd.readouterr()
    assert len(convert(state, tmp_path / "m.onnx", arch=arch).binary_layers) == 1
    out, err = capfd.readouterr()
    assert out == "" and "width 32" in err and "forward (2, 4)" in err  # results alone go to stdout
    assert sys.argv == ["bnn-deploy", "convert", "--width", "31"]
    net.eval()
    signs, weight = net.norm(net.first(data)).sign(), state["weight"].sign()  # type: ignore[operator]
    (result,) = load_session(tmp_path / "m.onnx").run(None, {"input": data.numpy()})
    assert torch.equal(torch.from_numpy(result), signs @ weight.T * 1.5)
    weight[3, 5].neg_()
    assert not torch.equal(torch.from_numpy(result), signs @ weight.T * 1.5)


class Remote(Tensor):
    """Stands for a tensor on a GPU."""

    device = torch.device("cuda:0")

    def cpu(self, *args: object, **kwargs: object) -> Tensor:
        return self.as_subclass(Tensor) + 0


class Inner(nn.Module):
    """A DataParallel in the middle, and a tensor in an attribute that no .cpu() of a module moves."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.DataParallel(nn.Linear(2, 2))
        self.features.device_ids = [0]
        self.k = torch.tensor([3.0]).as_subclass(Remote)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.features(x) * self.k
        return result


def test_a_copy_is_on_the_cpu() -> None:
    module = Inner()
    made = own_copy(module)
    assert type(made.k) is Tensor and type(module.k) is Remote and module.features.device_ids == [0]
    x = torch.ones(1, 2)
    assert torch.equal(made(x), module.features.module(x) * 3)
