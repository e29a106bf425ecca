"""Modules with several inputs, of any type: converted from shapes or examples, and verified against forward()."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import load_session
from bnn_deploy.source.module_inputs import ModuleInputs, module_inputs, program_inputs
from bnn_deploy.source.torch_export import export_float
from bnn_deploy.source.torch_module import eager
from support.golden_files import BEST


class Backbone(nn.Module):
    """Convolution -> BatchNorm -> sign -> binary convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.second.weight.data.sign_().mul_(0.25)
        for _ in range(9):
            self.norm(self.first(torch.randn(16, 3, 6, 6)))
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.norm(self.first(x)).sign())
        return result


class Masked(Backbone):
    """Three inputs, one of them by name behind a default; a dict of outputs, one of them integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.register_buffer("mask", torch.arange(1.0, 7).reshape(6, 1, 1))  # named like an input

    def forward(self, images: Tensor, mask: Tensor, scale: Tensor | None = None, *, ids: Tensor) -> dict[str, Any]:
        y = torch.where(mask, self.features(images) * self.mask, 0.0)
        y = y.mean((2, 3)) * (1 if scale is None else scale) + self.embedding(ids).sum(1)
        return {"scores": y, "rest": (y.argmax(1), None, ids + 1)}


class Pair(Backbone):
    """Two images, and a branch that torch.export cannot trace; a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flag", torch.ones(()))

    def forward(self, sign: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:  # an input named like an operator
        a, b = self.features(sign), self.features(right)
        return (a - b if self.flag > 0 else a), (a * b).flatten(1).sum(1)


class Anchors(Backbone):
    """A table without the batch behind the images."""

    def forward(self, *tensors: Tensor) -> Tensor:
        images, table = tensors
        return self.features(images).flatten(2) @ table


def batch(count: int) -> dict[str, Tensor]:
    """Inputs of Masked."""
    generator = torch.Generator().manual_seed(count)
    return {
        "images": torch.randn(count, 3, 6, 6, generator=generator),
        "mask": torch.rand(count, 1, 6, 6, generator=generator) < 0.7,
        "ids": torch.randint(0, 10, (count, 4), generator=generator),
    }


def pairs(count: int) -> dict[str, Tensor]:
    """Inputs of Pair."""
    generator = torch.Generator().manual_seed(count)
    return {name: torch.randn(count, 3, 6, 6, generator=generator) for name in ("sign", "right")}


def program() -> torch.export.ExportedProgram:
    free = {0: torch.export.Dim("n", max=64)}
    images, mask, ids = batch(2).values()
    shapes = {"images": free, "mask": free, "ids": free}
    return torch.export.export(Masked(), (images, mask), {"ids": ids}, dynamic_shapes=shapes)


SHAPES: Any = {"ids:int64": (4,), "images": (3, 6, 6), "mask:bool": (1, 6, 6)}
CASES: dict[str, tuple[type[nn.Module], dict[str, Any], dict[str, Tensor], str]] = {
    "shapes": (Masked, {"input_shape": SHAPES}, batch(5), ""),
    "traced by running": (Pair, {"example_inputs": tuple(pairs(3).values())}, pairs(5), "so it was traced by running"),
    "a table": (
        Anchors,
        {"example_inputs": (torch.randn(2, 3, 6, 6), np.eye(36, 3, dtype=np.float64))},
        {"tensors_0": torch.randn(5, 3, 6, 6), "tensors_1": torch.eye(36, 3)},
        "",
    ),
}


def forward(module: nn.Module, tensors: dict[str, Tensor]) -> list[NDArray[Any]]:
    """All outputs of a module."""
    named = {"ids": tensors["ids"]} if "ids" in tensors else {}
    with torch.no_grad():
        outputs = module(*(tensor for name, tensor in tensors.items() if name not in named), **named)
    return [x.numpy() for x in tree_leaves(outputs) if x is not None]


def numpy(tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def same(got: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> bool:
    """Whether all outputs have the same types, and the same values but for rounding."""
    return all(a.dtype == b.dtype and np.allclose(a, b, atol=1e-4) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_is_verified_against_forward(case: str, tmp_path: Path) -> None:
    make, options, tensors, note = CASES[case]
    result = convert(make(), tmp_path / "m.onnx", **options)
    assert len(result.binary_layers) == (2 if note else 1), result.left_float
    assert note in " ".join(result.report.notes) and bool(note) == bool(result.report.notes)
    session = load_session(tmp_path / "m.onnx")
    assert [item.name for item in session.get_inputs()] == list(tensors)
    assert same(session.run(None, numpy(tensors)), forward(make(), tensors))
    quick: dict[str, Any] = {"data": numpy(tensors), "isas": BEST, "reference_samples": 0}
    assert (proof := verify(tmp_path / "m.onnx", make(), **quick)).passed, proof.failures
    wrong = onnx.load(tmp_path / "m.onnx")
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith("weight_bits"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) ^ 1, tensor.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", make(), **quick).passed


@pytest.mark.parametrize("kind", ["a program", "TorchScript"])
def test_programs_take_several_inputs(kind: str) -> None:
    source: Any
    if kind == "a program":
        source, module, tensors = program(), Masked(), batch(5)
        inputs, weight = program_inputs(source), "second.weight"
    else:
        module, tensors = Pair(), pairs(5)
        with warnings.catch_warnings(action="ignore"):  # of the branch, and that it is deprecated
            source = torch.jit.trace(module, tuple(pairs(2).values()))  # type: ignore[no-untyped-call]
        inputs, weight = module_inputs(source, "", dict.fromkeys(("right", "sign"), (3, 6, 6))), "second.weight"
    export, arrays, expected = export_float(source, inputs), numpy(tensors), forward(module, tensors)
    assert same(eager(source, inputs)(list(arrays.values())), expected)
    for right in (True, False):
        content = ir.to_proto(export.model).SerializeToString()
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        assert [item.name for item in session.get_inputs()] == list(arrays)
        assert same(session.run(None, arrays), expected) is right
        export.model.graph.initializers[weight].const_value = ir.tensor(-module.second.weight.detach().numpy())


def test_the_command(tmp_path: Path) -> None:
    """Shapes with names and types, then verify and profile on the same data."""
    (tmp_path / "net.py").write_text("from test_module_inputs import Masked\ndef net():\n    return Masked()\n")
    torch.save(Masked().state_dict(), tmp_path / "net.pth")
    np.savez(tmp_path / "data.npz", **numpy(batch(4)))
    shapes = ("images=3,6,6", "mask:bool=1,6,6", "ids:int64=4")
    arch = ["--arch", f"{tmp_path / 'net.py'}:net"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        for arguments in (
            ["convert", "net.pth", *arch, "-o", "m.onnx", *(part for s in shapes for part in ("--input-shape", s))],
            ["verify", "m.onnx", "--against", "net.pth", *arch, "--data", "data.npz", "--isa", BEST[0]],
        ):
            arguments = [str(tmp_path / part) if (tmp_path / part).suffix in FILES else part for part in arguments]
            done = CliRunner().invoke(main, arguments)
            assert done.exit_code == 0, done.output
    assert profile(tmp_path / "m.onnx", runs=1, data=tmp_path / "data.npz", batch=2).input_shapes["ids"] == (2, 4)
    assert inspect_model(tmp_path / "m.onnx").metadata["bnn_deploy.input_shape"] == (
        '{"images": [3, 6, 6], "mask": [1, 6, 6], "ids": [4]}'
    )


FILES = (".pth", ".onnx", ".npz")


def kinds(inputs: ModuleInputs) -> str:
    return ", ".join(map(str, inputs.items))


class Other(nn.Module):
    def forward(self, x: Tensor, *, flag: bool = False, y: Tensor | None = None, **more: Tensor) -> Tensor:
        return x if y is None else x + y


def test_how_they_are_passed() -> None:
    inputs = module_inputs(Masked(), "", SHAPES)
    assert kinds(inputs) == "images float32[N, 3, 6, 6], mask bool[N, 1, 6, 6], ids int64[N, 4]"
    assert inputs.arguments("abc") == (("a", "b"), {"ids": "c"})
    inputs = module_inputs(Other(), "", {"z": (2,), "y": (3,), "x": (4,)})
    assert inputs.names == ["x", "y", "z"] and inputs.arguments("abc") == (("a",), {"y": "b", "z": "c"})
    assert kinds(module_inputs(Other(), "", (4, 4))) == "input float32[N, 4, 4]"
    assert kinds(module_inputs(Other(), "", None, torch.zeros(2, 4).byte())) == "input uint8[N, 4]"
    inputs = module_inputs(Masked(), "", None, (torch.zeros(3, 2).half(), torch.ones(3), *[torch.ones(())] * 2))
    assert kinds(inputs) == "images float32[N, 2], mask float32[N], scale float32[], ids float32[]"
    ids = module_inputs(Other(), "", None, {"x": torch.tensor([[7, 9]])})
    assert set(ids.random(50, 1, 1)[0].flatten().tolist()) == {7, 9} and ids.example()[0].tolist() == [[7, 9], [7, 9]]
    masks, pixels = module_inputs(Other(), "", {"x:bool": (9,), "y:int8": (99,)}).random(9, 1, 1)
    assert set(masks.flatten().tolist()) == {False, True} and pixels.min() < -99 and pixels.max() > 99
    assert Masked.forward.__kwdefaults__ is None and program_inputs(program()).names == ["images", "mask", "ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ((3, 6, 6),),
            r"^net: its forward\(\) takes images, mask, scale, ids, and nothing is said of mask, ids: give ",
        ),
        (({"images": (3, 6, 6)},), r"nothing is said of mask, ids: give input_shape for each by its name, NAME=C,H,W"),
        (({"image": (3,)},), r"it has no input 'image', which input_shape names; forward\(\) takes images, mask, sc"),
        (({"ids:int63": (3,)},), "input_shape ids:int63: int63 is no type of an input; these are: float32, int64"),
        (((3,), torch.zeros(2, 3)), "the example inputs say their shapes: leave out input_shape"),
        ((None, (torch.zeros(2), [1])), "the example input 'mask' is a list, not a tensor: pass tensors alone"),
        ((None, [torch.zeros(2)] * 5), "5 example inputs, but forward.. takes images, mask, scale, ids"),
        ((None, torch.zeros(2, dtype=torch.complex64)), "the example input 'input' is complex64; inputs are float32,"),
        ((None, torch.zeros(())), r"the example inputs have no batch: each is \[N, \.\.\.\], N >= 1"),
        ((None,), r"Masked has no attribute input_shape: give input_shape=\(C, H, W\)"),
    ],
)
def test_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        module_inputs(Masked(), "net", *arguments)


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    source = program()
    with pytest.raises(InputError, match=r"is images float32\[N, 3, 6, 6\], .* which input_shape \{'mask': \(1, 7"):
        program_inputs(source, {"mask": (1, 7, 7)})
    with pytest.raises(InputError, match=r"a program of torch\.export says its inputs itself"):
        program_inputs(source, None, torch.zeros(1))
    with pytest.raises(InputError, match="example_inputs are those of a torch module; this source says its inputs"):
        convert(tmp_path / "f.onnx", tmp_path / "m.onnx", example_inputs=torch.zeros(1))
    with pytest.raises(
        InputError, match=r"^Masked does not run on the inputs images float32\[N, 3, 6, 6\], mask bool\[N, 5, 1, 6\], i"
    ):
        convert(Masked(), tmp_path / "m.onnx", input_shape={**SHAPES, "mask:bool": (5, 1, 6)})
    assert list(tmp_path.iterdir()) == []
