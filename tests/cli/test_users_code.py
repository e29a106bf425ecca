"""A network's own code that ends the program, fails where nobody expects it, or is interrupted."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import bnn_deploy
from bnn_deploy.__main__ import program
from bnn_deploy.cli import COMMANDS, main
from bnn_deploy.errors import InputError
from bnn_deploy.source.user_code import users_network
from support.graphs import weights

NET = """import sys, torch
from torch import nn
class Net(nn.Module):
    input_shape = (4, 5, 5)
    def __init__(self):
        super().__init__()
        {init}
        self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    def forward(self, x):
        {forward}
        return self.b(torch.sign(self.a(torch.sign(x)) - 0.1))
    {more}
"""
EXITS = {
    "constructor": {"init": "sys.exit(0)"},
    "forward": {"forward": "sys.exit()"},
    "forward in an export": {"forward": "if torch.compiler.is_compiling(): sys.exit(1)"},
    "state_dict": {"more": "def state_dict(self, *a, **k): sys.exit(0)"},
    "load_state_dict": {"more": "def load_state_dict(self, *a, **k): sys.exit('no')"},
    "copy": {"more": "def __deepcopy__(self, memo): sys.exit(0)"},
    "property": {"more": "input_shape = property(lambda self: sys.exit(0))"},
    "eval": {"more": "def eval(self): raise SystemExit('usage: a\\nb')"},
}


def convert(folder: Path, **parts: str) -> Result:
    """Convert a checkpoint of a network with these parts of its source."""
    (folder / "net.py").write_text(NET.format(**{"init": "pass", "forward": "pass", "more": ""} | parts))
    state = {f"{name}.weight": torch.from_numpy(weights(4, 4, 3, 3)) for name in "ab"}
    torch.save(state | {f"{name}.bias": torch.zeros(4) for name in "ab"}, folder / "c.pt")
    arguments = [folder / "c.pt", "--arch", f"{folder}/net.py:Net", "-o", folder / "m.onnx"]
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


@pytest.mark.parametrize("where", EXITS)
def test_code_that_ends_the_program_is_the_users_error(where: str, tmp_path: Path) -> None:
    result = convert(tmp_path, **EXITS[where])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/c.pt: its code fails: net.py, line ")
    assert "ended the program (SystemExit: " in line
    assert not (tmp_path / "m.onnx").exists()


def test_the_end_of_the_program_is_the_users_error_wherever_it_was_called() -> None:
    """As by a callback that is sys.exit itself: no line of theirs is in the traceback."""
    network = users_network("Net")
    network.__enter__()
    with pytest.raises(InputError, match=r"^Net: its code fails: ended the program \(SystemExit: 1\)"):
        network.__exit__(SystemExit, SystemExit(1), None)


def test_an_exception_of_the_users_code_is_the_users_error(tmp_path: Path) -> None:
    result = convert(tmp_path, more="def state_dict(self, *a, **k): raise ValueError('mine')")
    assert result.exit_code == 2
    assert result.stderr.endswith("c.pt: its code fails: net.py, line 12: mine\n")


def test_what_python_ignores_is_said_on_one_line(tmp_path: Path) -> None:
    result = convert(tmp_path, more="def __del__(self): sys.exit(0)")
    assert (result.exit_code, result.stderr) == (0, "ignored: Net.__del__ raised SystemExit: 0\n")


def test_python_callers_get_an_exception(tmp_path: Path) -> None:
    """Of a module that ends the program when it is converted, and of one that does when it is verified."""

    class Net(torch.nn.Module):
        done = False

        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Conv2d(4, 4, 3)
            self.a.weight.data = torch.from_numpy(weights(4, 4, 3, 3))

        def forward(self, x: Any) -> Any:
            if Net.done:
                sys.exit(0)
            return self.a(torch.sign(x))

    bnn_deploy.convert(Net(), tmp_path / "m.onnx", input_shape=(4, 5, 5))
    Net.done = True
    with pytest.raises(InputError, match=r"Net: its code fails: test_users_code\.py, line \d+: ended the program"):
        bnn_deploy.convert(Net(), tmp_path / "n.onnx", input_shape=(4, 5, 5))
    with pytest.raises(InputError, match="ended the program"):
        bnn_deploy.verify(tmp_path / "m.onnx", Net(), data=np.zeros((1, 4, 5, 5), np.float32))


@pytest.mark.parametrize(
    ("number", "code", "text"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ImportError])
def test_signals_end_a_command_on_one_line(
    number: int, code: int, text: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if what is interrupted, an import in C say, makes another exception of it."""
    before = signal.getsignal(number)

    def importing(name: str) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise error("initialization failed") from None

    monkeypatch.setattr("bnn_deploy.cli.importlib.import_module", importing)
    result = CliRunner().invoke(main, [next(iter(COMMANDS))])
    assert (result.exit_code, result.output) == (code, f"error: {text}\n")
    assert signal.getsignal(number) is before


def test_ctrl_c_during_the_first_imports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "bnn_deploy.cli", Interrupted("bnn_deploy.cli"))
    with pytest.raises(SystemExit) as caught:
        program()
    assert (caught.value.code, capsys.readouterr().err) == (130, "error: interrupted\n")
