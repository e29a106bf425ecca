"""The rows and lanes of a network."""

from __future__ import annotations

from itertools import pairwise

from bnn_deploy.page.graph import Line, Node, rows, without_constants


def lanes(*nodes: tuple[str, str]) -> list[int]:
    """The lanes of nodes that are written as ("a b", "c"): what is read, what is written."""
    return [row.lane for row in rows([Node(tuple(reads.split()), tuple(writes.split())) for reads, writes in nodes])]


def test_a_chain_is_one_lane() -> None:
    assert lanes(("", "x"), ("x", "a"), ("a", "b"), ("b", "")) == [0, 0, 0, 0]


def test_a_shortcut_runs_beside_what_it_goes_around() -> None:
    nodes = [Node((), ("x",)), Node(("x",), ("a",)), Node(("a",), ("b",)), Node(("x", "b"), ("y",)), Node(("y",), ())]
    found = rows(nodes)
    assert [row.lane for row in found] == [0, 0, 0, 0, 0]
    assert found[0].below == (Line(0, 0, "x"), Line(0, 1, "x"))
    assert found[2].above == (Line(1, 1, "x"), Line(0, 0, "a"))
    assert found[3].above == (Line(0, 0, "b"), Line(1, 0, "x"))
    assert [row.width for row in found] == [2, 2, 2, 2, 1]


def test_a_branch_with_nodes_has_a_lane_of_its_own() -> None:
    assert lanes(("", "x"), ("x", "a"), ("x", "b"), ("a b", "y"), ("y", "")) == [0, 0, 1, 0, 0]


def test_two_outputs_and_unused_ones() -> None:
    assert lanes(("", "x"), ("x", "a b unused"), ("a", "c"), ("c b", "y"), ("y", "")) == [0, 0, 0, 0, 0]


def test_every_line_goes_on_where_it_ended() -> None:
    """In a dense block, where each node reads all before it."""
    names = [f"t{i}" for i in range(6)]
    nodes = [Node(tuple(names[:i]), (name,)) for i, name in enumerate(names)] + [Node(tuple(names), ())]
    found = rows(nodes)
    for upper, lower in pairwise(found):
        assert sorted((line.end, line.tensor) for line in upper.below) == sorted(
            (line.start, line.tensor) for line in lower.above
        )
        assert len({line.end for line in upper.below}) == len(upper.below), "no two lines in one lane"
    assert found[-1].below == ()


def test_what_computes_weights_is_no_part_of_the_picture() -> None:
    nodes = [Node((), ("w",)), Node(("w",), ("v",)), Node(("x", "v"), ("y",)), Node(("y",), ("z",))]
    assert without_constants(nodes, ["x"]) == [False, False, True, True]
