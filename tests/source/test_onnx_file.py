"""Whole float ONNX models, as exporters write them, through `convert` and `verify`; and those that are refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from onnx import TensorProto, helper
from torch import Tensor, nn

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.operators.contract import operator_of
from bnn_deploy.proof.verification import verify
from support.graphs import batch_norm, eighths, parse, weights

BODY = """c = Conv <pads=[1,1,1,1]> (x, first)
n = BatchNormalization (c, g, b, m, v)
a = Greater (n, zero)
s = Where (a, one, minus)
p = Pad (s, pads, minus)
d = Conv (p, w)
r = PRelu (d, slope)
t = Sign (r)
f = Flatten (t)
y = MatMul (f, last)"""


def constants(latent: bool = False) -> dict[str, Any]:
    w = weights(6, 5, 3, 3)
    return {
        "first": eighths(5, 3, 3, 3),
        **batch_norm(5, gamma=[1, -1, 0.5, -2, 1]),
        "zero": np.float32(0),
        "one": np.float32(1),
        "minus": np.float32(-1),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "w": w * eighths(6, 5, 3, 3, seed=5) + np.sign(w) if latent else w,
        "slope": np.full((6, 1, 1), 0.25, np.float32),
        "last": weights(6 * 64, 10, seed=2),
    }


def network(batch: str | int = "N", body: str = BODY, latent: bool = False) -> onnx.ModelProto:
    return ir.to_proto(parse(body, (batch, 3, 8, 8), **constants(latent)))


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "float.onnx")
    return folder / "float.onnx"


def proves(source: Any, folder: Path, binary: int, shape: tuple[int, ...] = (3, 8, 8), **options: Any) -> None:
    """Convert, verify against the source itself, and see a corruption of the result."""
    result = convert(source, folder / "m.onnx", **options)
    assert len(result.binary_layers) == binary, result.left_float
    data = np.random.default_rng(0).standard_normal((24, *shape)).astype(np.float32)
    proof = verify(result.output, source, data=data, reference_samples=2)
    assert proof.passed, proof.failures
    assert {layer.kind for layer in proof.layers} == {"bits", "floats"}
    model = onnx.load(result.output)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("weight_bits"))
    bits = onnx.numpy_helper.to_array(tensor).copy()
    bits.flat[: bits.size // 2] ^= 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(bits, tensor.name))
    onnx.save(model, folder / "wrong.onnx")
    assert not verify(folder / "wrong.onnx", source, data=data, reference_samples=0, isas=["scalar"]).passed


def test_a_file(tmp_path: Path) -> None:
    proves(saved(network(), tmp_path), tmp_path, 2)


SIGN = "a = Greater (n, zero)\ns = Where (a, one, minus)\np = Pad (s, pads, minus)"
ELSEWHERE = {
    "Pad before the sign": "q = Pad (n, pads)\na = Less (q, zero)\np = Where (a, minus, one)",
    "Clip between Pad and sign": "q = Pad (n, pads, minus)\nk = Clip (q, minus, one)\np = Sign (k)",
    "channels last": (
        "q = Transpose <perm=[0,2,3,1]> (n)\na = Less (q, zero)\nk = Where (a, minus, one)\n"
        "s = Transpose <perm=[0,3,1,2]> (k)\np = Pad (s, pads, one)"
    ),
    "a threshold": "a = Less (n, tenth)\ns = Where (a, one, minus)\np = Pad (s, pads, minus)",
    "a pool between two signs": (
        "k = Sign (n)\nq = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (k)\ns = Sign (q)\np = Pad (s, pads, one)"
    ),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_verify_finds_the_pre_activation(where: str, tmp_path: Path) -> None:
    """The bits stand for a part of a tensor, or one in another layout, or one with a threshold of its own."""
    body = BODY.replace(SIGN, ELSEWHERE[where])
    known = constants() | {"tenth": np.float32(0.1)}
    read = {
        name: value
        for name, value in known.items()
        if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    source = saved(ir.to_proto(parse(body, ("N", 3, 8, 8), **read)), tmp_path)
    proves(source, tmp_path, 2)
    # A threshold that is off by a little is told from rounding by the pre-activations.
    model = onnx.load(tmp_path / "m.onnx")
    thresholds = [
        node.input[row.threshold.input]
        for node in model.graph.node
        if (row := operator_of(node)) is not None and row.threshold is not None
    ]
    tensor = next(t for t in model.graph.initializer if t.name == thresholds[0])
    moved = onnx.numpy_helper.to_array(tensor) + np.float32(0.05)
    tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    data = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    proof = verify(tmp_path / "wrong.onnx", source, data=data, reference_samples=0, isas=["scalar"])
    layer = next(x for x in proof.layers if x.kind == "bits")
    assert layer.differing and not layer.passed
    if where != "a pool between two signs":  # this one's input is ±1
        assert 1e-3 < layer.margin < 0.5, "in units of the pre-activation, not of the sign"


@pytest.mark.parametrize("form", [lambda model: model, ir.from_proto])
def test_a_model_in_memory(form: Any, tmp_path: Path) -> None:
    proves(form(network()), tmp_path, 2)


def test_a_fixed_batch(tmp_path: Path) -> None:
    proves(saved(network(batch=4), tmp_path), tmp_path, 2)
    with pytest.raises(InputError, match="3 inputs, but the model was exported for batches of exactly 4"):
        verify(tmp_path / "m.onnx", tmp_path / "float.onnx", data=np.zeros((3, 3, 8, 8), np.float32))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_an_older_opset(opset: int, tmp_path: Path) -> None:
    model = network(body=BODY.replace("Greater (n, zero)", "Less (zero, n)"))
    del model.graph.value_info[:]
    model.opset_import[0].version = opset
    proves(saved(model, tmp_path), tmp_path, 2)


def test_constants_that_are_listed_as_inputs(tmp_path: Path) -> None:
    """As before IR version 4."""
    model = network()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    proves(saved(model, tmp_path), tmp_path, 2)


def test_qonnx(tmp_path: Path) -> None:
    model = network()
    names = {"s": "n", "wq": "w"}
    model.opset_import.append(helper.make_opsetid("qonnx.custom_op.general", 1))
    for name, value in (("half", 0.5), ("minus_half", -0.5)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    nodes = [node for node in model.graph.node if node.output[0] not in ("a", "s")]
    for node in nodes:
        if node.output[0] == "p":
            node.input[2] = "minus_half"
        elif node.output[0] == "d":
            node.input[1] = "wq"
    quants = [
        helper.make_node("BipolarQuant", [x, "half"], [y], y, domain="qonnx.custom_op.general")
        for y, x in names.items()
    ]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], *quants, *nodes[2:]])
    proves(saved(model, tmp_path), tmp_path, 2)


def test_symbolic_sizes_need_the_shape(tmp_path: Path) -> None:
    model = network()
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = name
    del model.graph.value_info[:]
    source = saved(model, tmp_path)
    with pytest.raises(InputError, match=r"are not numbers \(N, 3, H, W\); give input_shape"):
        convert(source, tmp_path / "m.onnx")
    proves(source, tmp_path, 2, input_shape=(3, 8, 8))
    with pytest.raises(InputError, match="does not fit"):
        convert(source, tmp_path / "m.onnx", input_shape=(4, 8, 8))


@pytest.mark.parametrize("scheme", ["xnor", "xnor-centred", "sign"])
def test_latent_weights(scheme: Any, tmp_path: Path) -> None:
    """`verify` binarises the weights of the float file by the scheme that the converted model names."""
    source = saved(network(latent=True), tmp_path)
    with pytest.raises(InputError, match="Are they latent"):
        convert(source, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
    proves(source, tmp_path, 2, weights=scheme)
    result = convert(source, tmp_path / "as_is.onnx", weights="as-is")
    assert [decline.node for decline in result.left_float if decline.has_sign_input] == ["d"]


class Sign(torch.autograd.Function):
    """A sign of one's own, with sign(0) = +1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))


class Dialects(nn.Module):
    """A learned threshold, the straight-through trick with two clamps, a legacy sign, and a linear layer of a view."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.threshold = nn.Parameter(torch.randn(1, 8, 1, 1) / 4)
        self.second, self.third, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8 * 64, 10)
        self.prelu = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        moved = x + self.threshold.expand_as(x)
        trick = torch.sign(moved).detach() - torch.clamp(moved, -1, 1).detach() + torch.clamp(moved, -1, 1)
        w = self.second.weight
        scale = w.abs().mean((1, 2, 3), keepdim=True)
        binary = (scale * torch.sign(w)).detach() - torch.clamp(w, -1, 1).detach() + torch.clamp(w, -1, 1)
        x = self.prelu(F.conv2d(trick, binary, padding=1)) + x
        x = F.conv2d(F.pad(Sign.apply(x), (1, 1, 1, 1), value=-1.0), (self.third.weight > 0).float() * 2 - 1) + x
        return F.linear(torch.sign(x).view(x.shape[0], -1), torch.sign(self.fc.weight), self.fc.bias)


@pytest.fixture
def dialects(seeded_torch: None) -> nn.Module:
    module = Dialects()
    with torch.no_grad():
        module(torch.randn(64, 3, 8, 8))  # BatchNorm's statistics
    return module.eval()


def test_a_module(dialects: nn.Module, tmp_path: Path) -> None:
    proves(dialects, tmp_path, 3)


@pytest.mark.parametrize("how", ["dynamo", "TorchScript"])
def test_what_pytorch_exports(how: str, dialects: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "dynamo":
            shapes = ({0: torch.export.Dim("batch")},)
            example = (torch.randn(2, 3, 8, 8),)
            torch.onnx.export(
                dialects, example, path, dynamo=True, optimize=False, dynamic_shapes=shapes, verbose=False
            )
        else:
            example = (torch.randn(2, 3, 8, 8),)
            options: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}, "opset_version": 13}
            torch.onnx.export(dialects, example, path, dynamo=False, **options)
    proves(path, tmp_path, 3)
    assert str(tmp_path) not in (tmp_path / "m.onnx").read_bytes().decode(errors="ignore")


def test_the_invalid_graph_that_pytorch_makes_of_two_clamps(dialects: nn.Module, tmp_path: Path) -> None:
    """The exporter's optimiser leaves a name dangling; `convert MODULE` exports without it (see test_a_module)."""
    path = tmp_path / "float.onnx"
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(dialects, (torch.randn(2, 3, 8, 8),), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(path)
    try:
        onnx.checker.check_model(onnx.load(path))
    except onnx.checker.ValidationError:
        with pytest.raises(InputError, match=r"invalid: Clip .* which nothing makes\..* optimize=False"):
            convert(path, tmp_path / "m.onnx")
    else:  # a PyTorch that does better
        proves(path, tmp_path, 3)


def no_such_name(model: onnx.ModelProto) -> None:
    model.graph.node[4].input[0] = "nowhere"


def training_batch_norm(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["running_mean", "running_var"])


def training_dropout(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("ratio", TensorProto.FLOAT, [], [0.5]))
    model.graph.initializer.append(helper.make_tensor("mode", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(4, helper.make_node("Dropout", ["s", "ratio", "mode"], ["dropped"], "dropout"))
    model.graph.node[5].input[0] = "dropped"


def unknown_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("larq", 1))
    model.graph.node[3].domain = "larq"


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def strings(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, ["N"]))


def zero_filter(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[2] = 0
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w"))


def no_signs(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in ("Sign", "Where"):
            node.op_type, node.input[:] = "Relu", [node.input[-1] if node.op_type == "Sign" else "n"]
    last = next(t for t in model.graph.initializer if t.name == "last")  # two-valued, it would be stored as bits
    array = np.random.default_rng(0).standard_normal(last.dims).astype(np.float32)
    last.CopyFrom(onnx.numpy_helper.from_array(array, "last"))


def already_converted(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("bnn_deploy", 1))
    model.graph.node[7].domain = "bnn_deploy"


BROKEN = {
    no_such_name: "Pad 'p' reads 'nowhere', which nothing makes",
    training_batch_norm: "BatchNormalization 'n' is in training mode; call model.eval() and export again",
    training_dropout: "Dropout 'dropout' is in training mode",
    unknown_domain: "Where 's' is of the domain larq, which has no definition here",
    no_outputs: "it has 1 inputs and 0 outputs; it needs both",
    strings: "its input 'text' is STRING; convert takes float32, integers and booleans",
    zero_filter: "filter 2 is all zeros",
    no_signs: "no layer of",
    already_converted: "it is converted already",
}


@pytest.mark.parametrize("breakage", BROKEN, ids=lambda function: function.__name__)
def test_refuses(breakage: Any, tmp_path: Path) -> None:
    model = network()
    breakage(model)
    source = saved(model, tmp_path)
    result = CliRunner().invoke(main, ["convert", str(source), "-o", str(tmp_path / "m.onnx")])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and BROKEN[breakage] in line and "internal error" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_the_command_line(tmp_path: Path) -> None:
    source = saved(network(), tmp_path)
    result = CliRunner().invoke(main, ["convert", str(source), "-o", str(tmp_path / "m.onnx"), "--strict"])
    assert result.exit_code == 0, result.output
    assert "2 layers binary, 1 left float" in result.stdout
    arguments = ["verify", str(tmp_path / "m.onnx"), "--against", str(source), "--reference-samples", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    for arguments, text in (
        (["--arch", "nin"], "leave out --arch nin"),
        (["--input-shape", "1,2,3"], "which --input-shape [1, 2, 3] does not fit"),
    ):
        result = CliRunner().invoke(main, ["convert", str(source), "-o", str(tmp_path / "n.onnx"), *arguments])
        assert result.exit_code == 2
        assert text in result.stderr
    result = CliRunner().invoke(main, ["convert", str(source), "-o", str(source)])
    assert result.exit_code == 2
    assert "is the model itself" in result.stderr
    for name, content in (
        ("missing", None),
        ("empty", b""),
        ("text", b"no model"),
        ("half", source.read_bytes()[:999]),
    ):
        path = tmp_path / f"{name}.onnx"
        if content is not None:
            path.write_bytes(content)
        result = CliRunner().invoke(main, ["convert", str(path), "-o", str(tmp_path / "n.onnx")])
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "n.onnx").exists()
