"""FuseAveragePool: between two binary layers the floats of an average pool are not made."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.bits import words
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.conditions import thresholds_folded
from bnn_deploy.passes.graph import (
    add_initializer,
    auto_pad,
    constant,
    insert_node,
    is_binary_op,
    is_op,
    maker,
    replace_value,
    sole_consumer,
)
from bnn_deploy.passes.lower.layer import pool_window
from bnn_deploy.passes.monotone import bisect_threshold
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import bit_metadata


class FuseAveragePool(Pass):
    """Binarize(AveragePool(y), t), or Binarize(AveragePool(Relu(y)), t)  ==>  AveragePoolThreshold(y, t').

    onnxruntime averages floats in blocks of channels, into which it reorders them and out of which it reorders what
    it made.

    1. y is made by an operator of the domain. Behind a layer of onnxruntime's the blocks are there already.
    2. The AveragePool feeds only the Binarize, it has two spatial dimensions, explicit pads, rounds down, and divides
       by the same number everywhere. The Relu, if it feeds only the AveragePool, is part of the operator.
    3. t' is the smallest float32 sum whose average, as float32 divides, is at least t, found by bisection.

    The order in which a window is summed is the operator's own, so that a bit may differ where an average is within
    rounding of its threshold.

    Declines: nothing; other pools are right as they are.
    """

    needs = (thresholds_folded,)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every AveragePool that qualifies."""
        result = Outcome(model)
        for binarize in list(model.graph):
            value = binarize.inputs[0] if is_binary_op(binarize, "Binarize") else None
            pool = None if value is None else value.producer()
            if pool is None or value is None or sole_consumer(value) is not binarize or not _fits(pool):
                continue
            x = pool.inputs[0]
            assert x is not None
            relu = x.producer()
            if is_op(relu, "Relu") and relu is not None and sole_consumer(x) is pool:
                x = relu.inputs[0]
                assert x is not None
            else:
                relu = None
            made = x.producer()
            if made is None or made.domain != DOMAIN:
                continue
            new = _fuse(model.graph, x, relu is not None, pool, binarize)
            result.rewrote(new, pool, binarize, *([] if relu is None else [relu]))
        return result


def _fits(pool: ir.Node) -> bool:
    """Whether a node is an AveragePool with the window of an AveragePoolThreshold."""
    if not is_op(pool, "AveragePool") or auto_pad(pool) is not None:
        return False
    window = pool_window(pool)
    counted = pool.attributes.get("count_include_pad")
    evenly = not any(window["pads"]) or (counted is not None and counted.as_int() == 1)
    return len(window["kernel_shape"]) == 2 and not window["ceil_mode"] and evenly and min(window["pads"]) >= 0


def _fuse(graph: ir.Graph, x: ir.Value, relu: bool, pool: ir.Node, binarize: ir.Node) -> ir.Node:
    window = pool_window(pool)
    del window["ceil_mode"]
    average, old = pool.outputs[0], binarize.outputs[0]
    threshold = constant(binarize.inputs[1])
    assert threshold is not None
    taps = np.float32(math.prod(window["kernel_shape"]))
    sums, falling = bisect_threshold(lambda total: total / taps >= threshold, len(threshold))
    assert not falling.any()
    name = old.name
    new = insert_node(
        binarize,
        "AveragePoolThreshold",
        [x, add_initializer(graph, f"{average.name}_threshold", sums)],
        window | {"relu": int(relu)},
        f"{name}_new",
        dtype=ir.DataType.UINT32,
        shape=None if average.shape is None else [average.shape[0], *average.shape[2:], words(len(threshold))],
        domain=DOMAIN,
        name=binarize.name,
        metadata=bit_metadata(binarize),
    )
    replace_value(old, new)
    new.name = name
    return maker(new)
