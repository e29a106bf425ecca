"""`bnn-deploy fleet`: the reports of several boards in one table, and one page."""

from __future__ import annotations

from pathlib import Path

import click

from bnn_deploy.board.fleet import Fleet, read_fleet
from bnn_deploy.cli import CHECK_FAILED
from bnn_deploy.cli.console import print_json, printable, show, table
from bnn_deploy.cli.options import example
from bnn_deploy.files import require_outputs, write_files
from bnn_deploy.page.fleet import render_fleet
from bnn_deploy.page.render import require_renderer
from bnn_deploy.quantities import TIMES, milliseconds, plural


@click.command(name="fleet", epilog=example("bnn-deploy fleet reports -o fleet.html"))
@click.argument("reports", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A board that must have reported; repeatable.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.html",
    help="Also write it as a page; needs the extra 'report'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(reports: Path, hosts: tuple[str, ...], output: Path | None, as_json: bool) -> int:
    """Show the reports of boards, HOST.json each in FOLDER, in one table.

    `bnn-deploy deploy --report FOLDER/HOST.json` and the playbook of `bnn-deploy bundle --ansible` write them.

    Exit code 1 if a board failed, or one that --host names has not reported.
    """
    if output is not None:
        require_outputs({"page": output}, {})
        require_renderer()
    fleet = read_fleet(reports, hosts)
    if output is not None:
        write_files({output: render_fleet(fleet.to_json())})
    if as_json:
        print_json(fleet.to_json())
    else:
        _print(fleet)
        if output is not None:
            show(f"wrote {output}", result=True)
    return 0 if fleet.passed else CHECK_FAILED


def _print(fleet: Fleet) -> None:
    rows = table(
        None,
        ["host", "board", "ISA that ran", "median", "speed-up", "bundle", ""],
        {"median", "speed-up"},
        {"bundle"},
        optional=["bundle", "ISA that ran", "board"],
    )
    for board in fleet.boards:
        rows.add_row(
            printable(board.host),
            printable(board.board or "-"),
            printable(board.isa or "-"),
            "-" if board.median_ms is None else f"{milliseconds(board.median_ms)} ms",
            "-" if board.speedup is None else f"{board.speedup:.2f}{TIMES}",
            "-" if board.bundle is None else board.bundle[:12],
            board.verdict if board.verdict == "passed" else board.verdict.upper(),
        )
    show(rows, result=True)
    for board in fleet.boards:
        if board.verdict != "passed":
            show(f"{board.verdict.upper()}: {printable(board.host)}: {printable(board.reason)}", result=True)
    passed = sum(board.verdict == "passed" for board in fleet.boards)
    show(f"{passed} of {plural(len(fleet.boards), 'board')} passed.", result=True)
