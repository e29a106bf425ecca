"""CanonicalizeSign: whatever computes ±1 from one tensor becomes a Sign."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.conditions import constants_folded
from bnn_deploy.passes.elementwise import (
    COMPARISONS,
    Array,
    evaluate,
    is_elementwise,
    same_shape,
    straight_through,
    uniform,
)
from bnn_deploy.passes.graph import (
    add_initializer,
    between,
    constant,
    insert_node,
    is_op,
    maker,
    remove_if_dead,
)
from bnn_deploy.passes.moves import layer_inputs, moves_of
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.passes.recognise.few_levels import TwoLevels, two_levels
from bnn_deploy.provenance import Subtract, note_place, place, sign_metadata


@dataclass(frozen=True)
class _Stepwise:
    """A tensor that depends on another only by where that lies among a few thresholds.

    Attributes:
        leaf: the other tensor; None for a constant.
        table: its values at the probes of the leaf, [probes, ...], aligned with the leaf's dimensions from the right;
            for a constant, the constant.
    """

    leaf: ir.Value | None
    table: Array


@dataclass(frozen=True)
class _Probes:
    """Where to evaluate a function of a tensor that changes only at some thresholds.

    Attributes:
        points: [probes, ...] float32, aligned with the tensor's dimensions from the right, increasing: the thresholds
            and the float32 numbers next to them.
        is_threshold: [probes, ...] bool, which of them are thresholds.
    """

    points: Array
    is_threshold: Array


@dataclass(frozen=True)
class _Step:
    """scale * (-1 below the threshold, +1 above, `zero` at it), or the same of -x and -threshold if it falls."""

    threshold: NDArray[np.float32]
    scale: float
    zero: int
    falling: bool


class CanonicalizeSign(Pass):
    """f(x), elementwise and exactly ±s for every x but one  ==>  Sign([Neg](x) - t) [* s].

    1. f is made of Sign and comparisons of one tensor x with constants, and of Where, Cast, arithmetic and logic on
       them: `Where(x > 0, 1, -1)`, `2 * Cast(x >= 0) - 1`, `1 - 2 * Cast(x < 0)`, `Sign(Sign(x) + 0.1)`, `Where(Sign(x)
       == 0, 1, Sign(x))`, a Clip or a Sign of a sign, and so on, in any combination. Such an f is constant between the
       thresholds that it compares with, so its values at these and at the next float32 numbers on both sides are all
       the values that it has: it is evaluated there, and not matched by its form.
    2. The straight-through trick `(a - S) + S` or `(a + S) - S` counts as a, whatever S is. In float32 it is exactly
       ±1 if S has the sign of x and |S| < 2^24 (S being x, Clip(x), Tanh(x) or a polynomial of the kind).
    3. t, from comparisons with other numbers than 0, is one number or one per channel. A falling f gets the Neg. An x
       that is compared with several numbers, as in a thermometer code, is repeated.
    4. Any other chain of elementwise operators in front of a layer, such as `Where(x < 0, -1, Where(x >= 0, 1, x))` of
       `o[x >= 0] = 1; o[x < 0] = -1`, or `2 * Ceil(Clip(x, 0, 1)) - 1`, is evaluated over all float32 by bisection.
    5. The value at x = t is kept: 0 as of ONNX's Sign, or +1 or -1, which the new node carries in its metadata (ZERO)
       until ExpandSign, last, spells it out where something float still reads it.

    Declines: nothing; what is no sign stays as it is, such as steps to 0 and 1, or with more than one threshold.
    """

    needs = (constants_folded,)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite the last tensor of each such chain."""
        result = Outcome(model)
        found = {value: step for value, step in self._steps(model.graph) if value.dtype == ir.DataType.FLOAT}
        for value in layer_inputs(model.graph):
            if value not in found and (levels := two_levels(value)) is not None and same_shape(value, levels.data):
                found[value] = levels.data, _reaches(levels, len(value.shape or ()))
        for value, (leaf, step) in found.items():
            node = value.producer()
            assert node is not None
            if _is_canonical(node, leaf) or (
                not value.is_graph_output()
                and all(any(output in found for output in user.outputs) for user in value.consumers())
            ):
                continue
            parts = between(leaf, node)
            result.rewrote(self._rewrite(model.graph, node, leaf, step), *parts)
        return result

    def _steps(self, graph: ir.Graph) -> list[tuple[ir.Value, tuple[ir.Value, _Step]]]:
        """All tensors that are ±s, in the order of the graph, with what they are a sign of."""
        probes = _probes(graph)
        known: dict[ir.Value, _Stepwise] = {}
        found = []
        with np.errstate(all="ignore"):
            for node in graph:
                stepwise = _evaluate(node, known, probes)
                if stepwise is None:
                    continue
                value = node.outputs[0]
                known[value] = stepwise
                leaf = stepwise.leaf
                if leaf is None or leaf.dtype != ir.DataType.FLOAT:
                    continue
                if not same_shape(value, leaf) and not _repeats(value, leaf):
                    continue
                step = _read_step(stepwise.table, probes[leaf])
                if step is not None:
                    found.append((value, (leaf, step)))
        return found

    def _rewrite(self, graph: ir.Graph, node: ir.Node, leaf: ir.Value, step: _Step) -> ir.Node:
        old = node.outputs[0]
        name = old.name or ""
        data = leaf
        before = place(leaf)
        shape = None if leaf.shape is None else list(leaf.shape)
        if not same_shape(old, leaf) and old.shape is not None and shape is not None:
            sizes = [1 if size == known else size for size, known in zip(old.shape, shape, strict=True)]
            target = add_initializer(graph, f"{name}_repeats", np.array(sizes, np.int64))
            shape = list(old.shape)
            data = insert_node(
                node, "Expand", [data, target], {}, f"{name}_repeated", dtype=ir.DataType.FLOAT, shape=shape
            )
            before = before.then(*(moves_of(data) or ()))
            note_place(data, before)
        if step.falling:
            data = insert_node(node, "Neg", [data], {}, f"{name}_negative", dtype=ir.DataType.FLOAT, shape=shape)
        if step.threshold.any():
            before = before.then(Subtract(step.threshold.tolist()))
            threshold = -step.threshold if step.falling else step.threshold
            operand = add_initializer(graph, f"{name}_subtrahend", threshold)
            data = insert_node(
                node, "Sub", [data, operand], {}, f"{name}_shifted", dtype=ir.DataType.FLOAT, shape=shape
            )
        metadata = sign_metadata(place(old), before, step.zero)
        new = sign = insert_node(
            node, "Sign", [data], {}, f"{name}_sign", dtype=ir.DataType.FLOAT, shape=shape, metadata=metadata
        )
        if step.scale != 1:
            factor = add_initializer(graph, f"{name}_factor", np.array(step.scale, np.float32))
            new = insert_node(node, "Mul", [new, factor], {}, f"{name}_scaled", dtype=ir.DataType.FLOAT, shape=shape)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = f"{name}_before_canonicalization"
        new.name = name
        remove_if_dead(node)
        return maker(sign)


def _repeats(value: ir.Value, leaf: ir.Value) -> bool:
    """Whether `value` has the shape of `leaf`, but for known sizes in place of some that are 1."""
    if value.shape is None or leaf.shape is None or len(value.shape) != len(leaf.shape):
        return False
    pairs = zip(value.shape, leaf.shape, strict=True)
    return all(size == known or (known == 1 and isinstance(size, int)) for size, known in pairs)


def _reaches(levels: TwoLevels, rank: int) -> _Step:
    """The step of two levels in a tensor of this rank: at its threshold it is +1, or, if that is next to 0, -1 at 0."""
    if levels.zero:
        return _Step(np.zeros((), np.float32), levels.scale, 0, False)
    if (levels.thresholds == np.nextafter(np.float32(0), np.float32(1))).all():
        return _Step(np.zeros((), np.float32), levels.scale, -1, False)
    thresholds = levels.thresholds + np.float32(0)
    shape = () if len(thresholds) == 1 else (-1, *[1] * (rank - 2))
    return _Step(thresholds.reshape(shape), levels.scale, 1, False)


def _is_canonical(node: ir.Node, leaf: ir.Value) -> bool:
    """Whether a sign is one that needs no rewriting: Sign(leaf), or that times a number."""
    if is_op(node, "Mul"):
        signs = [v for v in node.inputs if v is not None and is_op(v.producer(), "Sign")]
        factors = [c for v in node.inputs if (c := constant(v)) is not None and c.size == 1]
        if len(signs) != 1 or len(factors) != 1:
            return False
        sign = signs[0].producer()
        return sign is not None and sign.inputs[0] is leaf
    return is_op(node, "Sign") and node.inputs[0] is leaf


def _probes(graph: ir.Graph) -> dict[ir.Value, _Probes]:
    """Where to evaluate f, for each tensor that is compared with constants, or whose Sign is taken."""
    thresholds: dict[ir.Value, list[Array]] = {}
    for node in graph:
        if (atom := _atom(node)) is not None:
            thresholds.setdefault(atom[0], []).append(atom[1])
    probes = {}
    for leaf, arrays in thresholds.items():
        try:
            steps = np.stack(np.broadcast_arrays(*arrays))
        except ValueError:  # they do not even fit each other
            continue
        infinity = np.float32(np.inf)
        points = np.sort(np.concatenate([np.nextafter(steps, -infinity), steps, np.nextafter(steps, infinity)]), axis=0)
        probes[leaf] = _Probes(points, np.any([points == step for step in steps], axis=0))
    return probes


def _atom(node: ir.Node) -> tuple[ir.Value, NDArray[np.float32]] | None:
    """The tensor and the thresholds of a Sign, or of a comparison with a constant; None if it is neither."""
    if (is_op(node, "Sign") or _is_unit(node)) and node.inputs[0] is not None:
        return node.inputs[0], np.zeros((), np.float32)
    if not is_op(node, *COMPARISONS):
        return None
    for index in (0, 1):
        leaf, threshold = node.inputs[1 - index], uniform(node.inputs[index])
        if leaf is not None and threshold is not None and threshold.dtype == np.float32 and uniform(leaf) is None:
            return leaf, threshold
    return None


def _is_unit(node: ir.Node) -> bool:
    """Whether a node is x / |x|, which is the sign of x but for 0, where it is nothing."""
    data, divisor = node.inputs[:2] if is_op(node, "Div") else (None, None)
    absolute = None if divisor is None else divisor.producer()
    return absolute is not None and is_op(absolute, "Abs") and absolute.inputs[0] is data


def _evaluate(node: ir.Node, known: dict[ir.Value, _Stepwise], probes: dict[ir.Value, _Probes]) -> _Stepwise | None:
    """The output of `node` at the probes of what it depends on; None if it is not stepwise."""
    for kept in straight_through(node):
        if kept in known and known[kept].leaf is not None:
            return known[kept]
    if _is_unit(node) and (data := node.inputs[0]) is not None and data in probes and uniform(data) is None:
        return _Stepwise(data, np.sign(probes[data].points))
    if not is_elementwise(node) or is_op(node, "QuantizeLinear", "DequantizeLinear"):  # whose scales have an axis
        return None
    operands: list[_Stepwise | None] = []
    for value in node.inputs:
        if value is None:
            operands.append(None)
        elif value in known:
            operands.append(known[value])
        elif (array := uniform(value)) is not None:
            operands.append(_Stepwise(None, array))
        elif (atom := _atom(node)) is not None and atom[0] is value and value in probes:
            operands.append(_Stepwise(value, probes[value].points))
        else:
            return None
    leaves = {operand.leaf for operand in operands if operand is not None and operand.leaf is not None}
    if len(leaves) > 1:
        return None
    leaf = next(iter(leaves), None)
    tables: list[Array | None] = [
        None
        if operand is None
        else operand.table
        if operand.leaf is not None or leaf is None
        else operand.table[np.newaxis]
        for operand in operands
    ]
    rank = max((table.ndim for table in tables if table is not None), default=0)
    if leaf is not None:
        # The probes are the first dimension of all; the others stay aligned from the right.
        tables = [None if t is None else t.reshape(t.shape[:1] + (1,) * (rank - t.ndim) + t.shape[1:]) for t in tables]
    try:
        return _Stepwise(leaf, evaluate(node, tables))
    except (TypeError, ValueError):  # shapes or dtypes that do not fit each other
        return None


def _read_step(table: Array, probes: _Probes) -> _Step | None:
    """Read a table of values at the probes as a sign, or return None."""
    if table.dtype != np.float32 or len(table) != len(probes.points):
        return None
    rank = max(table.ndim, probes.points.ndim)
    aligned = (
        a.reshape(a.shape[:1] + (1,) * (rank - a.ndim) + a.shape[1:])
        for a in (table, probes.points, probes.is_threshold)
    )
    table, points, is_threshold = np.broadcast_arrays(*aligned)
    shape = table.shape[1:]
    table, points, is_threshold = (a.reshape(len(a), -1) for a in (table, points, is_threshold))
    scale, falling = float(np.abs(table[0, 0])), bool(table[-1, 0] < 0)
    unit = -table if falling else table
    if not 0 < scale < np.inf or not np.isin(unit, (-scale, 0, scale)).all():
        return None
    if (unit[0] != -scale).any() or (unit[-1] != scale).any() or (np.diff(unit, axis=0) < 0).any():
        return None
    # The threshold is the one number where f is 0, or the first where it is +s, or the last where it is -s: in these
    # two cases it is the one of the two neighbours that f compares with.
    columns = np.arange(unit.shape[1])
    first = (unit == scale).argmax(axis=0)
    last = (unit > -scale).argmax(axis=0) - 1
    at_zero = first - last > 1
    if (points[first - 1, columns] != points[last + 1, columns])[at_zero].any():
        return None  # f is 0 over more than a number
    inclusive = ~at_zero & is_threshold[first, columns]
    kinds = np.where(at_zero, 0, np.where(inclusive, 1, -1))
    thresholds = points[np.where(inclusive, first, first - 1), columns]
    if (kinds != kinds[0]).any():
        return None
    threshold = thresholds[0] if (thresholds == thresholds[0]).all() else thresholds.reshape(shape)
    return _Step(np.asarray(threshold + np.float32(0)), scale, int(kinds[0]) * (-1 if falling else 1), falling)
