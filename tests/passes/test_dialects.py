"""The catalogue of dialects: every form of a sign, of weights, of padding and of what follows is exact in every other's
company. By default every two forms meet; `pytest -m full_matrix` runs all 6720 combinations. See support/dialects.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.report.summary import binary_layers
from support.dialects import (
    BRANCHES,
    CHANNELS,
    FILTERS,
    FOLLOWERS,
    PADDINGS,
    SIGNS,
    SIZE,
    WEIGHTS,
    branched,
    constants,
    corrupted,
    inputs,
    matrix,
    model_of,
)
from support.graphs import equal, run_binary, run_float
from support.pairs import all_pairs, missing_pairs

FACTORS = [list(SIGNS), list(WEIGHTS), list(PADDINGS), list(FOLLOWERS)]
PAIRS = all_pairs(FACTORS)


def check(sign: str, branches: Sequence[tuple[str, ...]], bodies: bool) -> None:
    """Convert the model of these branches, which are all exact, and none is when its weights are wrong.

    Args:
        sign: of SIGNS.
        branches: see `branched`.
        bodies: the operators' bodies are run as well, and not the kernels alone.
    """
    zero = SIGNS[sign][1]
    # Where sign(0) is 0, exact zeros are another test's.
    model = branched(sign, branches, 1 / 16 if zero == 0 else 0.0)
    binary, left, _ = to_binary(model)
    assert left == []
    assert len(binary_layers(binary)) == 2 * len(branches)
    x = inputs(zeros=zero != 0)
    expected = run_float(model, x)
    for kernels in (True, False) if bodies else (True,):
        for branch, got, wanted in zip(branches, run_binary(binary, x, kernels), expected, strict=True):
            assert equal([got], [wanted]), (*branch, kernels)
    wrong = run_binary(corrupted(binary), x, True)
    for branch, got, wanted in zip(branches, wrong, expected, strict=True):
        assert not equal([got], [wanted]), ("not seen", *branch)


@pytest.mark.parametrize("sign", SIGNS)
def test_every_pair_of_forms(sign: str) -> None:
    check(sign, [branch for first, *branch in PAIRS if first == sign], bodies=True)


def test_the_pairs_are_all_there() -> None:
    """test_every_pair_of_forms runs every row: its comparisons are strict about their number."""
    assert missing_pairs(FACTORS, PAIRS) == set()
    assert len(PAIRS) == len(SIGNS) * len(WEIGHTS)


@pytest.mark.full_matrix
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("sign", SIGNS)
def test_every_combination_of_forms(sign: str, weight: str) -> None:
    check(sign, [(weight, *branch) for branch in BRANCHES], bodies=weight == "W1 constant")


@pytest.mark.parametrize("sign", [sign for sign, (_, zero) in SIGNS.items() if zero == 0])
def test_exact_zeros_become_plus_one(sign: str) -> None:
    """Where the source's sign(0) is 0, the converted model's is +1, as the paper's; but a padded 0 stays 0."""
    binary = to_binary(matrix(sign, "W1 constant", 0.0))[0]
    x = inputs(zeros=True)
    oracle = matrix(sign, "W1 constant", 0.0, ideal=True)
    for branch, got, wanted in zip(BRANCHES, run_binary(binary, x, True), run_float(oracle, x), strict=True):
        assert equal([got], [wanted]), branch
    assert not equal(run_float(matrix(sign, "W1 constant", 0.0), x), run_float(oracle, x)), "no zero made a difference"


LINEAR = {
    "W5 MatMul [K, N]": "{w} = Identity(binary)\n{y} = MatMul({x}, {w})",
    "W5 MatMul of a Transpose": "{w}a = Sign(latent)\n{w} = Transpose({w}a)\n{y} = MatMul({x}, {w})",
    "W3 Gemm": (
        "{w}a = Sign(latent)\n{w}b = Abs(latent)\n{w}m = ReduceMean <keepdims=1> ({w}b, axes)\n"
        "{w} = Mul({w}a, {w}m)\n{y} = Gemm <transB=1> ({x}, {w}, {bias})"
    ),
    "W4 Gemm": (
        "{w}a = Sign(latent)\n{w}b = Abs(latent)\n{w}m = ReduceMean <keepdims=1> ({w}b, axes)\n{w}d = Mul({w}m, {w}a)\n"
        "{w}c = Clip(latent, minus, one)\n{w}e = Sub({w}d, {w}c)\n{w} = Add({w}e, {w}c)\n"
        "{y} = Gemm <transB=1> ({x}, {w}, {bias})"
    ),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_linear_layers_of_a_flat_map(sign: str) -> None:
    """Map -> sign -> Flatten -> linear -> Add -> BatchNorm -> linear layer of Sign."""
    zero = SIGNS[sign][1]
    values = constants(sign, 1 / 16 if zero == 0 else 0.0)
    rng = np.random.default_rng(5)
    features = CHANNELS * SIZE * SIZE
    magnitudes = np.stack([rng.permutation([0.25, 0.75] * (features // 2) + [0.5]) for _ in range(FILTERS)])
    latent = (magnitudes * rng.choice([-1, 1], magnitudes.shape)).astype(np.float32)
    values |= {
        "latent": latent,
        "binary": np.sign(latent).T * np.float32(0.5),
        "axes": np.array([1]),
        "last": values["last"][:, :, 0, 0].T.copy(),
    }
    nodes = [SIGNS[sign][0].format(x="x", s="s"), "f = Flatten(s)"]
    for i, text in enumerate(LINEAR.values()):
        nodes += [
            text.format(x="f", w=f"w{i}", y=f"a{i}", bias=f"bias{i}"),  # equal layers would become one
            f"b{i} = Add(a{i}, bias0)",
            f"n{i} = BatchNormalization(b{i}, g, b, m, v)",
            f"t{i} = Sign(n{i})",
            f"y{i} = MatMul(t{i}, last)",
        ]
    model = model_of(nodes, [f"y{i}" for i in range(len(LINEAR))], values, ("N", CHANNELS, SIZE, SIZE))
    binary, left, _ = to_binary(model)
    assert left == []
    assert len(binary_layers(binary)) == 2 * len(LINEAR)
    x = inputs(zeros=zero != 0)
    expected = run_float(model, x)
    for name, got, wanted in zip(LINEAR, run_binary(binary, x, True), expected, strict=True):
        assert equal([got], [wanted]), name
    for name, got, wanted in zip(LINEAR, run_binary(corrupted(binary), x, True), expected, strict=True):
        assert not equal([got], [wanted]), ("not seen", name)


def test_the_number_of_combinations() -> None:
    """test_every_combination_of_forms runs every branch of every model."""
    assert len(SIGNS) * len(WEIGHTS) * len(BRANCHES) == 24 * 8 * 7 * 5
