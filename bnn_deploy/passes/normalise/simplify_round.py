"""SimplifyRound: a rounding that can only give two numbers is a comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.elementwise import Array, evaluate, is_elementwise
from bnn_deploy.passes.graph import add_initializer, constant, insert_node, is_op, maker, remove_if_dead
from bnn_deploy.passes.monotone import LARGEST, Floats, bisect_threshold
from bnn_deploy.passes.outcome import Outcome, Pass

Function = Callable[[Floats], Floats]

_MONOTONE = ("Add", "Clip", "Div", "HardSigmoid", "Max", "Min", "Mul", "Neg", "Sub")


class SimplifyRound(Pass):
    """Round(g(x)), which is k or k + 1 for every x  ==>  Where(x >= t, k + 1, k).

    1. BinaryNet's sign in Theano and TensorFlow is 2 * round(hard_sigmoid(x)) - 1, with hard_sigmoid a Clip of
       a * x + b. CanonicalizeSign makes a Sign of what this pass leaves.
    2. g is a chain of HardSigmoid, Clip, Neg, and Add, Sub, Mul, Div, Max and Min with one number: it is monotone.
    3. t is found by bisection over the float32 numbers, on g as it is written, rounding included; Round is half to
       even, so round(0.5) is 0, and the sign at 0 is -1.

    Conditions: only arithmetic with a constant reads the result, which may make ±1 of it.

    Declines: nothing; a rounding to more numbers, of multi-bit activations, stays.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every such Round."""
        result = Outcome(model)
        for node in list(model.graph):
            chain = _chain(node) if is_op(node, "Round") and _is_scaled(node.outputs[0]) else None
            if chain is None:
                continue
            x, function, nodes = chain
            ends = np.rint([function(np.full(1, end, np.float32))[0] for end in (-LARGEST, LARGEST)])
            if not np.isfinite(ends).all() or abs(ends[1] - ends[0]) != 1:
                continue
            low, high = sorted(ends)
            threshold, falling = bisect_threshold(lambda v, f=function, k=high: np.rint(f(v)) >= k, 1)  # type: ignore[misc]
            above, below = (low, high) if falling[0] else (high, low)
            new = self._rewrite(model.graph, node, x, [float(threshold[0]), float(above), float(below)])
            result.rewrote(new, *nodes, node)
        return result

    def _rewrite(self, graph: ir.Graph, node: ir.Node, x: ir.Value, numbers: list[float]) -> ir.Node:
        old = node.outputs[0]
        name = old.name or ""
        threshold, above, below = (
            add_initializer(graph, f"{name}_{kind}", np.array(number, np.float32))
            for kind, number in zip(("threshold", "above", "below"), numbers, strict=True)
        )
        reached = insert_node(
            node, "GreaterOrEqual", [x, threshold], {}, f"{name}_reached", dtype=ir.DataType.BOOL, shape=old.shape
        )
        new = insert_node(
            node, "Where", [reached, above, below], {}, f"{name}_new", dtype=ir.DataType.FLOAT, shape=old.shape
        )
        ir.convenience.replace_all_uses_with(old, new)
        remove_if_dead(node)
        new.name = name
        return maker(new)


def _is_scaled(value: ir.Value) -> bool:
    """Whether only arithmetic with a constant reads `value`."""
    users = list(value.consumers())
    if value.is_graph_output() or value.dtype != ir.DataType.FLOAT or not users:
        return False
    return all(
        is_op(user, "Add", "Div", "Mul", "Sub") and any(constant(operand) is not None for operand in user.inputs)
        for user in users
    )


def _chain(node: ir.Node) -> tuple[ir.Value, Function, list[ir.Node]] | None:
    """The tensor at the top of the functions above a Round, these as one, and their nodes; None if there are none."""
    steps: list[Function] = []
    nodes: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        found = _step(producer)
        if found is None:
            break
        value, step = found
        steps.insert(0, step)
        nodes.append(producer)

    def function(x: Floats) -> Floats:
        with np.errstate(over="ignore"):
            for step in steps:
                x = step(x)
        return x

    return None if value is None or not steps else (value, function, nodes)


def _step(node: ir.Node) -> tuple[ir.Value, Function] | None:
    """The data and the function of a monotone operator whose other operands are single numbers."""
    if not is_op(node, *_MONOTONE) or not is_elementwise(node):
        return None
    numbers = [constant(value) for value in node.inputs]
    data = [value for value, number in zip(node.inputs, numbers, strict=True) if value is not None and number is None]
    if len(data) != 1 or any(number is not None and number.size != 1 for number in numbers):
        return None
    index = node.inputs.index(data[0])
    operands: list[Array | None] = [None if n is None else np.asarray(n.reshape(()), np.float32) for n in numbers]
    if (index and is_op(node, "Clip", "Div")) or (is_op(node, "Div") and 0 in operands):
        return None
    return data[0], lambda x: evaluate(node, [*operands[:index], x, *operands[index + 1 :]])
