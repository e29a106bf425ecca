"""SimplifyGather: indexing with tensors, as PyTorch exports it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.normalise.simplify_gather import SimplifyGather
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import assert_same, copy, equal, op_types, parse, run_float, samples, weights

GRID = np.stack(np.meshgrid([0, 0, 1, 3, 5], [5, 2, 2, 1], indexing="ij"), axis=-1)
ALONG = "s = Sign(x)\na = Transpose<perm={}>(s)\nb = GatherND(a, i)\nc = Transpose<perm={}>(b)\ny = Conv(c, w)"


def simplified(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    count = SimplifyGather()(after).count
    x = samples(model)
    assert equal(run_float(after, x), run_float(model, x))
    return after, count


@pytest.mark.parametrize(
    ("perms", "indices", "count"),
    [
        (("[1,0,2,3]", "[1,0,2,3]"), np.array([[2], [0], [-1], [1]]), 1),
        (("[2,3,0,1]", "[2,3,0,1]"), GRID, 2),
    ],
)
def test_fires_on_constant_indices(perms: tuple[str, str], indices: np.ndarray, count: int) -> None:
    model = parse(ALONG.format(*perms), i=indices, w=weights(8, 4, 3, 3))
    after, modified = simplified(model)
    assert modified == count
    assert op_types(after).count("Gather") == count and "GatherND" not in op_types(after)
    binary, left, _ = to_binary(model)
    assert not left
    assert_same(model, binary)


def test_fires_on_a_table() -> None:
    text = (
        "a = GreaterOrEqual(x, zero)\nb = Cast<to=7>(a)\nc = Unsqueeze(b, last)\ns = GatherND(table, c)\ny = Conv(s, w)"
    )
    model = parse(text, zero=np.float32(0), last=np.array([-1]), table=np.float32([-1, 1]), w=weights(8, 4, 3, 3))
    after, modified = simplified(model)
    assert modified == 1
    assert op_types(after) == ["GreaterOrEqual", "Cast", "Gather", "Conv"]
    binary, left, _ = to_binary(model)
    assert not left
    assert_same(model, binary)


@pytest.mark.parametrize("indices", [GRID[:, ::-1] * (GRID > 1), np.array([[0, 1], [1, 2], [3, 3]])])
def test_does_not_fire_on_indices_that_are_no_grid(indices: np.ndarray) -> None:
    model = parse(
        "a = Transpose<perm=[2,3,0,1]>(x)\ny = GatherND(a, i)", i=np.append(indices, indices[-1:] * 0 + 1, axis=0)
    )
    after, modified = simplified(model)
    assert (modified, op_types(after)) == (0, op_types(model))


def test_indices_shared_by_two() -> None:
    text = "b = GatherND(x, i)\nc = Neg(x)\nd = GatherND(c, i)\ny = Add(b, d)\nz = Relu(b)"
    _, modified = simplified(parse(text, outputs=("y", "z"), i=np.array([[2], [0]])))
    assert modified == 2
