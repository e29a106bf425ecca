"""Completion in the shells themselves: commands, options, their values, and files."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bnn_deploy.cli import COMMANDS, main
from bnn_deploy.cli.completion import SHELLS
from support import python
from support.terminal import Terminal

PROMPT = "PROMPT:"

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], f"PS1={PROMPT[:-1]}':'\n"),
    "zsh": (["zsh", "-f", "-i"], f"PS1={PROMPT[:-1]}':'; autoload -U compinit; compinit -u -D\n"),
}
"""Shell -> the words that start it without anybody's settings, and what is typed first."""


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with the command `bnn-deploy` of this interpreter."""
    program = tmp_path / "bin" / "bnn-deploy"
    program.parent.mkdir()
    code = "from bnn_deploy.__main__ import program\nsys.argv[0] = 'bnn-deploy'\nprogram()"
    words = " ".join(f"'{word}'" for word in python.command(code.replace("'", '"')))
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(stat.S_IRWXU)
    (tmp_path / "a_model.onnx").touch()
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(params=START)
def shell(request: pytest.FixtureRequest, path: str, tmp_path: Path) -> Iterator[Terminal]:
    """A shell that waits at its prompt, with the completion as its help says."""
    needs(request.param)
    words, first = START[request.param]
    terminal = Terminal(200, words, PATH=path, HOME=str(tmp_path))
    terminal.type(f"cd '{tmp_path}'; {first}")
    terminal.type(f'eval "$(bnn-deploy completion {request.param})"; echo read""y\n')
    terminal.wait_for("ready")
    yield terminal
    terminal.close()


COMPLETED = {
    "bnn-deploy insp": "bnn-deploy inspect ",
    "bnn-deploy profile --comp": "bnn-deploy profile --compare ",
    "bnn-deploy completion fi": "bnn-deploy completion fish ",
    "bnn-deploy inspect a_m": "bnn-deploy inspect a_model.onnx ",
}
"""What is typed -> what the tab key makes of it."""


def test_the_tab_key(shell: Terminal) -> None:
    for typed, completed in COMPLETED.items():
        shell.type(typed + "\t")
        shell.wait_for(completed)
        shell.type("\x15")  # Ctrl-U clears the line


def test_fish(path: str, tmp_path: Path) -> None:
    needs("fish")

    def completions(typed: str) -> list[str]:
        code = f"bnn-deploy completion fish | source; complete -C '{typed}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code],
            env={**os.environ, "PATH": path, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.split("\t")[0] for line in done.stdout.splitlines()]

    for typed, completed in COMPLETED.items():
        assert completions(typed) == [completed.split()[-1]]


def complete(*words: str) -> list[str]:
    """What bash is offered for the last of these words."""
    variables = {"_BNN_DEPLOY_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words))}
    typed = " ".join(["bnn-deploy", *words])
    result = CliRunner().invoke(main, [], env=variables | {"COMP_WORDS": typed}, prog_name="bnn-deploy")
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


def test_commands_are_completed_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnn_deploy.cli.importlib.import_module", None)
    assert complete("") == list(COMMANDS)
    assert complete("ver") == ["verify"]
    assert complete("--q") == ["--quiet"]


def test_every_command_completes_its_options() -> None:
    for name in COMMANDS:
        offered = complete(name, "--")
        assert {"--help", "--quiet", "--debug"} <= set(offered)


@pytest.mark.parametrize("shell_name", SHELLS)
def test_the_script_is_for_the_shell(shell_name: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell_name], prog_name="bnn-deploy")
    assert result.exit_code == 0
    assert f"_BNN_DEPLOY_COMPLETE={shell_name}_complete" in result.stdout
