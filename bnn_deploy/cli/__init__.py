"""The command line `bnn-deploy`: the frame that every command runs in.

A command lives in its own module and is imported only when it is called or its own help is shown: `bnn-deploy --help`
is fast, and a board without torch and onnx runs the commands that need neither. The frame also turns every exception
into one line on stderr and an exit code, so that no command handles errors itself:

    0  done, and the check passed if there was one
    1  the command did its work and its check failed
    2  the command line or an input file cannot be used
    3  this machine cannot do the job, or a bug in bnn-deploy
    130 / 141 / 143  interrupted; the reader of the output closed the pipe; terminated

A command module defines `command`, a click.Command. Its callback returns None, or CHECK_FAILED.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.shell_completion import CompletionItem

from bnn_deploy import __version__
from bnn_deploy.errors import BnnDeployError, InputError, SetupError, on_command_line
from bnn_deploy.system import print_what_the_streams_can

CHECK_FAILED = 1
BROKEN_PIPE = 141

COMMANDS = {
    "convert": ("bnn_deploy.cli.convert", "Convert a trained XNOR checkpoint to a binary ONNX model."),
    "verify": ("bnn_deploy.cli.verify", "Prove that a converted model computes what its source does."),
    "profile": ("bnn_deploy.cli.profile", "Measure speed and memory, also against the float model."),
    "inspect": ("bnn_deploy.cli.inspect", "Show a model's layers, shapes, bits, MACs and bytes."),
    "report": ("bnn_deploy.cli.report", "Make one HTML page of a model, its proof and its profile."),
    "run": ("bnn_deploy.cli.run", "Convert, verify and profile as bnn-deploy.toml says."),
    "bundle": ("bnn_deploy.cli.bundle", "Pack a model, its golden results and the wheel into one file for a board."),
    "deploy": ("bnn_deploy.cli.deploy", "Copy a bundle to a board, run it there, fetch the report."),
    "fleet": ("bnn_deploy.cli.fleet", "Show the reports of several boards in one table, and one page."),
    "run-bundle": ("bnn_deploy.cli.run_bundle", "Verify and profile an unpacked bundle; its run.sh calls this."),
    "demo": ("bnn_deploy.cli.demo", "Do the whole job on a trained LeNet-5 that comes with the package."),
    "info": ("bnn_deploy.cli.info", "Print the environment for a bug report."),
    "library-path": ("bnn_deploy.cli.library_path", "Print where the operator library is, for other languages."),
    "cmake-dir": ("bnn_deploy.cli.cmake_dir", "Print where CMake finds the library and its C header."),
    "completion": ("bnn_deploy.cli.completion", "Print the script by which a shell completes commands and options."),
}
"""Name -> (module, the line that `bnn-deploy --help` shows)."""

ALIASES = {"verify-equivalence": "verify"}

CONVERT_PACKAGES = {"onnx", "onnx_ir", "onnxscript", "torch"}
"""The packages that only the extra `convert` brings."""

_DEBUG = "bnn_deploy.debug"

ARGUMENTS = "bnn_deploy.arguments"
"""The entry of click's `Context.meta` that has the arguments of the program."""

QUIET = "bnn_deploy.quiet"
"""The entry of click's `Context.meta` that is True with --quiet, which `console` reads."""


def _be_quiet(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[QUIET] = True


COMMON_OPTIONS = (
    click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_be_quiet,
        help="Print only the result or verdict, and errors.",
    ),
    click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the Python traceback of an error."),
)
"""Accepted before the command or after it. The frame reads --debug before it imports the command's module."""


class LazyGroup(click.Group):
    """A click.Group that imports its commands, the modules in COMMANDS, on use, and handles their errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of the main job."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module, and add the options that all commands have to the command."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        if COMMON_OPTIONS[0] not in command.params:
            command.params.extend(COMMON_OPTIONS)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the commands' names without importing them, and the options."""
        names = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        also = {name: f" Also: {alias}." for alias, name in ALIASES.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, text + also.get(name, "")) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether `--debug` is anywhere among the arguments."""
        ctx.meta[_DEBUG] = "--debug" in args
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> None:
        """Run the command, and end the process with the exit code of its result or its error."""
        debug = ctx.meta[_DEBUG]
        print_what_the_streams_can()
        try:
            with on_command_line(), _signals() as caught, _ignored(debug):
                code = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # Python flushes stdout again at exit, and would then fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = BROKEN_PIPE
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if debug:
                traceback.print_exception(error)
            # What a signal interrupts may turn its exception into another, as imports in C do.
            text, code = (_SIGNALS[caught[0]], 128 + caught[0]) if caught else _describe(error, debug)
            _print_error(text)
        ctx.exit(code or 0)


_SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""Signals that end a command -> what it says then."""


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Let signals raise KeyboardInterrupt, so that a command cleans up; the list gets those that came."""
    caught: list[int] = []

    def stop(number: int, frame: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    usual = (signal.default_int_handler, signal.SIG_DFL)
    main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS if main_thread}
    try:
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, stop)
        yield caught
    finally:
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, handler)


@contextmanager
def _ignored(debug: bool) -> Iterator[None]:
    """Say on one line, and once, what Python ignores with a traceback each time: what a network's __del__ raises."""
    own = sys.unraisablehook
    said: set[str] = set()

    def say(ignored: Any) -> None:
        name = getattr(ignored.object, "__qualname__", type(ignored.object).__name__)
        text = f"{name} raised {ignored.exc_type.__name__}: {ignored.exc_value}"
        if text not in said:
            said.add(text)
            _print_error(text, "ignored")

    if not debug:
        sys.unraisablehook = say
    try:
        yield
    finally:
        sys.unraisablehook = own


def _print_error(text: str, kind: str = "error") -> None:
    """Print one line on stderr."""
    from bnn_deploy.cli.console import printable

    click.echo(f"{kind}: {printable(' '.join(text.split()))}", err=True)


def _describe(error: BaseException, debug: bool) -> tuple[str, int]:
    """The message of an error for the user, and its exit code."""
    match error:
        case BnnDeployError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return _SIGNALS[signal.SIGINT], 128 + signal.SIGINT
        case SystemExit():
            return f"the network's own code ended the program (SystemExit: {error})", InputError.exit_code
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in CONVERT_PACKAGES:
            from bnn_deploy.installation import install_command

            return f"{error.name} is not installed: run {install_command('convert')}", SetupError.exit_code
        case MemoryError():
            return "not enough memory", SetupError.exit_code
        case OSError() if error.strerror:
            return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, SetupError.exit_code
    what_to_do = "report it with the traceback above" if debug else "run again with --debug and report it"
    return f"internal error: {type(error).__name__}: {error}; {what_to_do}", SetupError.exit_code


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, message="bnn-deploy %(version)s")
def main() -> None:
    """Deploy trained XNOR (binary) networks on CPUs through onnxruntime, with a proof that they compute the same."""


main.params.extend(COMMON_OPTIONS)
