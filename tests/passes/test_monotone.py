"""Thresholds by bisection over the order of floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from bnn_deploy import convert, verify
from bnn_deploy.passes.monotone import batch_norm_line, bisect_threshold, float_to_ordered, ordered_to_float
from support.damage import Damage, with_flipped_bit
from support.golden_files import BEST
from support.graphs import HALVES, parse, weights


def test_order_of_floats() -> None:
    order = np.array([float_to_ordered(x) for x in HALVES])
    assert (np.diff(order[HALVES != 0]) > 0).all()
    np.testing.assert_array_equal(ordered_to_float(order).view(np.uint32), HALVES.view(np.uint32))
    for x in (np.float32(1), np.float32(-3e-45), np.float32(0)):
        assert ordered_to_float(np.array([float_to_ordered(x) + 1]))[0] == np.nextafter(x, np.float32(np.inf))
    assert (float_to_ordered(-0.0), float_to_ordered(0.0)) == (-1, 0)
    assert ordered_to_float(np.array([float_to_ordered(np.inf), float_to_ordered(-np.inf)])).tolist() == [
        np.inf,
        -np.inf,
    ]


def test_bisection_finds_every_half() -> None:
    threshold, falling = bisect_threshold(lambda x: x >= HALVES, len(HALVES))
    np.testing.assert_array_equal(threshold, HALVES)
    assert not falling.any()
    threshold, falling = bisect_threshold(lambda x: x <= HALVES, len(HALVES))
    np.testing.assert_array_equal(threshold, np.nextafter(HALVES, np.float32(np.inf)))
    assert falling.all()
    # The check would see a threshold that is one float off.
    off, _ = bisect_threshold(lambda x: x > HALVES, len(HALVES))
    assert (off != HALVES).all()


def test_bisection_of_constants_and_extremes() -> None:
    largest = np.finfo(np.float32).max
    limits = np.float32([-np.inf, -largest, 0, largest, np.inf, np.nan])
    threshold, falling = bisect_threshold(lambda x: x >= limits, len(limits))
    # Every finite float is >= -largest, so that channel is as good as constant; NaN is never reached.
    assert threshold.tolist() == [-np.inf, -np.inf, 0, largest, np.inf, np.inf]
    assert not falling.any()
    smallest = np.float32([1e-45, -1e-45])
    assert bisect_threshold(lambda x: x >= smallest, 2)[0].tolist() == smallest.tolist()


def test_an_epsilon_is_a_float32() -> None:
    """As the file holds it, though an exporter's graph in memory may have more digits."""
    values = [ir.Value(name="x"), *(add_constant(name, 3e-6) for name in "gbmv")]
    norm = ir.Node("", "BatchNormalization", values, [ir.AttrFloat32("epsilon", 1e-5)])
    line = batch_norm_line(norm, np.float64)
    assert not isinstance(line, str)
    v = np.float64(np.float32(3e-6))
    assert line[0][0] == v / np.sqrt(v + np.float64(np.float32(1e-5)))
    assert line[0][0] != v / np.sqrt(v + 1e-5)


def add_constant(name: str, number: float) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(np.array([number], np.float32), name=name))


def test_a_number_per_sample_has_no_channels(tmp_path: Path) -> None:
    """A gate of the sample's mean: its sign has one dimension."""
    body = """m = ReduceMean <keepdims=0> (x, axes)
a = Mul (m, two)
g = Sign (a)
u = Unsqueeze (g, rest)
s = Sign (x)
c = Conv (s, w)
y = Mul (c, u)"""
    numbers = {"axes": np.array([1, 2, 3]), "rest": np.array([1, 2, 3]), "two": np.float32(2)}
    model = parse(body, ("N", 4, 6, 6), w=weights(8, 4, 3, 3), **numbers)
    result = convert(model, tmp_path / "m.onnx")
    assert result.binary_layers == ("c",)
    x = np.random.default_rng(0).standard_normal((8, 4, 6, 6)).astype(np.float32)
    assert verify(result.output, model, data=x, isas=BEST, reference_samples=1).passed
    wrong = with_flipped_bit(result.output, tmp_path / "wrong.onnx")
    assert not verify(wrong, model, data=x, isas=BEST, reference_samples=0).passed
    wrong_gate = onnx.load(result.output)
    Damage(wrong_gate).change("two", np.negative)  # each sample's number has the other sign
    onnx.save(wrong_gate, tmp_path / "gate.onnx")
    assert not verify(tmp_path / "gate.onnx", model, data=x, isas=BEST, reference_samples=0).passed
