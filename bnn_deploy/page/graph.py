"""A network as rows from input to output, one per node, with its tensors as lines in lanes beside them.

Networks are nearly linear: a column of nodes, and lines for the branches around some of them. A layout of boxes in a
plane would be too wide for a phone, and no table could stand beside it. Lanes, as `git log --graph` draws them, keep
one row per node, and need no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A node: the tensors that it reads and writes, by name."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A line through the upper or lower half of a row.

    Attributes:
        start: its lane at the upper end.
        end: its lane at the lower end.
        tensor: the tensor that it stands for.
    """

    start: int
    end: int
    tensor: str


@dataclass(frozen=True)
class Row:
    """The lines beside a node.

    Attributes:
        lane: of the node.
        above: the lines from the row above to the height of the node.
        below: those from there to the row below.
    """

    lane: int
    above: tuple[Line, ...]
    below: tuple[Line, ...]

    @property
    def width(self) -> int:
        """The number of lanes that it needs."""
        return 1 + max(self.lane, *(max(line.start, line.end) for line in (*self.above, *self.below)), 0)


def rows(nodes: Sequence[Node]) -> list[Row]:
    """Lay out a graph.

    A tensor gets a line to each node that reads it. The line to the nearest one goes straight down, in the lane of the
    node that writes it; the others, shortcuts around it, go in lanes beside. Where lines meet in a node, that is in the
    first of their lanes.

    Args:
        nodes: in an order in which each tensor is written before it is read.
    """
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for tensor in dict.fromkeys(node.reads):
            readers.setdefault(tensor, []).append(i)
    lanes: list[tuple[str, int] | None] = []  # what runs in each lane: the tensor, and the node that reads it
    result = []
    for i, node in enumerate(nodes):
        arriving = [lane for lane, line in enumerate(lanes) if line is not None and line[1] == i]
        passing = [(lane, line[0]) for lane, line in enumerate(lanes) if line is not None and line[1] != i]
        own = arriving[0] if arriving else _free(lanes)
        above = [Line(lane, own, line[0]) for lane in arriving if (line := lanes[lane]) is not None]
        for lane in arriving:
            lanes[lane] = None
        leaving = sorted((reader, tensor) for tensor in node.writes for reader in readers.get(tensor, []))
        below = []
        for reader, tensor in leaving:
            lane = own if own == len(lanes) or lanes[own] is None else _free(lanes)
            lanes.extend([None] * (lane + 1 - len(lanes)))
            lanes[lane] = (tensor, reader)
            below.append(Line(own, lane, tensor))
        straight = [Line(lane, lane, tensor) for lane, tensor in passing]
        result.append(Row(own, (*straight, *above), (*straight, *below)))
    return result


def _free(lanes: Sequence[tuple[str, int] | None]) -> int:
    """The first lane without a line."""
    return next((lane for lane, line in enumerate(lanes) if line is None), len(lanes))


def without_constants(nodes: Sequence[Node], inputs: Sequence[str]) -> list[bool]:
    """For each node, whether it computes something that depends on the inputs, and so is no part of the weights."""
    known = set(inputs)
    result = []
    for node in nodes:
        depends = not known.isdisjoint(node.reads)
        known.update(node.writes if depends else ())
        result.append(depends)
    return result
