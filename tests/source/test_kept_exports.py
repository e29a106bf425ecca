"""Kept float exports: used where nothing has changed, made anew where anything has, and held against forward()."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from bnn_deploy import kept
from bnn_deploy.source.kept_exports import export_digest, kept_export
from bnn_deploy.source.module_inputs import ModuleInputs, call_program, one_input
from bnn_deploy.source.network_file import build
from bnn_deploy.source.torch_export import FloatExport, export_float
from support.user_network import write_network

INPUTS = one_input((3, 8, 8))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def network(folder: Path) -> nn.Module:
    checkpoint, arch = write_network(folder)
    module = build(arch, {})
    module.load_state_dict(torch.load(checkpoint))
    return module.eval()


class Exports:
    """`export_float`, counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: nn.Module | torch.export.ExportedProgram, inputs: object) -> FloatExport:
        self.count += 1
        return export_float(module, inputs)  # type: ignore[arg-type]


def test_the_second_export_is_the_first(tmp_path: Path, cache: Path) -> None:
    exports = Exports()
    first = kept_export(network(tmp_path / "own"), INPUTS, exports)
    second = kept_export(network(tmp_path / "own"), INPUTS, exports)
    assert exports.count == 1
    x = INPUTS.random(4, 3, 1)
    for module in (first, second):
        assert [value.name for value in module.model.graph.outputs] == [
            value.name for value in first.model.graph.outputs
        ]
    torch.testing.assert_close(call_program(second.program, x), call_program(first.program, x), rtol=0, atol=0)
    assert ir.to_proto(second.model) == ir.to_proto(first.model)
    names = [[node.name for node in export.program.graph.nodes] for export in (first, second)]
    assert names[0] == names[1], "verify finds PyTorch's activations by these names"
    weights = sum(tensor.nbytes for tensor in first.program.state_dict.values())
    (folder,) = cache.iterdir()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.5 * weights + 100_000, "weights are there once"


def rewritten(text: str) -> Callable[[Path, nn.Module], nn.Module]:
    """The module of a changed net.py."""

    def change(folder: Path, module: nn.Module) -> nn.Module:
        path = folder / "net.py"
        path.write_text(path.read_text() + text)
        made = build(f"{path}:Net", {})
        made.load_state_dict(module.state_dict())
        return made.eval()

    return change


def with_attribute(folder: Path, module: nn.Module) -> nn.Module:
    module.threshold = 0.5  # type: ignore[assignment]
    return module


def with_weight(folder: Path, module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.first.weight[0, 0, 0, 0] += 1e-7  # type: ignore[operator, index, union-attr]
    return module


def with_hook(folder: Path, module: nn.Module) -> nn.Module:
    module.first.register_forward_hook(lambda module, args, output: output + 1)  # type: ignore[union-attr, operator]
    return module


CHANGES = {
    "FILE.py": rewritten("\n# another\n"),
    "an attribute": with_attribute,
    "one weight, by a little": with_weight,
    "a hook": with_hook,
}


@pytest.mark.parametrize("case", CHANGES)
def test_any_change_makes_another_digest(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    before = export_digest(network(folder), INPUTS)
    assert before == export_digest(network(folder), INPUTS) and before is not None
    assert export_digest(CHANGES[case](folder, network(folder)), INPUTS) != before


def test_what_a_file_imports_is_in_the_digest(tmp_path: Path) -> None:
    (tmp_path / "own_layers.py").write_text("SCALE = 1.0\n")
    module = network(tmp_path)
    path = tmp_path / "net.py"
    path.write_text("import own_layers\n" + path.read_text())
    digests = []
    for scale in (1.0, 2.0):
        (tmp_path / "own_layers.py").write_text(f"SCALE = {scale}\n")
        made = build(f"{path}:Net", {})
        made.load_state_dict(module.state_dict())
        digests.append(export_digest(made.eval(), INPUTS))
    assert digests[0] != digests[1]


def test_inputs_are_in_the_digest(tmp_path: Path) -> None:
    module = network(tmp_path)
    others: list[ModuleInputs] = [one_input((3, 9, 9)), INPUTS]
    assert export_digest(module, others[0]) != export_digest(module, others[1])


class InATest(nn.Module):
    pass


def test_a_class_without_a_file_is_not_kept(cache: Path) -> None:
    made = type("InANotebook", (nn.Conv2d,), {"__module__": "__no_such_module__"})(3, 8, 8)
    made.weight.data.sign_()
    assert export_digest(InATest(), INPUTS) is not None
    assert export_digest(made.eval(), INPUTS) is None
    exports = Exports()
    for _ in range(2):
        kept_export(made, INPUTS, exports)
    assert exports.count == 2 and not list(cache.iterdir())


@pytest.mark.parametrize("damage", ["program", "model", "notes", "another program"])
def test_what_is_damaged_or_wrong_is_made_anew(damage: str, tmp_path: Path, cache: Path) -> None:
    exports = Exports()
    module = network(tmp_path / "own")
    expected = kept_export(module, INPUTS, exports)
    (folder,) = cache.iterdir()
    if damage == "another program":
        # A digest that had missed something: forward() and the program differ.
        other = network(tmp_path / "other")
        other.second.bias.data += 1  # type: ignore[union-attr, operator]
        kept_export(other, INPUTS, export_float)
        (found,) = (entry for entry in cache.iterdir() if entry != folder)
        shutil.rmtree(folder)
        found.rename(folder)
    else:
        name = {"program": "program.pt2", "model": "float.onnx", "notes": "notes.json"}[damage]
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    found_again = kept_export(module, INPUTS, exports)
    assert exports.count == 2
    x = INPUTS.random(2, 5, 1)
    torch.testing.assert_close(call_program(found_again.program, x), call_program(expected.program, x), rtol=0, atol=0)


def test_the_folder_is_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_KEPT_BYTES", 2500)

    def write(folder: Path) -> None:
        (folder / "content").write_bytes(bytes(np.zeros(1000, np.uint8)))

    for number in range(4):
        kept.keep(f"export-{number}", write)
        os.utime(cache / f"export-{number}", (number, number))
    assert {entry.name for entry in cache.iterdir()} == {"export-2", "export-3"}
    assert kept.find_kept("export-2") is not None  # used: it stays longer
    kept.keep("export-5", write)
    assert {entry.name for entry in cache.iterdir()} == {"export-2", "export-5"}


def test_a_full_disk_is_no_failure(cache: Path) -> None:
    def write(folder: Path) -> None:
        raise OSError("no space left on device")

    kept.keep("export-1", write)
    assert list(cache.iterdir()) == [] and kept.find_kept("export-1") is None
