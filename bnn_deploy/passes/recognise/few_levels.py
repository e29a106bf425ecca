"""Activations of a few levels, as of DoReFa-Net, AdaBin and LQ-Nets, recognised by their values, not by their form."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import MAX_LEVEL_BITS
from bnn_deploy.passes.elementwise import APPROXIMATE, Array, evaluate, is_elementwise, straight_through, uniform
from bnn_deploy.passes.graph import constant, is_op, static_shape
from bnn_deploy.passes.monotone import (
    LARGEST,
    Floats,
    bisect_threshold,
    float_to_ordered,
    monotone,
    ordered_to_float,
)
from bnn_deploy.passes.moves import moves_only
from bnn_deploy.passes.reasons import FallingLevels, Reason
from bnn_deploy.provenance import zero_value

EVEN = 1e-6
"""Levels may differ from multiples of the step by this times the highest, which is more than their own rounding."""

HALF = 2.0**-24
"""The smallest positive float16: what is nearer to 0 becomes 0, or this."""

NARROW = 1e-6
"""The width, of its place, of an interval in which a sum is one number by rounding."""

SIGN_OF_ZERO = 7 / 16
"""A level is reached from this part of the way to it on. A Sign of 0 is half of the way, so it counts as +1."""

MAX_LEVELS = 2**MAX_LEVEL_BITS

PER_CHANNEL = ("BatchNormalization", "LeakyRelu", "PRelu")
"""Operators with parameters per channel, which `monotone` evaluates."""


@dataclass(frozen=True)
class Quantizer:
    """A tensor whose value is that of `levels` whose index is the number of thresholds that another tensor reaches.

    Attributes:
        data: the other tensor, as far up in the graph as the function stays one of each element alone.
        perm: how `data` is transposed on the way; () if it is not.
        thresholds: [levels - 1, C] float32, ascending.
        levels: the values, ascending.
        before: the nearest tensor that this one is a function of, with few levels: what was quantised in the source.
        before_perm: as perm, of `before`.
        before_thresholds: of `before`, [levels - 1, C] float32, or [levels - 1, 1] where all channels have the same.
        dropped: whether the tensor has another value at single numbers, as a Sign at 0: what is no layer may not read
            the levels in its place.
    """

    data: ir.Value
    perm: tuple[int, ...]
    thresholds: Floats
    levels: NDArray[np.float64]
    before: ir.Value
    before_perm: tuple[int, ...]
    before_thresholds: Floats
    dropped: bool

    @property
    def bits(self) -> int:
        """Bits of a level's index."""
        return len(self.thresholds).bit_length()

    @property
    def step(self) -> float | None:
        """The distance of two neighbouring levels; None if they are not evenly spaced."""
        return even_step(self.levels)


def _is_quantized(value: ir.Value) -> bool:
    """Whether a DequantizeLinear makes a tensor, directly or in front of what gives one value for each of its own."""
    node: ir.Node | None = value.producer()
    while node is not None and not is_op(node, "DequantizeLinear"):
        data = [operand for operand in node.inputs if operand is not None and uniform(operand) is None]
        keeps = is_op(node, "MaxPool") or moves_only(node) or (is_elementwise(node) and len(data) == 1)
        node = data[0].producer() if keeps and data else None
    return node is not None


def even_step(levels: NDArray[np.float64]) -> float | None:
    """The distance of two neighbouring levels; None if they are not evenly spaced."""
    low, high, steps = float(levels[0]), float(levels[-1]), len(levels) - 1
    even = low + (high - low) / steps * np.arange(steps + 1)
    near = EVEN * max(abs(low), abs(high))
    return None if (np.abs(levels - even) > near).any() else (high - low) / steps


def quantizer(value: ir.Value, signs: bool = False, axis: int = 1) -> Quantizer | Reason | None:
    """Read a tensor as levels.

    1. It is a function f of one other tensor's elements, each alone, made of Clip, Round, comparisons, Where, Cast and
       arithmetic with constants, one number or one per channel, and of QuantizeLinear and DequantizeLinear; Transposes
       in between count as nothing. What f is made of does not matter: f is evaluated.
    2. f has 2 to 16 values over all float32, and does not fall. One that it has at a single number or a few next to it,
       as of a Sign at 0, does not count: there it may as well be the next.
    3. Each threshold is the smallest float32 at which f has the value, found by bisection, so levels are exact by
       construction, ties of Round included.
    4. A function further up (BatchNormalization, Relu, ...) is taken into f where f then still rises in every channel.
    5. The straight-through trick `x + (q - x)` counts as q.
    6. Sigmoid and Tanh may be in f where there are no few levels without them, as in round(sigmoid(x)): a threshold is
       then right to their rounding.

    Args:
        value: the tensor.
        signs: whether ±s, a sign, counts as levels.
        axis: of the channels: 1 or -1.

    Returns:
        The quantiser; a reason if the tensor has a few levels, but not such; None if it is nothing of the kind, or ±s,
        a sign.
    """
    shape = static_shape(value)
    if shape is None or len(shape) < 2 or shape[axis] is None or value.dtype != ir.DataType.FLOAT:
        return None
    channels = shape[axis]
    assert channels is not None
    nearest: tuple[_Chain, Floats] | None = None
    every = levels = np.zeros(0, np.float64)  # all values of the nearest, and those of more than one number
    best: tuple[_Chain, Floats] | None = None  # with thresholds [levels - 1, C]
    problem: Reason | None = None  # of the nearest function with few levels
    is_sign = dropped = False
    for chain in _chains(value, len(shape), channels, axis % len(shape)):
        if chain.leaf.dtype != ir.DataType.FLOAT:
            continue
        if nearest is not None and _rounds(chain) > _rounds(nearest[0]):
            break  # the thresholds would be those of another rounding
        if nearest is None and not signs and not _is_quantized(chain.leaf):
            above = chain.steps[-1].node
            if is_op(above, "Sign") and len(chain.steps) == 1:
                is_sign, dropped = True, not zero_value(above)
                continue
            if is_sign and is_op(above, "BatchNormalization"):
                continue  # a line in front of a sign makes no other levels
        if nearest is None:
            found = _discover(chain.evaluate, chain.columns(channels))
            if found is None:
                continue
            every = found
            quantized = _is_quantized(chain.leaf)  # and so 0, too, is many numbers in front of that
            levels = every if quantized else _intervals(chain.evaluate, every, chain.columns(channels))
            dropped = dropped or len(levels) < len(every)
            one_sign = not quantized and sum(is_op(step.node, "Sign") for step in chain.steps) == 1
            if (
                not signs
                and levels[0] == -levels[-1]
                and (len(levels) == 2 or (one_sign and len(levels) == 3 and levels[1] == 0))
            ):
                is_sign = True  # what is in front may leave only some levels: a Relu, of a sign, 0 and 1
                continue
        thresholds = _thresholds(chain.evaluate, every, levels, chain.columns(channels))
        if thresholds is None:
            if nearest is not None:
                break
            if not is_sign and problem is None:
                problem = FallingLevels(value.name or "", len(levels))
            continue
        always, never = np.isneginf(thresholds).all(axis=1), np.isposinf(thresholds).all(axis=1)
        if (always | never).any():  # a Relu in front leaves only some
            levels, thresholds = levels[always.sum() : len(levels) - never.sum()], thresholds[~always & ~never]
            nearest = None
            if len(levels) < 2:
                return None
        empty = np.append((thresholds[1:] == thresholds[:-1]).all(axis=1), False)
        if empty.any():  # nothing that is quantised becomes such a level
            levels, thresholds = levels[np.insert(~empty, 0, True)], thresholds[~empty]
            nearest = None
        if nearest is None:
            nearest = chain, thresholds
        best = chain, np.repeat(thresholds, channels // thresholds.shape[1], axis=1)
    if nearest is None or best is None:
        return problem
    first, before_thresholds = nearest
    last, thresholds = best
    return Quantizer(last.leaf, last.perm, thresholds, levels, first.leaf, first.perm, before_thresholds, dropped)


def dequantized(value: ir.Value | None) -> ir.Value | None:
    """The x of DequantizeLinear(QuantizeLinear(x)) that `value` is, with one constant scale; None if it is no such."""
    outer = None if value is None else value.producer()
    inner = outer.inputs[0].producer() if is_op(outer, "DequantizeLinear") and outer and outer.inputs[0] else None
    if outer is None or inner is None or not is_op(inner, "QuantizeLinear") or not is_elementwise(inner):
        return None
    scales = [constant(scale) for node in (outer, inner) for scale in node.inputs[1:] if scale is not None]
    return inner.inputs[0] if all(scale is not None and scale.size == 1 for scale in scales) else None


def requantize(value: ir.Value, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the DequantizeLinear(QuantizeLinear(x)) that `value` is makes of numbers."""
    outer = value.producer()
    assert outer is not None and outer.inputs[0] is not None
    inner = outer.inputs[0].producer()
    assert inner is not None
    result: Array = points.astype(np.float32)
    for node in (inner, outer):
        scales = [None if scale is None else constant(scale) for scale in node.inputs[1:]]
        result = evaluate(node, [result, *(None if s is None else s.reshape(()) for s in scales)])
    return result.astype(np.float64)


@dataclass(frozen=True)
class TwoLevels:
    """A tensor that is -scale where another one is below its threshold, and else +scale.

    Attributes:
        data: the other tensor, of the same layout.
        thresholds: [C] float32, or [1] where all channels have the same.
        scale: > 0.
        zero: whether it is 0 where the other one is 0, or so near to it that half precision is 0; all thresholds are 0.
    """

    data: ir.Value
    thresholds: Floats
    scale: float
    zero: bool = False


def two_levels(value: ir.Value) -> TwoLevels | None:
    """Read a tensor as ±scale, by evaluating the function that makes it, as `quantizer` does; None if it is no such."""
    shape = static_shape(value)
    if shape is None or len(shape) < 2 or shape[1] is None or value.dtype != ir.DataType.FLOAT:
        return None
    for chain in _chains(value, len(shape), shape[1]):
        columns = chain.columns(shape[1])
        levels = None if chain.perm or chain.leaf.dtype != ir.DataType.FLOAT else _discover(chain.evaluate, columns)
        if levels is not None:
            if len(levels) > 3 or levels[0] != -levels[-1] or levels[1] not in (0, levels[-1]):
                return None
            thresholds = _thresholds(chain.evaluate, levels, levels, columns)
            if thresholds is None or not np.isfinite(thresholds).all():
                return None
            if len(levels) == 3:
                zero = np.zeros_like(thresholds[0])
                return TwoLevels(chain.leaf, zero, float(levels[2]), True) if np.abs(thresholds).max() < HALF else None
            return TwoLevels(chain.leaf, thresholds[0], float(levels[1]))
    return None


def transposed(shape: Sequence[Any], perm: Sequence[int]) -> list[Any]:
    """A shape after a Transpose; () is none."""
    return [shape[axis] for axis in perm] if perm else list(shape)


class _Step(NamedTuple):
    """One node of a chain.

    Attributes:
        node: it.
        operands: what each of its inputs is: a value to be computed, a constant (one number or one per channel), None.
        function: what it computes of them, in numpy.
    """

    node: ir.Node
    operands: list[Any]
    function: Callable[[list[Any]], Array]


@dataclass
class _Chain:
    """The nodes between a tensor and one that it is an elementwise function of.

    Attributes:
        leaf: that one.
        perm: how it is transposed on the way; () if it is not.
        steps: the nodes, the last first.
        result: the tensor.
    """

    leaf: ir.Value
    perm: tuple[int, ...]
    steps: list[_Step] = field(default_factory=list)
    result: ir.Value | None = None

    def columns(self, channels: int) -> int:
        """Of how many channels the function is known by: 1 if it is the same in all."""
        constants = [item for step in self.steps for item in step.operands if isinstance(item, np.ndarray)]
        same = all(array.ndim == 0 for array in constants) and not any(
            is_op(step.node, *PER_CHANNEL) for step in self.steps
        )
        return 1 if same else channels

    def evaluate(self, points: Floats) -> Array:
        """The function of points [..., C], or [..., 1] where it is the same in all channels."""
        known: dict[ir.Value, Array] = {self.leaf: points}
        with np.errstate(all="ignore"):
            for step in reversed(self.steps):
                values = [known[item] if isinstance(item, ir.Value) else item for item in step.operands]
                known[step.node.outputs[0]] = step.function(values)
        assert self.result is not None
        result = known[self.result]
        return result if result.shape == points.shape else np.broadcast_to(result, points.shape)


def _chains(value: ir.Value, rank: int, channels: int, axis: int = 1) -> list[_Chain]:
    """All tensors that `value` is an elementwise function of, the nearest first; its channels are axis `axis`."""
    open_values = [value]
    perm = tuple(range(rank))  # as `axis`, in terms of the tensors reached so far
    steps: list[_Step] = []
    found = []
    while True:
        if len(open_values) == 1 and steps and not _is_repeated(open_values[0], value, perm):
            identity = perm == tuple(range(rank))
            found.append(_Chain(open_values[0], () if identity else perm, list(steps), value))
        producers = [p for v in open_values if (p := v.producer()) is not None]
        if not producers:
            return found
        last = _last(producers)
        if is_op(last, "Transpose"):
            order = last.attributes.get("perm")
            data = last.inputs[0]
            if len(open_values) > 1 or order is None or data is None:
                return found
            order_ints = order.as_ints()
            axis, perm = order_ints[axis], tuple(order_ints[i] for i in perm)
            operands: list[Any] | None = [data]
        else:
            operands = _operands(last, rank, axis, channels)
        if operands is None:
            return found
        steps.append(_Step(last, operands, _function(last, len(operands), channels)))
        open_values = [v for v in open_values if v.producer() is not last]
        for item in operands:
            if isinstance(item, ir.Value) and item not in open_values:
                open_values.append(item)
        if not open_values:
            return found  # a constant


def _last(nodes: list[ir.Node]) -> ir.Node:
    """One of these on which no other depends.

    The search goes up from all of them in turns: those of one function are near to each other, so it takes the same
    time in a network of any length.
    """
    left = dict.fromkeys(nodes)
    searches = {node: _ancestors(node) for node in left}
    while len(left) > 1 and searches:
        for node, search in list(searches.items()):
            above = next(search, None)
            if above is None or node not in left:  # what that one depends on is found from here, too
                del searches[node]
            else:
                left.pop(above, None)
    return next(iter(left))


def _ancestors(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that a node depends on, the nearest first."""
    seen, queue = {node}, deque([node])
    while queue:
        for operand in queue.popleft().inputs:
            above = None if operand is None else operand.producer()
            if above is not None and above not in seen:
                seen.add(above)
                queue.append(above)
                yield above


def _is_repeated(leaf: ir.Value, value: ir.Value, perm: Sequence[int]) -> bool:
    """Whether `value` has several elements for one of `leaf`, such as by a Where of a constant of another shape."""
    before, after = static_shape(leaf), static_shape(value)
    if before is None or after is None or len(before) != len(after):
        return False
    return any(size == 1 != other for size, other in zip(transposed(before, perm), after, strict=True))


def _rounds(chain: _Chain) -> int:
    """How many operators of a chain round in their own way."""
    return sum(is_op(step.node, *APPROXIMATE) for step in chain.steps)


def _operands(node: ir.Node, rank: int, axis: int, channels: int) -> list[Any] | None:
    """The operands of an elementwise node, as in _Chain; None if it is another, or a constant does not fit."""
    if (quantized := next(straight_through(node), None)) is not None:
        return [quantized]
    if len(node.outputs) != 1:
        return None
    if is_op(node, *PER_CHANNEL):
        first, function = node.inputs[0], monotone(node, channels)
        return None if axis != 1 or first is None or function is None or isinstance(function, Reason) else [first]
    if is_op(node, "Gather") and is_elementwise(node):
        return [constant(node.inputs[0]), node.inputs[1]]
    if not is_elementwise(node) and not is_op(node, *APPROXIMATE):
        return None
    if is_op(node, "Div") and node.outputs[0].dtype != ir.DataType.FLOAT:  # rounds, and not as numpy's
        return None
    operands: list[Any] = []
    for index, value in enumerate(node.inputs):
        array = uniform(value)
        if value is None:
            operands.append(None)
        elif array is None:
            shape = static_shape(value)
            if shape is None or len(shape) != rank or shape[axis] != channels:
                return None
            operands.append(value)
        else:
            own_axis = is_op(node, "QuantizeLinear", "DequantizeLinear") and index > 0 and array.ndim == 1
            if own_axis and array.size > 1:
                attribute = node.attributes.get("axis")
                if (1 if attribute is None else attribute.as_int()) % rank != axis or array.size != channels:
                    return None
                operands.append(array)
                continue
            if array.size == 1:
                operands.append(array.reshape(()))
                continue
            aligned = array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim <= rank else array
            if aligned.ndim != rank or aligned.size != channels or aligned.shape[axis] != channels:
                return None
            operands.append(aligned.reshape(-1))
    return operands if any(isinstance(item, ir.Value) for item in operands) else None


def _function(node: ir.Node, operands: int, channels: int) -> Callable[[list[Any]], Array]:
    """What a step of a chain computes of its operands, in numpy; read once, because it is evaluated often."""
    if is_op(node, "Transpose") or (operands == 1 and next(straight_through(node), None) is not None):
        return operator.itemgetter(0)
    if is_op(node, *PER_CHANNEL):
        function = monotone(node, channels)
        assert function is not None and not isinstance(function, Reason)
        return lambda values: function(values[0])
    if is_op(node, "Sign") and (zero := zero_value(node)):
        return lambda values: np.where(values[0] == 0, np.float32(zero), np.sign(values[0]))
    return lambda values: evaluate(node, values)


def _discover(function: Callable[[Floats], Array], channels: int) -> NDArray[np.float64] | None:
    """The values that a function of float32 takes, if it does not fall and they are 2 to 16; else None.

    All are found: between two numbers with the same value a function that does not fall is constant, and between two
    with different ones the search goes on down to neighbours.
    """
    ends = np.array([[-LARGEST], [LARGEST]], np.float32) * np.ones(channels, np.float32)
    low, high = function(ends)
    if not np.isfinite([low, high]).all():
        return None
    channel = int(np.argmax(high.astype(np.float64) - low))

    def at(orders: NDArray[np.int64]) -> NDArray[np.float64]:
        points = np.repeat(ordered_to_float(orders)[:, np.newaxis], channels, axis=1)
        return function(points)[:, channel].astype(np.float64)

    orders = np.array([float_to_ordered(-LARGEST), float_to_ordered(LARGEST)], np.int64)
    values = at(orders)
    while True:
        if not np.isfinite(values).all() or len(np.unique(values)) > MAX_LEVELS:
            return None
        (gaps,) = np.nonzero((np.diff(values) != 0) & (np.diff(orders) > 1))
        if not len(gaps):
            break
        middles = (orders[gaps] + orders[gaps + 1]) // 2
        orders = np.insert(orders, gaps + 1, middles)
        values = np.insert(values, gaps + 1, at(middles))
    levels = np.unique(values)
    return None if len(levels) < 2 else levels


def _intervals(function: Callable[[Floats], Array], every: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """The values of a function but for those that it has, in every channel, at a single number or its neighbours."""
    starts = _bisect(function, every, channels)
    if starts is None:
        return every
    with np.errstate(invalid="ignore"):  # inf - inf: a value that a channel does not have
        width = starts[1:] - np.nextafter(starts[:-1], np.float32(np.inf))
        single = ~(width > NARROW * np.abs(starts[1:]))
    kept = np.concatenate([[True], ~single.all(axis=1), [True]])
    intervals: NDArray[np.float64] = every[kept]
    return intervals


def _bisect(
    function: Callable[[Floats], Array], levels: NDArray[np.float64], channels: int
) -> NDArray[np.float32] | None:
    """Where the function, of each channel, reaches each level, [levels - 1, C]; None if it falls in one."""
    found = []
    for below, level in itertools.pairwise(levels):
        half = below + SIGN_OF_ZERO * (level - below)

        def reached(x: Floats, half: float = half) -> NDArray[np.bool_]:
            result: NDArray[np.bool_] = function(x[np.newaxis])[0] >= half
            return result

        threshold, falling = bisect_threshold(reached, channels)
        if falling.any():
            return None
        found.append(threshold)
    return np.stack(found)


def _thresholds(
    function: Callable[[Floats], Array], every: NDArray[np.float64], levels: NDArray[np.float64], channels: int
) -> NDArray[np.float32] | None:
    """Where the function, of each channel, reaches each level, [levels - 1, C]; None if it is no such function.

    Args:
        function: it.
        every: all its values.
        levels: those of them that count.
        channels: C.
    """
    thresholds = _bisect(function, levels, channels)
    if thresholds is None:
        return None
    near = EVEN * np.abs(levels).max()
    dropped = every[~np.isin(every, levels)]
    for points in _probes(thresholds):
        values = function(points).astype(np.float64)
        expected = levels[(points[:, np.newaxis] >= thresholds).sum(axis=1)]
        at_one_number = (np.abs(values[..., np.newaxis] - dropped) <= near).any(axis=-1)
        if not (at_one_number | (np.abs(values - expected) <= near)).all():
            return None
    return thresholds


def _probes(thresholds: Floats) -> list[Floats]:
    """Points [P, C] to check a function at: everywhere, at each threshold and next to it, and around all of them."""
    count = thresholds.shape[1]
    largest = float_to_ordered(LARGEST)
    everywhere = ordered_to_float(np.linspace(-largest, largest, 1025).astype(np.int64))
    finite = np.where(np.isfinite(thresholds), thresholds, np.float32(0))
    span = np.maximum(finite.max(axis=0) - finite.min(axis=0), np.float32(1e-3))
    ramp = np.linspace(-2, 2, 257, dtype=np.float32)[:, np.newaxis]
    return [
        np.repeat(everywhere[:, np.newaxis], count, axis=1),
        finite,
        np.nextafter(finite, np.float32(-np.inf)),
        np.nextafter(finite, np.float32(np.inf)),
        (finite.mean(axis=0) + ramp * span).astype(np.float32),
    ]
