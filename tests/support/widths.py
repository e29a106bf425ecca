"""What commands print, in terminals of several widths: recorded once, rendered at each, and held to the rules there."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console, RenderableType

from bnn_deploy.cli import console
from bnn_deploy.cli.tables import LEAST_CELLS, Table

WIDTHS = (40, 80, 120)
PIPE = 10_000

RULE = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def record(monkeypatch: pytest.MonkeyPatch) -> list[RenderableType]:
    """The list that gets whatever commands show from now on, instead of stdout."""
    parts: list[RenderableType] = []
    monkeypatch.setattr(console.out, "print", lambda part, **_: parts.append(part))
    return parts


def rendered(parts: Sequence[RenderableType], width: int) -> list[str]:
    """The lines of what was recorded, in a terminal that is so wide."""
    file = io.StringIO()
    terminal = Console(file=file, width=width, markup=False, emoji=False, highlight=False, color_system=None)
    for part in parts:
        terminal.print(part, crop=False)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def faults(parts: Sequence[RenderableType], width: int) -> list[str]:
    """What is wrong with the output at this width: long lines, broken words, rows without name or verdict, two gaps."""
    lines = rendered(parts, width)
    whole = {word for part in parts for word in _words(rendered([part], PIPE))}
    for part in parts:
        if isinstance(part, Table):
            whole |= {f"{word}{end}" for name in part.columns for word in name.split() for end in (";", ".", "")}
    found = [
        f"longer than {width}: {line}"
        for line in lines
        if len(line) > width and len(line.split()) > 1 and not line.startswith("$ ")
    ]
    found += [
        f"two blank lines above: {line}"
        for *gap, line in zip(lines, lines[1:], lines[2:], strict=False)
        if not any(gap)
    ]
    found += ["a blank line at the end"] if not "".join(lines[-1:]) else []
    said = re.compile(rf"Left out at {width} columns:")
    broken = {word for line in lines for word in said.sub("", line).split() if word.strip(RULE)} - whole
    found += [f"a part of a word: {word}" for word in sorted(broken) if not any(_is_shortened(word, w) for w in whole)]
    for part in parts:
        if isinstance(part, Table):
            found += _rows_without_name_or_verdict(part, rendered([part], width))
    return found


def _words(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield from line.split()


def _is_shortened(word: str, whole: str) -> bool:
    """Whether a word is another one without its middle, of which enough is left."""
    head, ellipsis, tail = word.partition(ELLIPSIS)
    return bool(ellipsis) and len(word) >= LEAST_CELLS and whole.startswith(head) and whole.endswith(tail)


def _rows_without_name_or_verdict(table: Table, lines: Sequence[str]) -> Iterator[str]:
    rest = iter(lines)
    for row in table.rows:
        (name, *_) = row[0].split() or [""]
        cells = zip(table.columns[1:], row[1:], strict=True)
        verdict = "  ".join(cell for header, cell in cells if cell and not header)
        for line in rest:
            (first, *_) = line.split() or [""]
            if (first == name or _is_shortened(first, name)) and line.endswith(verdict):
                break
        else:
            yield f"no line with {name} and {verdict or 'its cells'}"
            return
