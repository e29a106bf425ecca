"""RefuseStep: a sign that is 0 over an interval is a step to 0 and 1, and not ±1."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.conditions import signs_canonical
from bnn_deploy.passes.elementwise import evaluate
from bnn_deploy.passes.graph import constant, insert_node, is_op, is_standard_layer, maker, remove_if_dead, static_shape
from bnn_deploy.passes.lower.layer import is_plain_pool, pool_window
from bnn_deploy.passes.monotone import monotone
from bnn_deploy.passes.outcome import Outcome, Pass, take_in
from bnn_deploy.passes.reasons import Reason, StepSign
from bnn_deploy.provenance import REFUSED, zero_value

_KEEPS_ZEROS = (
    "Abs",
    "AveragePool",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "Pad",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Reshape",
    "Slice",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Tanh",
    "Transpose",
    "Unsqueeze",
)
"""What gives 0 where all that it reads is 0."""

_MOST = 16
"""Constants of one value that are followed further up, those nearest to 0 first."""


@dataclass(frozen=True)
class _Flat:
    """A constant that a value is over an interval of what it is computed from.

    Attributes:
        level: per channel of the value, or [1] for all; NaN where there is none.
        node: what makes it so.
    """

    level: NDArray[np.float32]
    node: ir.Node


class RefuseStep(Pass):
    """Sign(f(x)), f exactly 0 over an interval and sign(0) being 0: marked, so that its layers are left float.

    1. Relu, a Clip with 0 as one of its limits, Max or Min with 0, rounding to integers, DequantizeLinear,
       ThresholdedRelu, Shrink, HardSigmoid, HardSwish, a channel that is multiplied by 0: there Sign is 0 not only at a
       single number, which the paper's +1 could stand for. Sign(Relu(x)), Larq's ste_heaviside, is 0 and 1.
    2. Between it and the Sign there may be pools, moves, functions per channel that take the constant to exactly 0 in
       some channel, and sums, products, maxima, Concat and Where of several such.

    3. Such a Sign behind MaxPools goes in front of them, where a Relu and it are the levels 0 and 1.

    Declines: what is behind a BatchNormalization, whose shift is hardly ever the constant itself. It is no error:
        where sign(0) is +1 or -1 in the source, ±1 is right.
    """

    needs = (signs_canonical,)

    def __init__(self) -> None:
        self._found: dict[ir.Value, list[_Flat]] = {}

    def call(self, model: ir.Model) -> Outcome:
        """Mark every such Sign."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_op(node, "Sign") or zero_value(node) or node.inputs[0] is None:
                continue
            flat = next((flat.node for flat in self._flats(node.inputs[0]) if (flat.level == 0).any()), None)
            if flat is not None:
                node = _above_pools(node)
                node.meta[REFUSED] = StepSign(flat.op_type, flat.outputs[0].name or "")
                result.rewrote(node)
        return result

    def _flats(self, value: ir.Value) -> list[_Flat]:
        """The constants that a value is over intervals."""
        pending, opened = [value], set()
        while pending:  # no recursion: graphs are deeper than Python's stack
            last = pending[-1]
            node = last.producer()
            if last not in self._found and last not in opened and node is not None and not _ends(node):
                opened.add(last)
                pending += [above for above in node.inputs if above is not None and above not in self._found]
                continue
            pending.pop()
            if last not in self._found:
                self._found[last] = []  # until it is known, should the graph have a cycle
                found = [] if node is None else self._of(node, _channels(last))
                self._found[last] = sorted(found, key=lambda flat: float(np.nanmin(np.abs(flat.level))))[:_MOST]
        return self._found[value]

    def _of(self, node: ir.Node, channels: int) -> list[_Flat]:
        data = [value for value in node.inputs if value is not None and constant(value) is None]
        found = [_Flat(np.full(channels, level, np.float32), node) for level in _levels(node)]
        if is_op(node, "Where"):
            for value in node.inputs[1:]:
                number = constant(value)
                if number is not None and number.size == 1:
                    found.append(_Flat(np.full(channels, number.reshape(()), np.float32), node))
                elif value is not None and number is None:
                    found += [_Flat(_fit(flat.level, channels), flat.node) for flat in self._flats(value)]
            return found
        if is_op(node, "Concat") and node.attributes["axis"].as_int() == 1:
            first = 0
            for value in node.inputs:
                count = 0 if value is None else _channels(value)
                for flat in [] if value is None else self._flats(value):
                    level = np.full(channels, np.nan, np.float32)
                    level[first : first + count] = flat.level
                    found.append(_Flat(level, flat.node))
                first += count
            return found
        if is_op(node, *_KEEPS_ZEROS):
            # All operands but the first are sizes and axes.
            for flat in self._flats(data[0]) if data else []:
                found.append(
                    _Flat(np.where(_fit(flat.level, channels) == 0, np.float32(0), np.float32(np.nan)), flat.node)
                )
            return [flat for flat in found if not np.isnan(flat.level).all()]
        if len(data) == 2 and is_op(node, *_TOGETHER):
            for one, other in itertools.product(self._flats(data[0]), self._flats(data[1])):
                if _root(one.node) is _root(other.node):
                    continue  # Relu(x) and Relu(-x) are 0 on different sides
                level = evaluate(node, [_fit(one.level, channels), _fit(other.level, channels)])
                found.append(_Flat(level, one.node))
            if is_op(node, "Mul"):
                found += [_zero(flat, channels) for flat in (*self._flats(data[0]), *self._flats(data[1]))]
            return [flat for flat in found if not np.isnan(flat.level).all()]
        step = monotone(node, channels)
        if step is None or isinstance(step, Reason) or len(data) != 1:
            return found
        low, high = step(-np.ones(channels, np.float32)), step(np.ones(channels, np.float32))
        if (low == high).any():
            found.append(_Flat(np.where(low == high, low, np.float32(np.nan)), node))
        if is_op(node, "BatchNormalization"):
            return found
        return found + [_Flat(step(_fit(flat.level, channels)), flat.node) for flat in self._flats(data[0])]


def _ends(node: ir.Node) -> bool:
    """Whether what is above a node says nothing of the constants that it gives."""
    return is_standard_layer(node) or is_op(node, "BatchNormalization")


def _above_pools(sign: ir.Node) -> ir.Node:
    """Sign(MaxPool(x)) -> MaxPool(Sign(x)), for any number of pools; return the Sign."""
    data, old = sign.inputs[0], sign.outputs[0]
    pool = None if data is None else data.producer()
    if pool is None or not is_op(pool, "MaxPool") or not is_plain_pool(pool):
        return sign
    x, name = pool.inputs[0], old.name or ""
    assert x is not None
    above = insert_node(sign, "Sign", [x], {}, f"{name}_above_pool", dtype=ir.DataType.FLOAT, shape=x.shape)
    new = insert_node(
        sign, "MaxPool", [above], pool_window(pool), f"{name}_pooled", dtype=ir.DataType.FLOAT, shape=old.shape
    )
    new.metadata_props.update(old.metadata_props)
    maker(new).metadata_props.update(sign.metadata_props)
    take_in(maker(above), sign)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    remove_if_dead(sign)
    old.name, new.name = f"{name}_below_pool", name
    return _above_pools(maker(above))


_TOGETHER = ("Add", "Max", "Min", "Mul", "Sub")
"""Operators of two tensors that are constant where both are."""


def _channels(value: ir.Value) -> int:
    """The number of channels of a value; 1 if it has or says none."""
    shape = static_shape(value)
    return (shape[1] if shape is not None and len(shape) > 1 else None) or 1


def _root(node: ir.Node) -> ir.Value | None:
    """What a node computes its result from, through operators that read one thing only."""
    while True:
        data = [value for value in node.inputs if value is not None and constant(value) is None]
        producer = data[0].producer() if len(data) == 1 else None
        if producer is None or is_op(producer, "Conv", "Gemm", "MatMul"):
            return data[0] if len(data) == 1 else node.outputs[0]
        node = producer


def _zero(flat: _Flat, channels: int) -> _Flat:
    """Only what of a constant is 0."""
    return _Flat(np.where(_fit(flat.level, channels) == 0, np.float32(0), np.float32(np.nan)), flat.node)


def _fit(level: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """A constant per channel for another number of channels: the one nearest to 0 for all."""
    if len(level) == channels:
        return level
    return np.full(channels, level[np.nanargmin(np.abs(level))], np.float32)


def _levels(node: ir.Node) -> list[float]:
    """The values that an operator gives over an interval each; of rounding, those that are near 0."""
    if is_op(node, "DequantizeLinear", "HardSwish", "Relu", "Shrink", "ThresholdedRelu"):
        return [0.0]
    if is_op(node, "HardSigmoid"):
        return [0.0, 1.0]
    if is_op(node, "Clip", "Max", "Min"):
        limits = [constant(value) for value in (node.inputs[1:] if is_op(node, "Clip") else node.inputs)]
        return [float(limit.reshape(())) for limit in limits if limit is not None and limit.size == 1]
    data = node.inputs[0] if node.inputs else None
    to_integer = is_op(node, "Cast") and data is not None and data.dtype is not None and data.dtype.is_integer()
    return [float(level) for level in range(-256, 256)] if to_integer or is_op(node, "Ceil", "Floor", "Round") else []
