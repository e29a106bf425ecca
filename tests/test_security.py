"""SECURITY.md: that its tests exist, and those of what no other file holds."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from bnn_deploy.cli import main

ROOT = Path(__file__).resolve().parents[1]


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text()))
    found = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) > 15 and named - found == set()


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def commands(model: Path, folder: Path) -> list[list[object]]:
    """Every command that reads a model."""
    return [
        ["convert", model, "-o", folder / "out.onnx"],
        ["verify", model, "--against", model],
        ["inspect", model],
        ["profile", model, "--runs", "1"],
        ["bundle", model, "--target", "x86_64", "-o", folder / "out.tar.gz"],
    ]


def gemm(location: str) -> onnx.ModelProto:
    """A linear layer whose weights lie in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "32")):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Sign", ["x"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("how", ["above", "absolute", "a link"])
def test_external_data_stays_in_the_folder(how: str, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret.bin", tmp_path / "models"
    folder.mkdir()
    secret.write_bytes(np.full(8, 0.5, np.float32).tobytes())
    (folder / "link.bin").symlink_to(secret)
    location = {"above": "../secret.bin", "absolute": str(secret), "a link": "link.bin"}[how]
    (folder / "m.onnx").write_bytes(gemm(location).SerializeToString())
    for arguments in commands(folder / "m.onnx", tmp_path):
        code, text = run(*arguments)
        assert code in (2, 3) and len(text.strip().splitlines()) == 1, f"{arguments[0]}: {code}\n{text}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "secret.bin"]
    # Beside the model it is read.
    (folder / "own.bin").write_bytes(secret.read_bytes())
    (folder / "m.onnx").write_bytes(gemm("own.bin").SerializeToString())
    assert run("inspect", folder / "m.onnx")[0] == 0


def test_cycles_and_recursion_are_refused(tmp_path: Path) -> None:
    cycle = gemm("own.bin")
    del cycle.graph.initializer[:]
    cycle.graph.node[0].input[0], cycle.graph.node[1].input[1] = "y", "s"
    call = helper.make_node("F", ["a"], ["b"], domain="own")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    recursive = helper.make_model(
        helper.make_graph(
            [helper.make_node("F", ["x"], ["y"], domain="own")],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        ),
        opset_imports=imports,
        functions=[helper.make_function("own", "F", ["a"], ["b"], [call], imports)],
        ir_version=10,
    )
    for name, model in (("cycle", cycle), ("recursive", recursive)):
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
        for arguments in commands(tmp_path / f"{name}.onnx", tmp_path):
            if arguments[0] == "inspect":
                continue  # it counts what the file holds, and runs nothing
            code, text = run(*arguments)
            assert code in (2, 3) and len(text.strip().splitlines()) == 1, f"{name}, {arguments[0]}: {code}\n{text}"


class Program:
    """What runs if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_objects_in_arrays_are_not_loaded(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    array = np.array([Program(ran)], dtype=object)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "x.npz", input=array)
    (tmp_path / "own.bin").write_bytes(np.full(8, 0.5, np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(gemm("own.bin").SerializeToString())
    for name in ("x.npy", "x.npz"):
        code, text = run("profile", tmp_path / "m.onnx", "--data", tmp_path / name)
        assert code == 2 and f"{name}: not a .npy or .npz file of plain arrays" in text, text
        code, text = run("convert", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--data", tmp_path / name)
        assert code == 2 and f"{name}: not a .npy or .npz file of plain arrays" in text, text
    assert not ran.exists()
    pickle.loads(pickle.dumps(Program(ran)))  # and it is a program
    assert ran.exists()
