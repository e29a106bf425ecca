"""What operators move, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.moves import moves_of, moves_only
from bnn_deploy.provenance import Place
from support.graphs import Array, parse, run_float, samples

NEAREST = 'Resize<mode="nearest", coordinate_transformation_mode="{}", nearest_mode="{}">(x, , s)'
NUMBERS: dict[str, Array] = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "many": np.array([-1]),
    "least": np.array([-100]),
    "all": np.array([2**63 - 1]),
    "last": np.array([3]),
    "picks": np.array([2, 0, -1, 1, 1]),
    "square": np.array([[2, 0], [1, -1]]),
    "number": np.array(-2),
    "up": np.float32([1, 1, 2, 3]),
    "odd": np.float32([1, 1, 1.5, 0.5]),
    "sizes": np.array([1, 8, 9, 4]),
    "times": np.array([1, 2, 1, 3]),
    "wide": np.array([1, 4, 6, 6]),
    "pads": np.array([0, 0, 1, 2, 0, 0, 3, 1]),
}


def resized(grid: str, nearest: str, scales: str = "up") -> str:
    return NEAREST.format(grid, nearest).replace("s)", f"{scales})")


# Each operator, and another one of the same kind whose result is not the same.
CASES = [
    ("Transpose<perm=[0,2,3,1]>(x)", "Transpose<perm=[0,3,2,1]>(x)"),
    ("Slice(x, zero, last, one)", "Slice(x, one, last, one)"),
    ("Slice(x, many, least, last, many)", "Slice(x, zero, all, last)"),
    ("Slice(x, zero, all, zero)", "Slice(x, one, all, last)"),
    ("Gather<axis=1>(x, picks)", "Gather<axis=2>(x, picks)"),
    ("Gather<axis=3>(x, square)", "Gather<axis=3>(x, number)"),
    ("Gather<axis=2>(x, number)", "Gather<axis=3>(x, number)"),
    ("DepthToSpace<blocksize=2>(x)", 'DepthToSpace<blocksize=2, mode="CRD">(x)'),
    ('DepthToSpace<blocksize=2, mode="CRD">(x)', "DepthToSpace<blocksize=2>(x)"),
    ("SpaceToDepth<blocksize=2>(x)", "SpaceToDepth<blocksize=3>(x)"),
    ("Tile(x, times)", "Tile(x, wide)"),
    ('Pad<mode="reflect">(x, pads)', 'Pad<mode="edge">(x, pads)'),
    ('Pad<mode="edge">(x, pads)', 'Pad<mode="wrap">(x, pads)'),
    ('Pad<mode="wrap">(x, pads)', 'Pad<mode="reflect">(x, pads)'),
    (resized("asymmetric", "floor"), resized("asymmetric", "ceil")),
    (resized("half_pixel", "round_prefer_floor"), resized("asymmetric", "ceil")),
    (resized("half_pixel", "round_prefer_ceil", "odd"), resized("asymmetric", "floor", "odd")),
    (resized("align_corners", "round_prefer_ceil"), resized("asymmetric", "floor")),
    (resized("pytorch_half_pixel", "floor", "odd"), resized("half_pixel", "ceil", "odd")),
    (resized("half_pixel", "round_prefer_floor", ", sizes"), resized("asymmetric", "ceil", ", sizes")),
]


def model_of(operator: str) -> ir.Model:
    text = f"y = {operator}"
    batch = 1 if "sizes" in operator else "N"
    return parse(text, (batch, 8, 6, 6), **{name: array for name, array in NUMBERS.items() if name in operator})


@pytest.mark.parametrize(("operator", "other"), CASES)
def test_the_moves_are_what_onnxruntime_does(operator: str, other: str) -> None:
    model = model_of(operator)
    moves = moves_of(model.graph.outputs[0])
    assert moves is not None
    x = samples(model)
    found = Place("x", tuple(moves)).read({"x": x})
    np.testing.assert_array_equal(found, run_float(model, x)[0])
    assert not np.array_equal(found, run_float(model_of(other), x)[0])


def test_each_output_of_a_split() -> None:
    model = parse("a, y = Split<axis=1>(x, sizes)", sizes=np.array([1, 3]))
    moves, x = moves_of(model.graph.outputs[0]), samples(model)
    assert moves is not None
    found = Place("x", tuple(moves)).read({"x": x})
    np.testing.assert_array_equal(found, run_float(model, x)[0])
    assert not np.array_equal(found, x[:, :3])


def test_a_map_of_one_element_is_repeated() -> None:
    model = parse("y = Expand(x, shape)", ("N", 4, 1, 1), shape=np.array([1, 4, 3, 2]))
    moves, x = moves_of(model.graph.outputs[0]), samples(model)
    assert moves is not None
    found = Place("x", tuple(moves)).read({"x": x})
    np.testing.assert_array_equal(found, run_float(model, x)[0])
    assert not np.array_equal(found[:, ::-1], run_float(model, x)[0])


@pytest.mark.parametrize(
    ("operator", "more"),
    [
        ('Resize<mode="linear">(x, , up)', {}),
        ("Pad(x, pads)", {}),
        ("Relu(x)", {}),
        ("Slice(x, n, all, last)", {"n": np.array([1])}),
    ],
)
def test_does_not_know(operator: str, more: dict[str, Any]) -> None:
    model = parse(f"y = {operator}", **{n: a for n, a in (NUMBERS | more).items() if n in operator.split("(")[1]})
    if more:  # not constant
        model.graph.inputs.append(model.graph.initializers.pop("n"))
    (node,) = model.graph
    assert not moves_only(node)
