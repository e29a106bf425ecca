"""`bnn-deploy run`: convert, verify, profile and report, as a bnn-deploy.toml says."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from bnn_deploy.cli import COMMANDS
from bnn_deploy.cli.config import CONFIG_FILE, Config
from bnn_deploy.cli.console import print_json, show, show_command
from bnn_deploy.cli.options import example
from bnn_deploy.errors import InputError

_STEPS = ("convert", "verify", "profile")


@click.command(name="run", epilog=example("bnn-deploy run"))
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=CONFIG_FILE,
    metavar="FILE.toml",
    help="The options of the commands.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results of all steps as one JSON object.")
@click.pass_context
def command(ctx: click.Context, path: Path, as_json: bool) -> int:
    """Do what a bnn-deploy.toml says: convert, verify and profile, each with its options there.

    It stops at the first command that fails, with the exit code of that command. Run again, it does the same again.
    """
    config = Config(path)
    for key in ("source", "model"):
        if not config.has(key):
            raise InputError(f'{path}: it has no key {key}: {key} = "FILE" at the top names the network\'s files')
    results: dict[str, Any] = {}
    code = 0
    for name in _STEPS:
        if not as_json:
            show_command(f"$ bnn-deploy {name} --config {path}")
        if as_json:
            printed = io.BytesIO()
            with redirect_stdout(io.TextIOWrapper(printed, encoding="utf-8", write_through=True)):
                code = _step(ctx, name, ["--config", str(path), "--json"])
            results[name] = json.loads(printed.getvalue())
        else:
            code = _step(ctx, name, ["--config", str(path)])
            show("")
        if code:
            break
    if as_json:
        print_json(results)
    return code


def _step(ctx: click.Context, name: str, arguments: list[str]) -> int:
    """Run a command as if it had been typed; its exit code."""
    step: click.Command = importlib.import_module(COMMANDS[name][0]).command
    with step.make_context(name, arguments, parent=ctx) as own:
        return int(step.invoke(own) or 0)
