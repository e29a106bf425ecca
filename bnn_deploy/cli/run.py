"""`bnn-deploy run`: convert, verify, profile and report, as a bnn-deploy.toml says."""

from __future__ import annotations

import importlib
import io
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import click

from bnn_deploy.cli import COMMANDS
from bnn_deploy.cli.config import CONFIG_FILE, Config
from bnn_deploy.cli.console import print_json, show, show_command
from bnn_deploy.cli.options import example
from bnn_deploy.cli.page_file import PICTURES, make_record, noted_results, require_page, write_page
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
@click.option("--json", "as_json", is_flag=True, help="Print the results of all steps as a record, see report.")
@click.pass_context
def command(ctx: click.Context, path: Path, as_json: bool) -> int:
    """Do what a bnn-deploy.toml says: convert, verify and profile, and, if it says [report] output, write the page.

    It stops at the first command that fails, with the exit code of that command. Run again, it does the same again.
    """
    config = Config(path)
    for key in ("source", "model"):
        if not isinstance(config.get(key), str):
            raise InputError(f'{path}: it has no key {key}: {key} = "FILE" at the top names the network\'s files')
    output = config.get("output", "report")
    if not isinstance(output, str | None):
        raise InputError(f"{path}: report.output = {output!r}: give the name of the page to write")
    page = None if output is None else path.parent / output
    require_page(page, {key: path.parent / config.get(key) for key in ("source", "model")})
    code = 0
    for number, name in enumerate(_STEPS):
        arguments = ["--config", str(path)]
        if name == "verify" and page is not None and config.get("pictures", name) is None:
            arguments += ["--pictures", str(PICTURES)]
        if not as_json:
            if number:
                show("")
            show_command(f"$ bnn-deploy {name} {' '.join(arguments)}")
        with redirect_stdout(io.StringIO()) if as_json else nullcontext():
            code = _step(ctx, name, arguments)
        if code:
            break
    record = make_record(path.parent / config.get("model"), noted_results())
    if page is not None:
        write_page(page, record)
        if not as_json:
            show("")
            show(f"wrote {page}", result=True)
    if as_json:
        print_json(record)
    return code


def _step(ctx: click.Context, name: str, arguments: list[str]) -> int:
    """Run a command as if it had been typed; its exit code."""
    step: click.Command = importlib.import_module(COMMANDS[name][0]).command
    with step.make_context(name, arguments, parent=ctx) as own:
        return int(step.invoke(own) or 0)
