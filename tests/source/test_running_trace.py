"""What torch.export cannot trace is traced by running it; what that freezes is checked, and refused with its line."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info
from bnn_deploy.source import running_trace
from bnn_deploy.source.torch_export import FloatExport, export_float
from bnn_deploy.source.torch_source import torch_source

pytestmark = pytest.mark.usefixtures("own_exports")


class Net(nn.Module, abc.ABC):
    """Convolution -> BatchNorm -> what a test says -> linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(6 * 16, 3)
        self.register_buffer("flag", torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        with torch.no_grad():
            for _ in range(9):
                self.norm(self.first(torch.randn(16, 2, 6, 6)))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.middle(self.norm(self.first(x))).flatten(1))
        return result

    @abc.abstractmethod
    def middle(self, x: Tensor) -> Tensor:
        """What torch.export cannot trace."""


SHAPE = (2, 6, 6)


class ConstantBranch(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.sign() if self.flag > 0 else x


class Statistics(Net):
    def middle(self, x: Tensor) -> Tensor:
        self.mean.data.mul_(0.9).add_(float(x.abs().mean()) * 0.1)
        self.largest = max(float(x.max()), getattr(self, "largest", 0.0))
        return x.sign()


class AlwaysTrue(Net):
    def middle(self, x: Tensor) -> Tensor:
        assert x.max() < 1000, "too large"
        if x.min() < x.max():
            x = x.sign()
        return x.reshape(len(x) * 6, 4, 4).reshape(-1, 6, 4, 4)


class PerSample(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([(x[i : i + 1] - x[i].mean()).sign() for i in range(len(x))])


class Maximum(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.sign() if x.max() > 3 else -x.sign()


class Numpy(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sign(x.detach().numpy()))


def run(export: FloatExport, x: Tensor) -> Any:
    session = ort.InferenceSession(ir.to_proto(export.model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


TAKEN: dict[str, tuple[nn.Module, str, str]] = {
    "a branch on a buffer": (ConstantBranch(), r"line \d+: forward\(\) depends on the values", r"on 4 inputs$"),
    "statistics": (Statistics(), "", r"on 4 inputs; the values read in test_running_trace\.py, line \d+"),
    "a branch that is always taken": (
        AlwaysTrue(),
        r"line \d+: forward\(\) depends on",
        r"on 4 inputs; the values read in",
    ),
    "a loop over the samples": (
        PerSample(),
        r"forward\(\) does something else for each batch size",
        r" for a batch of 1, and checked against forward\(\) on 11 inputs$",
    ),
    "torch.jit.trace": (
        torch.jit.trace(ConstantBranch(), torch.zeros(2, *SHAPE)),  # type: ignore[no-untyped-call]
        "^it is TorchScript; so it was traced by running it on an example",
        r"on 4 inputs$",
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_is_traced_by_running_it(case: str) -> None:
    module, reason, note = TAKEN[case]
    export = export_float(module, SHAPE)
    (line,) = export.notes
    assert re.search(reason, line) and re.search(note, line) and len(line) < 500
    x = torch.randn(1 if "batch of 1" in line else 5, *SHAPE)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(run(export, x), expected, atol=1e-4)
    # The layers and the parameters keep their names.
    assert [node.name for node in export.model.graph if node.op_type in ("Conv", "Gemm", "MatMul")] == ["first", "last"]
    assert {"first.weight", "norm.running_mean", "last.bias"} <= set(export.model.graph.initializers)
    export.model.graph.initializers["last.bias"].const_value = ir.tensor(np.ones(3, np.float32))
    assert not np.allclose(run(export, x), expected, atol=1e-4)


def test_what_depends_on_the_input_is_refused_with_its_line() -> None:
    with pytest.raises(
        InputError,
        match=r"traced by running it on an example, it computes something else on other inputs, by up to [\d.]+ "
        r"standard deviations; the values read in test_running_trace\.py, line \d+ are those of the example: write ",
    ) as caught:
        export_float(Maximum(), SHAPE)
    assert "\n" not in str(caught.value)


def test_what_leaves_pytorch_is_refused_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        InputError, match=r"^torch.export cannot trace Numpy: test_running_trace\.py, line \d+: .*numpy.*; traced by"
    ):
        export_float(Numpy(), SHAPE)
    assert capfd.readouterr() == ("", "")


def test_a_frozen_number_of_the_batch_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the recording is generalised: as it was recorded, the graph takes a batch of 2 alone."""
    monkeypatch.setattr(running_trace, "_free_batch", lambda small, large: True)
    with pytest.raises(InputError, match="nor can it be traced by running it"):
        export_float(AlwaysTrue(), SHAPE)


def program(batch: int | None) -> torch.export.ExportedProgram:
    module = ConstantBranch()
    module.middle = torch.sign  # type: ignore[method-assign, assignment]
    dynamic = None if batch else ({0: torch.export.Dim("n")},)
    return torch.export.export(module, (torch.zeros(batch or 2, *SHAPE),), dynamic_shapes=dynamic)


def test_a_program_of_torch_export(tmp_path: Path) -> None:
    """Of Python, and from its file, which is run only if --arch says so."""
    source = program(None)
    before = {name: value.clone() for name, value in source.state_dict.items()}
    result = convert(source, tmp_path / "m.onnx", weights="xnor")
    assert result.binarized == ("last.weight",) and result.report.notes == ()
    assert all(torch.equal(before[name], value) for name, value in source.state_dict.items())
    torch.export.save(source, tmp_path / "net.pt2")
    options: dict[str, Any] = {"reference_samples": 0, "isas": library_info().isas[:1]}
    checked = verify(tmp_path / "m.onnx", tmp_path / "net.pt2", arch="exported-program", **options)
    assert checked.passed and checked.replaced == ("last.weight",)
    with torch.no_grad():
        source.state_dict["last.weight"].neg_()
    assert not verify(tmp_path / "m.onnx", source, **options).passed
    with pytest.raises(
        InputError, match=r"program's input is \['N', 2, 6, 6\], which input_shape \[2, 7, 7\] does not"
    ):
        convert(source, tmp_path / "m.onnx", input_shape=(2, 7, 7))


def test_a_program_of_a_fixed_batch() -> None:
    export = export_float(program(3), SHAPE)
    assert export.notes[0].startswith("the program was exported for batches of 3: so is the model; dynamic_shapes=")
    assert run(export, torch.zeros(3, *SHAPE)).shape == (3, 3)


def test_a_file_that_holds_a_program_is_run_only_if_asked(tmp_path: Path) -> None:
    torch.export.save(program(None), tmp_path / "net.pt2")
    scripted = TAKEN["torch.jit.trace"][0]
    torch.jit.save(scripted, tmp_path / "net.pt")  # type: ignore[no-untyped-call]
    for name, arch, kind in (
        ("net.pt2", "exported-program", "a program of torch.export"),
        ("net.pt", "torchscript", "a TorchScript program"),
    ):
        with pytest.raises(
            InputError, match=rf"{name}: {kind}, not a checkpoint: arch='{arch}' runs it, if you trust it$"
        ):
            convert(tmp_path / name, tmp_path / "m.onnx", arch="lenet5")
    with pytest.raises(InputError, match=r"net\.pt: not what arch='exported-program' says, or damaged: "):
        convert(tmp_path / "net.pt", tmp_path / "m.onnx", arch="exported-program")
    with pytest.raises(InputError, match=r"no\.pt: no such file"):
        convert(tmp_path / "no.pt", tmp_path / "m.onnx", arch="torchscript")
    assert isinstance(torch_source(tmp_path / "net.pt", "torchscript").module, torch.jit.ScriptModule)


class KeptSize(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.sign() * torch.ones(len(x), 1, 1, 1)


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            raise ValueError("two at most")
        return x.sign()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            lambda: torch.jit.trace(KeptSize(), torch.zeros(2, *SHAPE)),  # type: ignore[no-untyped-call]
            r"test_running_trace\.py, line \d+: an operator fails; torch\.jit\.trace keeps sizes such as len\(x\): it "
            "may run with the batch of its example alone$",
        ),
        (lambda: torch.jit.script(Raising()), r"test_running_trace\.py, line \d+: two at most$"),
    ],
)
def test_torchscript_says_where_it_fails(module: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(InputError, match=rf"it is TorchScript; nor can it be traced by running it: {reason}"):
        export_float(module(), SHAPE)
