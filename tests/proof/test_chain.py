"""A model that runs free segment by segment: only what differs from what a segment was fed with before runs again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bnn_deploy.proof.backends import RunError, one_by_one
from bnn_deploy.proof.chain import Fed, run_chain

Arrays = dict[str, np.ndarray]

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def segment(inputs: str, output: str) -> Any:
    return SimpleNamespace(name=output, inputs=inputs.split(), output=SimpleNamespace(tensor=output))


class Runner:
    """A backend's function, which notes with how many rows it was called."""

    def __init__(self, function: Any) -> None:
        self.function, self.rows = function, list[int]()

    def __call__(self, feed: Arrays) -> list[np.ndarray]:
        self.rows.append(len(next(iter(feed.values()))))
        return [np.asarray(self.function(*feed.values()))]


def chain(fed: dict[str, Fed], of_samples: str = "x a b") -> tuple[Arrays, dict[str, Runner]]:
    """x -> a = 2 x -> b = a + x, with a mistake of the model in `a`: the last sample's is 1 larger."""
    runners = {"a": Runner(lambda x: 2 * x + (x == X[-1])), "b": Runner(lambda a, x: a + x)}
    pieces = [segment("x", "a"), segment("a x", "b")]
    return run_chain(pieces, runners, {"x": X}, fed, set(of_samples.split())), runners


def whole() -> Arrays:
    found, runners = chain({})
    assert runners["a"].rows == runners["b"].rows == [4]
    np.testing.assert_array_equal(found["b"], 3 * X + (X[-1] == X))
    return found


def test_only_samples_that_differ_run_again() -> None:
    """`b` was fed with the reference's `a`, which the model's equals in all samples but the last."""
    expected = whole()
    fed = {"a": Fed({"x": X}, expected["a"]), "b": Fed({"a": 2 * X, "x": X}, 3 * X)}
    found, runners = chain(fed)
    assert (runners["a"].rows, runners["b"].rows) == ([], [1])
    for name in ("a", "b"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert not np.array_equal(found["b"], fed["b"].got), "what it was fed with is not what it gets, running free"
    np.testing.assert_array_equal(fed["b"].got, 3 * X)  # which others read, too


def test_one_input_that_differs_is_enough() -> None:
    """In other samples each."""
    a, x = whole()["a"], X.copy()
    x[1] += 1
    found, runners = chain({"a": Fed({"x": X}, a), "b": Fed({"a": 2 * X, "x": x}, 2 * X + x)})
    assert runners["b"].rows == [2]
    np.testing.assert_array_equal(found["b"], whole()["b"])


@pytest.mark.parametrize(
    "case",
    {
        "no row for each sample": ("x b", Fed({"a": 2 * X, "x": X}, 3 * X)),
        "an output without": ("x a", Fed({"a": 2 * X, "x": X}, 3 * X)),
        "another shape": ("x a b", Fed({"a": 2 * X[:2], "x": X[:2]}, 3 * X[:2])),
        "another type": ("x a b", Fed({"a": (2 * X).astype(np.float64), "x": X}, 3 * X)),
    }.values(),
)
def test_else_all_of_it_runs_again(case: tuple[str, Fed]) -> None:
    found, runners = chain({"b": case[1]}, case[0])
    assert runners["b"].rows == [4]
    np.testing.assert_array_equal(found["b"], whole()["b"])


def test_nan_is_never_the_same() -> None:
    feed = {"a": np.where(X == 4, np.nan, 2 * X), "x": X}
    runners = {"b": Runner(lambda a, x: a + x)}
    found = run_chain([segment("a x", "b")], runners, feed, {"b": Fed(feed, feed["a"] + X)}, {"a", "x", "b"})
    assert runners["b"].rows == [1]
    np.testing.assert_array_equal(found["b"], feed["a"] + X)


def test_a_tensor_that_no_segment_makes() -> None:
    with pytest.raises(RunError, match="segment 'b' reads 'a', which no segment makes"):
        run_chain([segment("a x", "b")], {"b": Runner(lambda a, x: a)}, {"x": X}, {}, {"x"})


def test_a_sample_at_a_time_gives_the_same() -> None:
    runner = Runner(lambda a, x: a + x)
    (found,) = one_by_one(runner)({"a": 2 * X, "x": X})
    assert runner.rows == [1, 1, 1, 1]
    np.testing.assert_array_equal(found, 3 * X)
    (mixed,) = one_by_one(lambda feed: [feed["x"] - feed["x"].mean(0)])({"x": X})
    assert not mixed.any(), "a function that mixes samples is seen: it gives something else"
