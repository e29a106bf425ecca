"""The frame of the command line, and the commands profile and inspect as a user sees them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import onnx
import pytest
from click.testing import CliRunner, Result

from bnn_deploy import cli, errors, quantities
from bnn_deploy.installation import install_command
from support import python
from support.small_models import save_binary, save_float


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], env=env, prog_name="bnn-deploy")


def process(*arguments: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `before` is Python that runs first."""
    code = f"{before}\nfrom bnn_deploy.cli import main\nmain(prog_name='bnn-deploy')"
    return subprocess.run(
        [*python.command(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | int | None]:
    """Puts a command `fail` in the group, which raises or returns the one entry of the list."""
    outcome: list[BaseException | int | None] = [None]

    @click.command()
    def command() -> int | None:
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    module = ModuleType("failing_command")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing_command", module)
    monkeypatch.setitem(cli.COMMANDS, "fail", ("failing_command", "Fail."))
    return outcome


# --- the frame ------------------------------------------------------------------------------------


def test_help_lists_all_commands_without_importing_any() -> None:
    blocked = "sys.modules.update({name: None for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'rich')})"
    done = process("--help", before=blocked)
    assert (done.returncode, done.stderr) == (0, "")
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert text.split(".")[0][:40] in done.stdout
    assert run("-h").output == run("--help").output


def test_version() -> None:
    assert run("--version").output.startswith("bnn-deploy ")


def test_every_command_exists_and_has_help_and_debug() -> None:
    for name in [*cli.COMMANDS, *cli.ALIASES]:
        result = run(name, "-h")
        assert result.exit_code == 0, result.output
        assert "--debug" in result.output


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.InputError("x.onnx: no such file"), 2, "error: x.onnx: no such file"),
        (errors.SetupError("onnxruntime is too old"), 3, "error: onnxruntime is too old"),
        (errors.InputError("two\nlines"), 2, "error: two lines"),
        (errors.InputError("[bold]x[/bold] [link=y]"), 2, "error: [bold]x[/bold] [link=y]"),
        (errors.InputError("\x1b[31mred"), 2, "error: \\x1b[31mred"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 3, "error: not enough memory"),
        (OSError(28, "No space left on device", "out.onnx"), 3, "error: out.onnx: No space left on device"),
        (PermissionError(13, "Permission denied", "out.onnx"), 3, "error: out.onnx: Permission denied"),
        (
            ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper"),
            3,
            f"error: onnx.helper is not installed: run {install_command('convert')}",
        ),
        (
            KeyError("x"),
            3,
            "error: internal error: KeyError: 'x'; run again with --debug and report it",
        ),
    ],
)
def test_errors_are_one_line_and_a_code(
    failing: list[BaseException | int | None], error: BaseException, code: int, line: str
) -> None:
    failing[0] = error
    result = run("fail")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == line + "\n"


@pytest.mark.parametrize("arguments", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_traceback_before_and_after_the_command(
    failing: list[BaseException | int | None], arguments: tuple[str, str]
) -> None:
    failing[0] = errors.InputError("bad")
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("\nerror: bad\n")
    failing[0] = ValueError("odd")
    assert run(*arguments).stderr.endswith(
        "error: internal error: ValueError: odd; report it with the traceback above\n"
    )


def test_debug_when_the_command_cannot_even_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "fail", ("no_such_module_anywhere", "Fail."))
    assert "Traceback" in run("fail", "--debug").stderr
    assert "Traceback" not in run("fail").stderr


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (cli.CHECK_FAILED, 1)])
def test_a_commands_result_is_the_exit_code(
    failing: list[BaseException | int | None], returned: int | None, code: int
) -> None:
    failing[0] = returned
    assert run("fail").exit_code == code


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["inspect"], ["inspect", "absent.onnx"], ["profile", "--runs", "0"]]
)
def test_usage_errors(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


def test_exit_codes_of_a_real_process(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    done = process("inspect", tmp_path / "text.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/text.onnx: ")
    done = process("inspect", tmp_path / "text.onnx", before="sys.modules['onnx'] = None")
    assert done.returncode == 3
    assert install_command("convert") in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    model = save_binary(tmp_path / "binary.onnx")
    closed_pipe = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)"
    done = process("inspect", model, before=closed_pipe)
    assert (done.returncode, done.stderr) == (cli.BROKEN_PIPE, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_standard_streams_that_are_closed(closed: str, tmp_path: Path) -> None:
    """As daemons and some services start a process; in the locale C, too."""
    (tmp_path / "text.onnx").write_text("not a model")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for model, code in ((save_binary(tmp_path / "binary.onnx"), 0), (tmp_path / "text.onnx", 2)):
        command = [sys.executable, "-m", "bnn_deploy", "inspect", str(model)]
        line = f"{shlex.join(command)} {closed}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (code, False), done.stderr
        assert bool(done.stdout) is (code == 0 and ">&-" not in closed.split())
        assert bool(done.stderr) is (code == 2 and "2>&-" not in closed)


# --- printing -------------------------------------------------------------------------------------


def test_human_numbers() -> None:
    bytes_ = {0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 99_960: "100 kB"}
    for count, text in (bytes_ | {999_499: "999 kB", 999_500: "1.00 MB", 1_648_123: "1.65 MB"}).items():
        assert quantities.human_bytes(count) == text
    assert quantities.human_count(222_500_000) == "222 M"
    assert quantities.human_count(12) == "12"
    assert quantities.exact_bytes(1_648_123) == "1.65 MB (1,648,123 bytes)"
    assert (quantities.plural(1, "thread"), quantities.plural(2, "thread")) == ("1 thread", "2 threads")
    assert [quantities.shape_text(shape) for shape in (("N", None, 3), (), None)] == ["N×?×3", "scalar", "?"]  # noqa: RUF001


# --- inspect --------------------------------------------------------------------------------------


def test_inspect_prints_whole_lines_when_piped(tmp_path: Path) -> None:
    model = save_binary(tmp_path / "binary.onnx")
    result = run("inspect", model)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in result.stdout
    conv2 = next(line for line in lines if line.startswith("conv2"))
    assert " ".join(conv2.split()) == "conv2 BinaryConvThreshold N×8×8×50 bits 5×5 1.60 M 5.20 kB"  # noqa: RUF001
    sums = [" ".join(line.split()) for line in lines if line.startswith(("binary", "float"))]
    # 80 + 5000 + 200 + 4 + 64,000 + 2000 bytes: s3 and zero, each read twice, are in the sum once.
    assert sums == ["binary 2.00 M 71.3 kB", "float 293 k 22.0 kB"]
    assert any(line.startswith("functions") and line.endswith("of the file") for line in lines)


def test_inspect_prints_names_as_they_are(tmp_path: Path) -> None:
    model = onnx.load(save_binary(tmp_path / "binary.onnx"))
    model.graph.node[0].name = "[red]conv[/red] \x1b[31m:smile:"
    onnx.save(model, tmp_path / "odd.onnx")
    assert "[red]conv[/red] \\x1b[31m:smile:" in run("inspect", tmp_path / "odd.onnx").stdout


def test_inspect_says_what_it_could_not_count(tmp_path: Path) -> None:
    path = save_binary(tmp_path / "binary.onnx")
    assert "Not in the totals" not in run("inspect", path).stdout
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, path)
    assert "Not in the totals, because a shape is unknown: conv1, conv2, " in run("inspect", path).stdout


def test_inspect_json(tmp_path: Path) -> None:
    report = json.loads(run("inspect", save_binary(tmp_path / "binary.onnx"), "--json").stdout)
    assert report["binary_macs"] == 2_000_000
    assert [layer["name"] for layer in report["layers"]][3] == "conv2"


# --- profile --------------------------------------------------------------------------------------


def test_profile_prints_tables(tmp_path: Path) -> None:
    binary, flat = save_binary(tmp_path / "binary.onnx"), save_float(tmp_path / "float.onnx")
    result = run("profile", binary, "--compare", flat, "--runs", "3", "--isa", "scalar", "--nodes", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    for text in (
        "scalar (",
        "3 timed after 5 untimed, each behind an untimed one, 1 thread, the two models in turns",
        "x 1×1×28×28 (random)",  # noqa: RUF001
        "onnxruntime alone",
        "Nodes of binary.onnx: the 2 slowest of ",
        "Where the time of binary.onnx's nodes goes",
        "(20 channels, 37.5% unused)",
        "×8×8×50 bits",  # noqa: RUF001
    ):
        assert text in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    for text in ("float.onnx: ", "Operators of "):
        assert text not in result.stdout
    alone = run("profile", flat, "--runs", "2", "--nodes", "0").stdout
    assert "none (the model called no binary kernel)" in alone
    assert "in turns" not in alone
    assert "Nodes of" not in alone


def test_profile_verbose(tmp_path: Path) -> None:
    binary, flat = save_binary(tmp_path / "binary.onnx"), save_float(tmp_path / "float.onnx")
    text = run("profile", binary, "--compare", flat, "--runs", "2", "--verbose", "--nodes", "2").stdout
    for name in ("binary.onnx", "float.onnx"):
        assert f"Nodes of {name}: all " in text
        assert f"Operators of {name}" in text


def test_profile_of_several_settings(tmp_path: Path) -> None:
    binary, flat = save_binary(tmp_path / "binary.onnx"), save_float(tmp_path / "float.onnx")
    options = ("--compare", flat, "--compare", binary, "--runs", "6", "--batch", "1,4", "--threads", "1,2")
    result = run("profile", binary, *options, "--trace", tmp_path / "trace.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert result.stdout.splitlines()[-1] == f"wrote {tmp_path / 'trace.json'}, for Perfetto or chrome://tracing"
    table = result.stdout[result.stdout.index("Batches and threads") :].split("\n\n")[0].splitlines()
    settings = ("batch 1, 1 thread ", "batch 4, 1 thread ", "batch 1, 2 threads", "batch 4, 2 threads")
    assert [line[:18] for line in table[-4:]] == list(settings)
    assert all(line.count(" to ") == 2 for line in table[-4:])


@pytest.mark.parametrize("text", ["0", "1,0", "1,", "", "two", "1.5"])
def test_profile_refuses_what_is_no_list_of_numbers(tmp_path: Path, text: str) -> None:
    result = run("profile", save_binary(tmp_path / "binary.onnx"), "--batch", text)
    assert result.exit_code == 2
    assert f"{text!r} is neither a number of at least 1 nor several with commas between them" in result.stderr


def test_profile_json(tmp_path: Path) -> None:
    result = run("profile", save_binary(tmp_path / "binary.onnx"), "--runs", "2", "--json")
    report = json.loads(result.stdout)
    assert report["compare"] == []
    assert report["runs"] == 2
    assert report["model"]["nodes"]


def test_profile_needs_neither_onnx_nor_torch(tmp_path: Path) -> None:
    blocked = "sys.modules.update({name: None for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript')})"
    model = save_binary(tmp_path / "binary.onnx")
    done = process("profile", model, "--runs", "2", "--json", before=blocked)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("NOISY: ")] == []
    assert json.loads(done.stdout)["isa"]
