"""The generator of all pairs, and the check for missing pairs."""

from __future__ import annotations

import itertools

import pytest

from support.pairs import all_pairs, missing_pairs, pairs_of


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (2, 2, 2), (24, 8, 7, 5), (3, 9, 4), (5, 5, 5, 5, 5, 2)])
def test_every_pair_is_in_a_row_and_no_row_is_too_many(sizes: tuple[int, ...]) -> None:
    factors = [[f"{'abcdef'[i]}{k}" for k in range(size)] for i, size in enumerate(sizes)]
    rows = all_pairs(factors)
    for i, j in itertools.combinations(range(len(factors)), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(factors[i], factors[j]))
    assert missing_pairs(factors, rows) == set()
    for k, row in enumerate(rows):
        missing = missing_pairs(factors, rows[:k] + rows[k + 1 :])
        assert missing and missing <= pairs_of(row), "a row that is left out is noticed"
    assert len(rows) <= 2 * max(a * b for a, b in itertools.combinations(sizes, 2))


def test_the_full_product_is_much_larger() -> None:
    factors = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"], ["j", "k", "l"]]
    assert len(all_pairs(factors)) <= 12 < 3**4


def test_the_same_rows_again() -> None:
    factors = [["a", "b"], ["c", "d", "e"], ["f", "g"]]
    assert all_pairs(factors) == all_pairs(factors)
    assert missing_pairs(factors, []) == {
        *((0, a, 1, b) for a, b in itertools.product("ab", "cde")),
        *((0, a, 2, b) for a, b in itertools.product("ab", "fg")),
        *((1, a, 2, b) for a, b in itertools.product("cde", "fg")),
    }
