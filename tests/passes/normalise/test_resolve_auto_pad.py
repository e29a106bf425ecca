"""ResolveAutoPad: SAME and VALID as numbers."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.normalise.resolve_auto_pad import ResolveAutoPad
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import assert_same, copy, equal, op_types, parse, run_float, samples, weights


def resolve(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, ResolveAutoPad()(after).count


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_fires(rule: str) -> None:
    dilations = (1, 2) if rule == "VALID" else (1,)  # onnxruntime has no other ones with SAME
    for size, kernel, stride, dilation in itertools.product((6, 7), (1, 2, 3), (1, 2, 3), dilations):
        attributes = f'auto_pad="{rule}", strides=[{stride},1], dilations=[{dilation},1]'
        model = parse(f"s = Sign(x)\ny = Conv <{attributes}> (s, w)", ("N", 4, size, 6), w=weights(8, 4, kernel, 2))
        after, modified = resolve(model)
        assert modified == 1
        assert equal(run_float(after, samples(model)), run_float(model, samples(model)))


def test_a_pool_and_a_layer_behind_it_become_binary() -> None:
    text = 's = Sign(x)\np = MaxPool <auto_pad="SAME_UPPER", kernel_shape=[3,3], strides=[2,2]> (s)'
    model = parse(
        f'{text}\ny = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (p, w)', ("N", 4, 7, 8), w=weights(8, 4, 3, 3)
    )
    binary = to_binary(model)[0]
    assert op_types(binary) == ["Binarize", "BinaryMaxPool", "BinaryConv"]
    assert_same(model, binary)


def test_does_not_fire_on_explicit_pads() -> None:
    model = parse('y = Conv <auto_pad="NOTSET", pads=[1,1,1,1]> (x, w)', w=weights(8, 4, 3, 3))
    assert resolve(model)[1] == 0


def test_does_not_fire_on_unknown_sizes() -> None:
    shape, w = ("N", 4, "H", "W"), weights(8, 4, 3, 3)
    assert resolve(parse('y = Conv <auto_pad="SAME_UPPER", strides=[1,2]> (x, w)', shape, w=w))[1] == 0
    # At stride 1 the pads are the same for any size.
    after, modified = resolve(parse('y = Conv <auto_pad="SAME_UPPER"> (x, w)', shape, w=w))
    assert modified == 1 and next(iter(after.graph)).attributes["pads"].as_ints() == (1, 1, 1, 1)


def test_weights_shared_by_two_nodes_and_fan_out() -> None:
    text = (
        's = Sign(x)\ny = Conv <auto_pad="SAME_UPPER"> (s, w)\nz = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (s, w)'
    )
    model = parse(text, outputs=("y", "z"), w=weights(8, 4, 2, 2))
    assert resolve(model)[1] == 2
    assert_same(model, to_binary(model)[0])
    assert np.shape(run_float(model, samples(model))[1])[2:] == (3, 3)
