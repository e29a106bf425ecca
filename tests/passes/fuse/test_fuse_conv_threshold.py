"""FuseConvThreshold: between two binary layers no float is made; integer thresholds against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnn_deploy.operators.contract import ALWAYS, NEVER
from bnn_deploy.passes.fuse.commute_max_pool import CommuteMaxPool
from bnn_deploy.passes.fuse.fold_threshold import FoldThreshold
from bnn_deploy.passes.fuse.fuse_conv_threshold import FuseConvThreshold, integer_threshold
from bnn_deploy.passes.graph import constant
from bnn_deploy.provenance import COMPLEMENTED, SOURCE, complemented
from support.graphs import (
    assert_same,
    batch_norm,
    copy,
    eighths,
    equal,
    lower,
    only,
    op_types,
    parse,
    run_binary,
    run_float,
    samples,
    weights,
)

NORM = "BatchNormalization({}, g, b, m, v)"
NEGATIVE = batch_norm(8, gamma=[1, -1, -0.5, 2, 0, -3, 1, 1]) | {"b": np.full(8, 0.3, np.float32)}
CONSTANTS = {"w": weights(8, 4, 3, 3), "c": eighths(8), "u": weights(6, 8, 3, 3, seed=1)}
FIRST = "s = Sign(x)\na = Conv <pads=[1,1,1,1]> (s, w, c)\n"
LAST = "t = Sign({})\ny = Conv <pads=[1,1,1,1]> (t, u)"


def passes(model: ir.Model, rounds: int = 3) -> tuple[ir.Model, list[str]]:
    """All three of the loop; return what the last round declined, too."""
    after = lower(model)
    declined: list[str] = []
    for _ in range(rounds):
        results = [step(after) for step in (FoldThreshold(), CommuteMaxPool(), FuseConvThreshold())]
        declined = [d.reason for result in results for d in result.declined]
    return after, declined


# What stands between two convolutions, and what becomes of it.
FUSED: dict[str, tuple[str, list[str]]] = {
    "nothing": ("f = Add(a, k)", []),
    "BatchNorm": (f"f = {NORM.format('a')}", []),
    "Relu, BatchNorm": (f"r = Relu(a)\nf = {NORM.format('r')}", []),
    "Relu, MaxPool, BatchNorm": (
        f"r = Relu(a)\np = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (r)\nf = {NORM.format('p')}",
        ["BinaryMaxPool"],
    ),
    "MaxPool, Relu, BatchNorm": (
        f"p = MaxPool <kernel_shape=[2,2], ceil_mode=1, strides=[3,3]> (a)\nr = Relu(p)\nf = {NORM.format('r')}",
        ["BinaryMaxPool"],
    ),
    "PRelu, Clip, BatchNorm": (f"r = PRelu(a, h)\nq = Clip(r, low)\nf = {NORM.format('q')}", []),
    "Mul, BatchNorm": (f"r = Mul(a, k)\nf = {NORM.format('r')}", []),
}
EXTRA = {"k": np.float32(0.3), "h": np.float32([0.25]), "low": np.float32(-1)}


def test_linear_layers_behind_a_one_dimensional_map() -> None:
    """The map's layer has a window of one dimension, the next one of two."""
    text = "s = Sign(x)\nf = Flatten(s)\na = MatMul(f, w)\nt = Sign(a)\ny = MatMul(t, u)"
    model = parse(text, ("N", 33, 3), w=weights(99, 8), u=weights(8, 6, seed=1))
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryConvThreshold", "Unsqueeze", "BinaryConv", "Flatten"]
    assert_same(model, after)


@pytest.mark.parametrize("norm", [batch_norm(8), NEGATIVE])
@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str, norm: dict[str, NDArray[Any]]) -> None:
    between, pools = FUSED[case]
    extra = {name: value for name, value in EXTRA.items() if f" {name})" in between}
    norm = norm if "Batch" in between else {}
    model = parse(FIRST + between + "\n" + LAST.format("f"), **CONSTANTS, **extra, **norm)
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryConvThreshold", *pools, "BinaryConv"]
    assert_same(model, after)
    bits = only(after, "BinaryMaxPool" if pools else "BinaryConvThreshold")
    assert bits.metadata_props[SOURCE] == "t"
    assert complemented(bits) == (set(np.flatnonzero(norm["g"] < 0).tolist()) if norm else set())


def test_a_threshold_moved_by_one_is_seen() -> None:
    """acc has the parity of the number of products, so moving a threshold by one acts in one direction only."""
    model = parse(FIRST + f"f = {NORM.format('a')}\n" + LAST.format("f"), **CONSTANTS, **batch_norm(8))
    after, _ = passes(model)
    x = samples(model, 40)
    expected = run_float(model, x)
    assert equal(run_binary(after, x, True), expected)
    seen = []
    for step in (-1, 1):
        wrong = copy(after)
        value = only(wrong, "BinaryConvThreshold").inputs[2]
        assert value is not None
        array = np.array(constant(value))
        array[0] += step
        value.const_value = ir.tensor(array, name=value.name)
        seen.append(not equal(run_binary(wrong, x, True), expected))
    assert any(seen)


def test_a_chain_of_three_layers_makes_no_float() -> None:
    model = parse(
        FIRST
        + f"f = {NORM.format('a')}\nt = Sign(f)\nd = Conv(t, u8)\ne = {NORM.format('d')}\nz = Sign(e)\ny = Conv(z, u)",
        **CONSTANTS,
        **NEGATIVE,
        u8=weights(8, 8, 3, 3, seed=3),
    )
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryConvThreshold", "BinaryConvThreshold", "BinaryConv"]
    assert_same(model, after)


@pytest.mark.parametrize("consumers", [1, 2])
@pytest.mark.parametrize("norm", [batch_norm(8), NEGATIVE])
def test_fuses_linear_layers(norm: dict[str, NDArray[Any]], consumers: int) -> None:
    text = f"s = Sign(x)\na = Gemm(s, w, c)\nr = Relu(a)\nf = {NORM.format('r')}\nt = Sign(f)\ny = MatMul(t, u)"
    text += "\nz = MatMul(t, u)" if consumers == 2 else ""
    outputs = ("y", "z")[:consumers]
    model = parse(text, ("N", 20), outputs, w=weights(20, 8), c=eighths(8), u=weights(8, 5, seed=1), **norm)
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "Unsqueeze", "BinaryConvThreshold", *["BinaryConv", "Flatten"] * consumers]
    assert_same(model, after, samples(model, 40))


def test_fuses_a_convolution_of_one_pixel_and_a_linear_layer() -> None:
    text = f"s = Sign(x)\na = Conv(s, w, c)\nd = Flatten(a)\nf = {NORM.format('d')}\nt = Sign(f)\ny = MatMul(t, u)"
    model = parse(text, ("N", 4, 3, 3), w=CONSTANTS["w"], c=eighths(8), u=weights(8, 5), **NEGATIVE)
    after, declined = passes(model)
    assert declined == []
    assert op_types(after) == ["Binarize", "BinaryConvThreshold", "BinaryConv", "Flatten"]
    assert_same(model, after, samples(model, 40))


def test_fuses_a_sign_that_feeds_two_convolutions() -> None:
    text = FIRST + f"f = {NORM.format('a')}\nt = Sign(f)\ny = Conv(t, u)\nz = Conv <group=2> (t, q)"
    model = parse(text, outputs=("y", "z"), **CONSTANTS, **NEGATIVE, q=weights(4, 4, 2, 2))
    after, declined = passes(model)
    assert declined == []
    assert sorted(op_types(after)) == ["Binarize", "BinaryConv", "BinaryConv", "BinaryConvThreshold"]
    assert_same(model, after)


def test_weights_shared_by_the_fused_and_another_layer() -> None:
    """Two layers of the same weights, the second of which reads complemented channels: each has bits of its own."""
    text = (
        f"s = Sign(x)\na = Conv <pads=[1,1,1,1]> (s, w)\nf = {NORM.format('a')}\nt = Sign(f)\n"
        f"d = Conv <pads=[1,1,1,1]> (t, w)\ny = Add(a, d)"
    )
    model = parse(text, ("N", 8, 5, 5), w=weights(8, 8, 3, 3), **NEGATIVE)
    after, declined = passes(model)
    assert declined == ["the floats of 'a' are used elsewhere too"]
    assert op_types(after).count("BinaryConv") == 2
    assert_same(model, after)


NOT_FUSED: dict[str, tuple[str, list[str]]] = {
    "AveragePool": ("f = AveragePool <kernel_shape=[2,2]> (a)\n", ["AveragePool"]),
    "residual Add": (f"e = Add(a, a)\nd = Abs(a)\ni = Add(e, d)\nf = {NORM.format('i')}\n", ["Add", "Abs", "Add"]),
    "Sigmoid": (f"e = Sigmoid(a)\nf = {NORM.format('e')}\n", ["Sigmoid"]),
}


@pytest.mark.parametrize("case", NOT_FUSED)
def test_does_not_fuse_through(case: str) -> None:
    between, kept = NOT_FUSED[case]
    if case == "AveragePool":
        between += "h = Add(f, k)\n"
    model = parse(
        FIRST + between + LAST.format("h" if case == "AveragePool" else "f"),
        **CONSTANTS,
        **({"k": np.float32(0.3)} if case == "AveragePool" else NEGATIVE | {"m": np.full(8, 0.6, np.float32)}),
    )
    after, declined = passes(model)
    assert declined == []
    assert sorted(op_types(after)) == sorted(["Binarize", "BinaryConv", *kept, "Binarize", "BinaryConv"])
    assert_same(model, after)


def test_does_not_fuse_floats_that_are_used_elsewhere() -> None:
    text = FIRST + "r = Relu(a)\n" + f"f = {NORM.format('a')}\n" + LAST.format("f")
    model = parse(text + "\nz = Identity(r)", outputs=("y", "z"), **CONSTANTS, **batch_norm(8))
    after, declined = passes(model)
    assert declined == ["the floats of 'a' are used elsewhere too"]
    assert op_types(after).count("BinaryConv") == 2
    assert_same(model, after)


def test_does_not_fuse_floats_that_are_an_output() -> None:
    model = parse(
        FIRST + f"f = {NORM.format('a')}\n" + LAST.format("f"), outputs=("y", "a"), **CONSTANTS, **batch_norm(8)
    )
    after, declined = passes(model)
    assert declined == ["the floats of 'a' are used elsewhere too"]
    assert_same(model, after)


def test_does_not_fuse_a_convolution_flattened_over_positions() -> None:
    """Behind Flatten each position has a threshold of its own; the convolution has one per channel."""
    text = f"s = Sign(x)\na = Conv(s, w)\nd = Flatten(a)\nf = {NORM.format('d')}\nt = Sign(f)\ny = MatMul(t, u)"
    model = parse(text, ("N", 4, 4, 4), w=weights(8, 4, 3, 3), u=weights(32, 5), **batch_norm(32))
    after, declined = passes(model)
    assert declined == ["it flattens positions, each with a threshold of its own"]
    assert op_types(after) == ["Binarize", "BinaryConv", "Flatten", "Binarize", "Unsqueeze", "BinaryConv", "Flatten"]
    assert_same(model, after)


def test_does_not_fuse_twice() -> None:
    model = parse(FIRST + f"f = {NORM.format('a')}\n" + LAST.format("f"), **CONSTANTS, **batch_norm(8))
    after, _ = passes(model)
    assert FuseConvThreshold()(after).count == 0
    assert COMPLEMENTED not in only(after, "BinaryConvThreshold").metadata_props


# Integer thresholds.


def brute_force(scale: NDArray[Any], bias: NDArray[Any], threshold: NDArray[Any], terms: int) -> NDArray[np.bool_]:
    """The bit for every acc [2 * terms + 1, O]."""
    acc = np.arange(-terms, terms + 1).astype(np.float32)[:, None]
    result: NDArray[np.bool_] = acc * scale + bias >= threshold
    return result


@pytest.mark.parametrize("terms", [1, 2, 9, 800, 1600, 4096])
def test_integer_thresholds_agree_with_every_integer(terms: int) -> None:
    rng = np.random.default_rng(terms)
    scale = rng.uniform(1e-3, 2, 200).astype(np.float32)
    bias = rng.normal(0, 1, 200).astype(np.float32)
    threshold = (scale * rng.uniform(-1.2, 1.2, 200) * terms + bias).astype(np.float32)
    threshold[:4] = [-np.inf, np.inf, -0.0, 0.0]
    found = integer_threshold(scale, bias, threshold, terms)
    acc = np.arange(-terms, terms + 1)[:, None]
    expected = brute_force(scale, bias, threshold, terms)
    np.testing.assert_array_equal(acc >= found, expected)
    assert found[:2].tolist() == [ALWAYS, NEVER]
    assert ((found == ALWAYS) == expected.all(axis=0)).all()
    assert ((found == NEVER) == ~expected.any(axis=0)).all()
    inner = (found != ALWAYS) & (found != NEVER)
    assert inner.any()
    for step in (-1, 1):  # off by one is seen in every channel that has a threshold
        assert ((acc >= found + step) != expected)[:, inner].any(axis=0).all()


values = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=200, deadline=None)
@given(scale=st.floats(2**-20, 2**10, width=32), bias=values, threshold=st.floats(width=32), terms=st.integers(1, 3000))
def test_integer_threshold_property(scale: float, bias: float, threshold: float, terms: int) -> None:
    arguments = np.float32([scale]), np.float32([bias]), np.float32([threshold])
    found = integer_threshold(*arguments, terms)
    np.testing.assert_array_equal(np.arange(-terms, terms + 1)[:, None] >= found, brute_force(*arguments, terms))


def test_integer_threshold_is_not_the_algebraic_one() -> None:
    """Rounding decides: (threshold - bias) / scale in real numbers would put some channels one off."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 0.2, 20_000).astype(np.float32)
    bias = rng.normal(0, 1, 20_000).astype(np.float32)
    exact = rng.integers(-500, 500, 20_000)
    threshold = scale * exact.astype(np.float32) + bias
    found = integer_threshold(scale, bias, threshold, 1000)
    algebra = np.ceil((threshold.astype(np.float64) - bias) / scale).astype(int)
    assert (found != algebra).any()
    assert (scale * found.astype(np.float32) + bias >= threshold).all()
    assert (scale * (found - 1).astype(np.float32) + bias < threshold).all()
