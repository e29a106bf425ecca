"""The output of the commands: results on stdout, everything else on stderr.

Text is printed as it is (no markup, no emoji, no highlighting): names in it come from users' files. Written to a file
or a pipe, the output has no colour, and its lines are as long as they need to be. In a terminal, lines are wrapped at
spaces, and tables fit (see `tables`). With --quiet, only what is printed as a result appears.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console, ConsoleDimensions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from bnn_deploy.cli import QUIET
from bnn_deploy.cli.tables import Facts, Paragraph, Table
from bnn_deploy.progress import ProgressStep
from bnn_deploy.system import is_utf8

_UNLIMITED = 10_000

_PROSE = 110
"""Characters in a line of `explain`."""


_BAR, _BAR_FROM = 20, 72
"""Columns of the bar of `progress`, and those of a terminal from which it leaves room for the text."""


class _PlainConsole(Console):
    """A rich console that does not wrap its lines at 80 columns when it writes to a file or a pipe."""

    @property
    def size(self) -> ConsoleDimensions:
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(_UNLIMITED, size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # LazyGroup exits with BROKEN_PIPE; rich would exit with 1


out = _PlainConsole(markup=False, emoji=False, highlight=False)
"""Results: stdout."""

err = _PlainConsole(stderr=True, markup=False, emoji=False, highlight=False)
"""Progress and remarks: stderr."""


def quiet() -> bool:
    """Whether the command that runs was called with --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def show(renderable: RenderableType, *, result: bool = False) -> None:
    """Print a table or text on stdout, without rich's trailing spaces.

    Args:
        renderable: what to print; a string is wrapped at its spaces where it is longer than a line.
        result: it is the command's result or verdict, which --quiet leaves.
    """
    if quiet() and not result:
        return
    with out.capture() as capture:
        # A word that is longer than a line is the terminal's to wrap: rich would crop it.
        out.print(Paragraph(renderable) if isinstance(renderable, str) else renderable, crop=False)
    click.echo(_encodable("\n".join(line.rstrip() for line in capture.get().splitlines())), color=out.is_terminal)


def show_command(text: str) -> None:
    """Print a command line to copy, which is no longer one where it is wrapped by us and not by the terminal."""
    show(Paragraph(text, wrapped=False))


def explain(text: str) -> None:
    """Print an explanation, in a file or a pipe wrapped, too."""
    show(Paragraph(text, most=_PROSE))


def remark(text: str) -> None:
    """Print a line on stderr; --quiet leaves it out."""
    if not quiet():
        err.print(printable(text.expandtabs()), soft_wrap=True)


def print_json(value: object) -> None:
    """Print `value` on stdout as JSON."""
    click.echo(_encodable(json.dumps(value, indent=2, ensure_ascii=not is_utf8(sys.stdout.encoding))))


def _encodable(text: str) -> str:
    """`text` with what Python keeps of names that are not UTF-8 written as escapes, which JSON has, too."""
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """`text` with control characters (a terminal's escape sequences, say) written as Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def facts(rows: Iterable[tuple[str, str]]) -> Facts:
    """Names and values in two columns, without a header."""
    return Facts([(printable(name), printable(value)) for name, value in rows])


def table(
    title: str | None,
    columns: Sequence[str],
    numbers: Collection[str] = (),
    fixed: Collection[str] = (),
    optional: Sequence[str] = (),
) -> Table:
    """An empty table in the style of all commands; fill it with `add_row`, print it with `show`.

    Args:
        title: a line above the table.
        columns: headers, from left to right. The first column names the row; a later one without a header holds its
            verdict.
        numbers: the columns whose cells are aligned to the right and never broken.
        fixed: further columns that are never broken; in a narrow terminal the others are.
        optional: the columns that a terminal too narrow for all does without, the least important first.
    """
    return Table(None if title is None else printable(title), columns, numbers, fixed, optional)


class _TimeLeft(TimeRemainingColumn):
    """The time that is left, which says so; empty where there is no estimate."""

    def render(self, task: Task) -> Text:
        time = super().render(task)
        return time.append(" left") if time.plain else time


@contextmanager
def progress(measuring: bool = False) -> Iterator[Callable[[str], None]]:
    """Show the current step of a long command, in a line on stderr that goes away at the end.

    Of steps that say how much is done (`progress.ProgressStep`), it has a bar, and estimates the time that is left;
    in a narrow terminal, the bar and the time so far make room for the text. Nothing is shown where stderr is not a
    terminal, nor with --quiet.

    Args:
        measuring: show a line that only a step changes, because an animating thread would disturb the timed runs.

    Yields:
        A function to call with the name of each step as it begins.
    """
    wide = err.width >= _BAR_FROM
    columns: list[ProgressColumn] = [] if measuring else [SpinnerColumn()]
    columns += [*([BarColumn(_BAR)] if wide else []), TaskProgressColumn()]
    columns += [*([TimeElapsedColumn()] if wide and not measuring else []), _TimeLeft()]
    with Progress(
        *columns,
        # What the others leave is its width; without a ratio, the others would be cut.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=err,
        expand=True,
        transient=True,
        auto_refresh=not measuring,
        disable=quiet() or not err.is_terminal,
    ) as bar:
        task = bar.add_task("starting", total=None)

        def step(text: str) -> None:
            share = text.share if isinstance(text, ProgressStep) else None
            bar.update(
                task, description=printable(text), total=None if share is None else 1.0, completed=share, refresh=True
            )

        yield step
