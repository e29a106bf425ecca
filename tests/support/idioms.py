"""The ways in which people write a sign in PyTorch, many of them in one network, and the sources that it can be."""

from __future__ import annotations

import contextlib
import copy
import unittest.mock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from bnn_deploy.conversion import convert
from bnn_deploy.runtime.session import load_session
from bnn_deploy.source.user_code import without_output

SHAPE = (2, 4, 4)


@dataclass(frozen=True)
class Idiom:
    """One way to write a sign.

    Attributes:
        result: the sign of x, as Python.
        statements: what comes before.
        where: what is binarised so: "both" activations and weights, or "activation" or "weight" alone.
        refused: source -> what is said there, a regular expression; "PyTorch: ..." if PyTorch cannot make that source.
    """

    result: str
    statements: str = "pass"
    where: str = "both"
    refused: Mapping[str, str] = field(default_factory=dict)


SOURCES = (
    *("module", "module, recorded", "checkpoint", "exported program", "TorchScript"),
    *("ONNX, TorchScript", "ONNX, dynamo"),
)
"""A module as both ways of conversion take it, a state dict with its class, and files of programs."""


def _said(text: str, *sources: str) -> dict[str, str]:
    return dict.fromkeys(sources or SOURCES, text)


_LOST = {
    "ONNX, TorchScript": "Conv '/branches.0/Conv': its input is real-valued",
    "TorchScript": "Conv 'branches.0': its input is real-valued",
}
"""Tracing leaves the assignment out of the program."""

_NO_DATA = _said("PyTorch: .*fake tensor", "exported program", "ONNX, dynamo")

_NO_VALUES = _said("PyTorch: .*data-dependent", "exported program", "ONNX, dynamo")

_ONE_BATCH = {"TorchScript": r"nor .* running it: idioms\.py, line \d+: .*may run with the batch of its example alone"}


def _no_operator(name: str) -> dict[str, str]:
    return {"ONNX, TorchScript": f"PyTorch: Exporting the operator 'aten::{name}'"}


IDIOMS: dict[str, Idiom] = {
    "x.sign()": Idiom("x.sign()"),
    "torch.sgn": Idiom("torch.sgn(x)", refused=_no_operator("sgn")),
    ".data =, torch.sign": Idiom("x", "x.data = torch.sign(x.data)", refused=_LOST | _NO_DATA),
    ".data =, method": Idiom("x", "x.data = x.data.sign()", refused=_LOST | _NO_DATA),
    ".data in place": Idiom("x", "x.data.sign_()", refused=_LOST | _NO_DATA),
    "in place": Idiom("x", "x = x.clone(); x.sign_()"),
    "mask, zeros": Idiom("o", "o = x.sign(); o[o == 0] = 1"),
    "mask, both": Idiom("o", "o = x.clone(); o[x >= 0] = 1; o[x < 0] = -1"),
    "mask, zeros_like": Idiom("o", "o = torch.zeros_like(x); o[x >= 0] = 1; o[x < 0] = -1"),
    "mask, new": Idiom("o", "o = x.new(x.size()); o[x.ge(0)] = 1; o[x.lt(0)] = -1", refused=_ONE_BATCH),
    "mask, new_ones": Idiom("o", "o = x.new_ones(x.shape); o[x.lt(0)] = -1"),
    "masked_fill": Idiom("o", "o = x.sign(); o = o.masked_fill(o == 0, 1)"),
    "masked_fill_": Idiom("o", "o = x.sign(); o.masked_fill_(o == 0, -1)"),
    "where": Idiom("torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))"),
    "where, numbers": Idiom("torch.where(x > 0, 1.0, -1.0)"),
    "x / |x|": Idiom("x / x.abs()"),
    "a table": Idiom("table[(x >= 0).long()]", "table = torch.tensor([-1.0, 1.0])"),
    "heaviside": Idiom("2 * torch.heaviside(x, torch.ones(())) - 1", refused=_no_operator("heaviside")),
    "copysign": Idiom(
        "torch.copysign(torch.ones(()), x)",
        refused=_no_operator("copysign") | {"ONNX, dynamo": "PyTorch: .*No ONNX function found for .*prims.signbit"},
    ),
    "signbit": Idiom("1 - 2 * torch.signbit(x).float()", refused=_no_operator("signbit")),
    "clamp of a sign": Idiom("torch.clamp(x.sign(), -1, 1)"),
    "ceil": Idiom("2 * torch.ceil(torch.clamp(x, 0, 1)) - 1"),
    "floor": Idiom(
        "2 * torch.floor(torch.clamp(x + 1, 0, 1.5)) - 1",
        refused={"ONNX, dynamo": "PyTorch: .*Cannot find a compatible OpOverload for aten.clamp"},
    ),
    "round of a sigmoid": Idiom("2 * torch.round(torch.sigmoid(x)) - 1"),
    "round of a hard sigmoid": Idiom("2 * torch.round(torch.clamp((x + 1) / 2, 0, 1)) - 1"),
    "a power of -1": Idiom("(-1.0) ** (x < 0).float()"),
    "to int and back": Idiom("x.sign().int().float()"),
    "to half and back": Idiom("x.sign().half().float()"),
    "in double": Idiom("x.double().sign().float()"),
    "comparison": Idiom("(x > 0).float() * 2 - 1"),
    "two comparisons": Idiom("(x >= 0).type_as(x) - (x < 0).type_as(x)"),
    "mul_, sub_": Idiom("o", "o = (x >= 0).float(); o.mul_(2).sub_(1)"),
    "straight-through": Idiom("(x.sign() - x).detach() + x"),
    "straight-through tanh": Idiom("(x.sign() - torch.tanh(x)).detach() + torch.tanh(x)"),
    "hardtanh first": Idiom("nn.functional.hardtanh(x).sign()"),
    "a mean per sample": Idiom("x.sign() * x.abs().mean((1, 2, 3), keepdim=True)"),
    "autograd.Function": Idiom(
        "Sign.apply(x)", refused={"TorchScript": "PyTorch: Could not export Python function call 'Sign'"}
    ),
    "flip": Idiom("x.sign().flip(1)"),
    "roll": Idiom("torch.roll(x.sign(), 1, 1)"),
    "index": Idiom("x.sign()[:, [3, 1, 0, 2]]"),
    "split and cat": Idiom("torch.cat(x.sign().chunk(2, 1)[::-1], 1)"),
    "nearest upsampling": Idiom("nn.functional.interpolate(x.sign(), scale_factor=2)", where="activation"),
    "min-pool": Idiom("-nn.functional.max_pool2d(-x.sign(), 2)", where="activation"),
    "thermometer": Idiom(
        "(x[:, :2, None] >= levels).float().mul(2).sub(1).flatten(1, 2)",
        "levels = torch.tensor([-0.5, 0.5]).view(2, 1, 1)",
        where="activation",
    ),
    "a constant per sample": Idiom(
        "(x - self.constant.expand(len(x), -1, -1, -1)).sign()",
        where="activation",
        refused=_ONE_BATCH | {"exported program": "PyTorch: Constraints violated"},
    ),
    "attributes": Idiom("x.sign()", "self.seen = x.detach(); self.calls += 1; self.count = 1"),
    "print and assert": Idiom("x.sign()", "print(x.shape); assert x.dim() == 4"),
    "weight.org": Idiom(
        "x", "x.org = getattr(x, 'org', x.data.clone()); x.data = x.org.sign()", where="weight", refused=_NO_DATA
    ),
    "a parametrization": Idiom("x", where="parametrization"),
    "a quantile": Idiom(
        "x.sign() * x.abs().flatten(1).quantile(0.5, dim=1).view(-1, 1, 1, 1)",
        where="weight",
        refused=_no_operator("quantile"),
    ),
    "topk": Idiom("x.sign() * x.abs().flatten(1).topk(3).values.mean(1).view(-1, 1, 1, 1)", where="weight"),
    "a branch on values": Idiom("x", "if x.min() < x.max(): x = x.sign()", where="activation", refused=_NO_VALUES),
    "an assertion on values": Idiom("x.sign()", "assert x.max() < 1000", where="activation", refused=_NO_VALUES),
    "a saturated clip": Idiom("torch.clamp(1e9 * x, -1, 1)", where="activation", refused=_said("has only 2 values")),
    "bernoulli": Idiom("2 * torch.bernoulli(torch.sigmoid(x)) - 1", where="activation", refused=_said("(?i)bernoulli")),
}
"""What is refused stands with its reason; everything else becomes binary."""


def groups(source: str, size: int = 14) -> list[list[str]]:
    """The idioms that become binary from a source, as many in one network as take a moment to export."""
    names = [name for name, idiom in IDIOMS.items() if source not in idiom.refused]
    return [names[i : i + size] for i in range(0, len(names), size)]


_NETWORK = '''
import torch
from torch import nn

class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)
    @staticmethod
    def backward(ctx, gradient):
        return gradient

class SignOf(nn.Module):
    def forward(self, w):
        return w.sign()

class Branch(nn.Module):
    """BatchNorm -> sign -> binary convolution."""
    def __init__(self):
        super().__init__()
        self.norm, self.weight = nn.BatchNorm2d(4), nn.Parameter(torch.randn(3, 4, 3, 3))
        self.register_buffer("constant", torch.randn(1, 4, 1, 1))
        self.register_buffer("calls", torch.zeros(()))
'''
_BRANCH = """
class Branch{i}(Branch):
    {init}
    def binarize(self, x):
        {statements}
        return {result}
    def forward(self, x):
        return nn.functional.conv2d({activation}, {weight}, padding=1)
"""
_PARAMETRIZED = """def __init__(self):
        super().__init__()
        nn.utils.parametrize.register_parametrization(self, "weight", SignOf())"""
_WHOLE = """
class Net(nn.Module):
    input_shape = {shape}
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.branches = nn.ModuleList([{branches}])
    def forward(self, x):
        x = self.first(x)
        return tuple([branch(x) for branch in self.branches])
"""


def _text(names: Sequence[str]) -> str:
    """A file with the network of these idioms, one branch each."""
    parts = [_NETWORK]
    for i, idiom in enumerate(IDIOMS[name] for name in names):
        both = idiom.where == "both"
        weight = "self.weight" if idiom.where == "parametrization" else "self.weight.sign()"
        parts.append(
            _BRANCH.format(
                i=i,
                init=_PARAMETRIZED if idiom.where == "parametrization" else "pass",
                statements=idiom.statements,
                result=idiom.result,
                activation="self.binarize(self.norm(x))"
                if both or idiom.where == "activation"
                else "self.norm(x).sign()",
                weight="self.binarize(self.weight)" if both or idiom.where == "weight" else weight,
            )
        )
    branches = ", ".join(f"Branch{i}()" for i in range(len(names)))
    return "\n".join([*parts, _WHOLE.format(shape=SHAPE, branches=branches)])


@contextlib.contextmanager
def _quiet() -> Any:
    with without_output(), torch.no_grad():
        yield


class NotMadeError(Exception):
    """PyTorch cannot make this source of the network."""


def outcome(source: str, names: Sequence[str], folder: Path) -> list[str]:
    """Convert the network of these idioms from one source.

    Returns:
        For each idiom, what is not right of it; "" if its layer is binary, its outputs are those of the source, and a
        flipped weight bit changes them.

    Raises:
        NotMadeError: PyTorch cannot make the source.
        BnnDeployError: it is refused, or a layer stays float.
    """
    file = folder / "idioms.py"
    file.write_text(_text(names))
    made = ModuleType("idioms")
    made.__file__ = str(file)
    exec(compile(file.read_text(), file, "exec"), vars(made))
    torch.manual_seed(0)
    net: Any = made.Net()
    with _quiet():
        for _ in range(3):
            net(torch.randn(16, *SHAPE))
    net.eval()
    x = torch.randn(2, *SHAPE)
    given = _source(source, net, x, folder)
    first_way = unittest.mock.patch("bnn_deploy.source.torch_export._dynamic_shapes", side_effect=RuntimeError)
    with _quiet(), first_way if source == "module, recorded" else contextlib.nullcontext():
        arch = {"checkpoint": f"{file}:Net", "TorchScript": "torchscript"}.get(source)
        shape = None if "ONNX" in source else SHAPE
        result = convert(given, folder / "m.onnx", arch=arch, input_shape=shape, strict=True)
        expected = (
            _run(ort.InferenceSession(given), x) if "ONNX" in source else [y.numpy() for y in copy.deepcopy(net)(x)]
        )
    assert len(result.binary_layers) == len(names), (result.binary_layers, [str(left) for left in result.left_float])
    got = _run(load_session(folder / "m.onnx", 1), x)
    wrong = onnx.load(folder / "m.onnx")
    for tensor in wrong.graph.initializer:
        if tensor.name.endswith("weight_bits"):
            bits = numpy_helper.to_array(tensor).copy()
            bits.flat[0] ^= 1
            tensor.CopyFrom(numpy_helper.from_array(bits, tensor.name))
    flipped = _run(load_session(wrong.SerializeToString(), 1), x)
    said = []
    for right, *others in zip(expected, got, flipped, strict=True):
        off, seen = (abs(values - right).max() / right.std() for values in others)
        said.append("" if off < 1e-4 < seen else f"off by {off:.2g}; with a flipped bit by {seen:.2g}")
    return said


def _run(session: ort.InferenceSession, x: torch.Tensor) -> list[NDArray[np.float32]]:
    results: list[NDArray[np.float32]] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return results


def _source(source: str, net: nn.Module, x: torch.Tensor, folder: Path) -> Any:
    """What `convert` is given."""
    net = copy.deepcopy(net)
    path = folder / "float.onnx"
    try:
        with _quiet():
            if source == "exported program":
                return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
            if source == "ONNX, TorchScript":
                axes = {"input": {0: "N"}}
                torch.onnx.export(net, (x,), path, dynamo=False, input_names=["input"], dynamic_axes=axes)
                return path
            if source == "ONNX, dynamo":
                shapes = ({0: torch.export.Dim("N")},)
                torch.onnx.export(net, (x,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
                return path
            if source == "TorchScript":
                torch.jit.save(torch.jit.trace(net, x), folder / "net.pt")
                return folder / "net.pt"
            if source == "checkpoint":
                torch.save(net.state_dict(), folder / "net.pth")
                return folder / "net.pth"
    except Exception as error:  # torch has no type for it
        raise NotMadeError(" ".join(f"PyTorch: {error} {error.__cause__ or ''}".split())) from error
    return net
