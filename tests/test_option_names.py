"""Messages call a parameter as their reader gives it: `--input-shape` in a command, `input_shape` in Python."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bnn_deploy
from bnn_deploy.cli import COMMANDS, main
from bnn_deploy.errors import InputError, on_command_line, option, with_options
from bnn_deploy.passes.reasons import LayerReason, Reason
from bnn_deploy.proof.results import Tolerances

PACKAGE = Path(bnn_deploy.__file__).parent


def library() -> Iterator[tuple[str, ast.Module]]:
    """The modules whose text the Python API can show."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith(("apps/", "cli/", "board/", "page/", "errors.py")):
            yield name, ast.parse(path.read_text())


def docstrings(tree: ast.Module) -> set[int]:
    """The ids of the strings that are statements of their own."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def literal_options(tree: ast.Module) -> list[str]:
    """The strings of a module that spell an option out."""
    left_out = docstrings(tree)
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [n.value for n in strings if id(n) not in left_out and re.search(r"(^|[\s(])--[a-z]", n.value)]


def named(tree: ast.Module) -> set[str]:
    """The parameters that a module's messages name."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return {n.args[0].value for n in calls if n.func.id == "option" and isinstance(n.args[0], ast.Constant)}  # type: ignore[attr-defined, misc]


# The report of a conversion gives its example as it is typed.
EXAMPLES = {"Conv(Sign(x), w), w of -1, 0 and 1, with --weights xnor"}


def test_no_message_of_the_library_spells_an_option_out() -> None:
    found = {name: texts for name, tree in library() if (texts := set(literal_options(tree)) - EXAMPLES)}
    assert found == {}
    assert literal_options(ast.parse('def f():\n    "--this may"\n    raise E("give --this")')) == ["give --this"]


def test_every_parameter_that_is_named_is_one_of_the_api_and_of_a_command() -> None:
    names = {name for _, tree in library() for name in named(tree)}
    kinds = (*LayerReason.__subclasses__(), *Reason.__subclasses__())
    names |= {name for kind in kinds for name in re.findall(r"{(\w+)", kind.advice + kind.last_advice)}
    own = [bnn_deploy.convert, bnn_deploy.verify, bnn_deploy.profile, Tolerances]
    parameters = {name for function in own for name in inspect.signature(function).parameters}
    assert len(names) > 15 and names - parameters == set()
    options = {
        text
        for module, _ in COMMANDS.values()
        for parameter in importlib.import_module(module).command.params
        for text in parameter.opts
    }
    with on_command_line():
        spelled = {option(name).split()[0] for name in names}
    assert spelled - options == set()
    assert "no_such_parameter" not in parameters


def test_how_an_option_is_spelled() -> None:
    cases = (
        (option, ("strict", True), {}, "--strict", "strict=True"),
        (option, ("input_shape",), {"example": "C,H,W"}, "--input-shape C,H,W", "input_shape=(C, H, W)"),
        (option, ("weights", "as-is"), {}, "--weights as-is", "weights='as-is'"),
        (option, ("arch_args", {"width": 8}), {}, '--arch-args {"width": 8}', "arch_args={'width': 8}"),
        (option, ("float_output",), {}, "--float FLOAT.onnx", "float_output"),
        (with_options, ("say {weights:xnor}, or {zero_weights}",), {}, "say --weights xnor, or --zero-weights", None),
    )
    for function, arguments, more, typed, python in cases:
        with on_command_line():
            assert function(*arguments, **more) == typed  # type: ignore[operator]
        assert python is None or function(*arguments, **more) == python  # type: ignore[operator]


def test_the_same_error_speaks_to_both(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 8, 3).state_dict(), tmp_path / "net.pth")
    (tmp_path / "net.py").write_text("from torch import nn\ndef net():\n    return nn.Conv2d(3, 8, 3)\n")
    arch = f"{tmp_path}/net.py:net"
    with pytest.raises(InputError, match=r"Conv2d has no attribute input_shape.*: give input_shape=\(3, H, W\)$"):
        bnn_deploy.convert(tmp_path / "net.pth", tmp_path / "m.onnx", arch=arch)
    arguments = ["convert", str(tmp_path / "net.pth"), "--arch", arch, "-o", str(tmp_path / "m.onnx")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and result.stderr.strip().endswith("give --input-shape 3,H,W")
    # A command that has ended does not change how Python is answered.
    assert option("input_shape") == "input_shape"
