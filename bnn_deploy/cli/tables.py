"""Tables that fit the terminal: at any width, each row keeps its name and its verdict, and no word is broken.

What a table that is too wide does, until it fits:

1. headers and cells of several words are wrapped at their spaces; words that are still too long for their column,
   names mostly, lose their middle: `features.stage1.block2.conv1` becomes `features…k2.conv1`;
2. the columns that the command calls optional are left out, the least important first, and named below the table;
3. each row becomes a record: its name and verdict, and below them a line `header  value` for each other column.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

LEAST_CELLS = 16
"""Characters below which no column of words is squeezed."""

_BEGINNING = re.compile(r"( *(?:\d+\. )?).*")
"""What stands in front of the words of a line, spaces and perhaps a number; and the words."""

_GAP = 2
"""Characters between two columns, and in front of the lines of a record."""


class Table:
    """A table of strings. See `console.table` for its arguments; `add_row` fills it, `console.show` prints it.

    Attributes:
        columns: the headers.
        rows: the cells of each row.
    """

    def __init__(
        self,
        title: str | None,
        columns: Sequence[str],
        numbers: Collection[str],
        fixed: Collection[str],
        optional: Sequence[str],
    ) -> None:
        self._title = title
        self.columns = list(columns)
        self._numbers = [name in numbers for name in columns]
        self._whole = [name in numbers or name in fixed or not name for name in columns]
        self._optional = [self.columns.index(name) for name in optional if name in columns]
        self.rows: list[list[str]] = []
        self._sections: set[int] = set()

    def add_row(self, *cells: str) -> None:
        """Add a row with one cell for each column."""
        assert len(cells) == len(self.columns)
        self.rows.append(list(cells))

    def add_section(self) -> None:
        """Separate the rows so far from those to come."""
        self._sections.add(len(self.rows))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts(options.max_width)

    def _parts(self, width: int) -> Iterator[RenderableType]:
        if self._title is not None:
            yield Paragraph(self._title, "bold")
        shown = list(range(len(self.columns)))
        for left_out in [None, *self._optional]:
            if left_out is not None:
                shown.remove(left_out)
            widths = self._widths(shown, width)
            if widths is not None:
                yield self._grid(shown, widths)
                names = "; ".join(name for i, name in enumerate(self.columns) if i not in shown)
                if names:
                    yield Paragraph(f"Left out at {width} columns: {names}.", "dim")
                return
        for n, row in enumerate(self.rows):
            if n in self._sections:
                yield ""
            yield from self._record(row, width)

    def _widths(self, shown: Sequence[int], room: int) -> list[int] | None:
        """The widths of these columns in a table at most `room` wide; None if that is too narrow for them.

        What their least widths leave goes to the columns of words, then to the headers of the others. Who needs little
        gets all of it; the rest is shared evenly.
        """
        cells = [max((_width(row[i]) for row in self.rows), default=0) for i in shown]
        headers = [self.columns[i] for i in shown]
        wanted = [max(cell, _width(header)) for cell, header in zip(cells, headers, strict=True)]
        widths = [
            max(cell, *map(cell_len, header.split()), 1) if self._whole[i] else min(want, LEAST_CELLS)
            for i, cell, header, want in zip(shown, cells, headers, wanted, strict=True)
        ]
        spare = room - sum(widths) - _GAP * (len(shown) - 1)
        if spare < 0:
            return None
        for whole in (False, True):
            growing = [i for i, column in enumerate(shown) if self._whole[column] == whole]
            growing.sort(key=lambda i: wanted[i] - widths[i])
            for place, i in enumerate(growing):
                more = min(wanted[i] - widths[i], spare // (len(growing) - place))
                widths[i] += more
                spare -= more
        return widths

    def _grid(self, shown: Sequence[int], widths: Sequence[int]) -> RichTable:
        grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, width in zip(shown, widths, strict=True):
            header = Text(shorten(self.columns[i], width))
            grid.add_column(header, justify="right" if self._numbers[i] else "left", width=width)
        for n, row in enumerate(self.rows):
            if n in self._sections:
                grid.add_section()
            grid.add_row(*(Text(shorten(row[i], width)) for i, width in zip(shown, widths, strict=True)))
        return grid

    def _record(self, row: Sequence[str], width: int) -> Iterator[Paragraph]:
        """The lines of one row: what is in the first column and in those without a header, and below it the others."""
        cells = list(zip(self.columns[1:], row[1:], strict=True))
        verdict = "".join(f"  {cell}" for name, cell in cells if cell and not name)
        first, *others = row[0].splitlines() or [""]
        yield Paragraph(shorten(first, width - cell_len(verdict)) + verdict, "bold")
        for other in others:
            yield Paragraph(shorten(other, width), "bold")
        labelled = [(" ".join(name.split()), cell) for name, cell in cells if name and cell]
        column = max((cell_len(name) for name, _ in labelled), default=0) + _GAP
        indent = " " * _GAP
        for name, cell in labelled:
            label = "" if len(labelled) == 1 else set_cell_size(name, column)
            if label and _GAP + column + _width(cell) > width:
                yield Paragraph(indent + name)
                label = indent
            for line in shorten(cell, width - 2 * _GAP).splitlines():
                yield Paragraph(indent + label + line)
                label = " " * cell_len(label)


class Paragraph:
    """Text whose lines are wrapped at spaces; a line goes on as far to the right as it begins.

    Args:
        text: what to print.
        style: rich's style of it.
        most: characters in a line, where the console has more.
        wrapped: False prints the lines as they are.
    """

    def __init__(self, text: str, style: str = "", most: int | None = None, wrapped: bool = True) -> None:
        self._text, self._style, self._most, self._wrapped = text, style, most, wrapped

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, self._most or options.max_width)
        yield _as_it_is("\n".join(wrap(self._text, width)) if self._wrapped else self._text, self._style)


class Facts:
    """Names and values in two columns; a value with little room there, or a word too long for it, below its name."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        column = max((cell_len(name) for name, _ in self._rows), default=0) + _GAP
        room = options.max_width - column
        for name, value in self._rows:
            below = room < 2 * LEAST_CELLS or max(map(cell_len, value.split()), default=0) > room
            indent = " " * (_GAP if below else column)
            first, *others = wrap(value, options.max_width - len(indent))
            label = f"{name}\n{indent}" if below else set_cell_size(name, column)
            yield _as_it_is("\n".join([label + first, *(indent + line for line in others)]))


def shorten(text: str, width: int) -> str:
    """Take the middle out of each word that is wider than `width`, and put an ellipsis there."""
    if _width(text) <= width:
        return text
    return "\n".join(" ".join(_shortened(word, width) for word in line.split(" ")) for line in text.splitlines())


def _shortened(word: str, width: int) -> str:
    if cell_len(word) <= width:
        return word
    head, tail = set_cell_size(word, (width - 1) // 2), set_cell_size(word[::-1], width // 2)[::-1]
    return f"{head}\N{HORIZONTAL ELLIPSIS}{tail}"


def wrap(text: str, width: int) -> list[str]:
    """Wrap text at its spaces, each line indented as the words of its first; what is wider than a line stays whole."""
    lines = []
    for line in text.splitlines() or [""]:
        if cell_len(line) <= width:
            lines.append(line)
            continue
        first = _BEGINNING.sub(r"\1", line)
        indent = " " * len(first)
        current = first
        for word in line[len(first) :].split():
            if current not in (first, indent) and cell_len(current) + cell_len(word) >= width:
                lines.append(current)
                current = indent
            current += word if current in (first, indent) else f" {word}"
        lines.append(current)
    return lines


def _as_it_is(text: str, style: str = "") -> Text:
    """Text that a console does not wrap, where a renderable yields it."""
    return Text(text, style, no_wrap=True, overflow="ignore")


def _width(text: str) -> int:
    """The cells that a text takes without being wrapped."""
    return max(map(cell_len, text.splitlines()), default=0)
