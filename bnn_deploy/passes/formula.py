"""Tensors of the float graph as formulas: how a report names the form that a sign or a weight has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.elementwise import straight_through, uniform
from bnn_deploy.passes.graph import is_op

LIMIT = 70
"""Characters above which a formula is not readable any more: only its outermost operator is named then."""

_INFIX = {
    "Or": ("or", 0),
    "And": ("and", 1),
    "Equal": ("==", 2),
    "Greater": (">", 2),
    "GreaterOrEqual": (">=", 2),
    "Less": ("<", 2),
    "LessOrEqual": ("<=", 2),
    "Add": ("+", 3),
    "Sub": ("-", 3),
    "Mul": ("*", 4),
    "Div": ("/", 4),
}
"""How an operator is written between its two inputs, and how tightly it binds them."""

_ATOM = 5

_FIRST_INPUT = (
    "Abs",
    "Cast",
    "Expand",
    "Pad",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Sigmoid",
    "Sign",
    "Tanh",
)
"""Operators that are written as a function of their first input: the others only say which shape the result has."""

_TRANSPARENT = ("Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that only move or repeat values: a formula leaves them out."""

DEPTH = 40
"""Nodes that a formula follows one behind the other; nobody reads so many."""


@dataclass(frozen=True)
class _Formula:
    """A formula: its text, and how tightly its outermost operator binds, as in _INFIX."""

    text: str
    binds: int = _ATOM

    def inside(self, binds: int) -> str:
        """The text as an operand of something that binds so tightly."""
        return self.text if self.binds >= binds else f"({self.text})"


def formula(value: ir.Value, names: Mapping[ir.Value, str], constants: str) -> str:
    """Write `value` as a formula.

    Args:
        value: of a graph; what it depends on is followed up to `names`.
        names: what to call some values, such as x for the tensor whose sign is taken.
        constants: what to call constants that are not one number.

    Returns:
        For example `Where(x >= 0, 1, -1)`, or `straight-through trick over Sign(x)` for `(Sign(x) - S) + S`.
    """
    return _write(value, names, constants, {}, 0).text


def _write(
    value: ir.Value, names: Mapping[ir.Value, str], constants: str, known: dict[ir.Value, _Formula], depth: int
) -> _Formula:
    if value not in known:
        known[value] = _write_new(value, names, constants, known, depth)
    return known[value]


def _write_new(
    value: ir.Value, names: Mapping[ir.Value, str], constants: str, known: dict[ir.Value, _Formula], depth: int
) -> _Formula:
    if value in names:
        return _Formula(names[value])
    array = uniform(value)
    if array is not None:
        same = array.size > 0 and bool((array == array.flat[0]).all())
        return _Formula(f"{array.flat[0]:g}" if same and array.dtype != np.bool_ else constants)
    node = value.producer()
    if node is None or depth > DEPTH:
        return _Formula(f"'{value.name}'")
    if is_op(node, *_TRANSPARENT) and node.inputs[0] is not None:
        return _write(node.inputs[0], names, constants, known, depth + 1)
    inputs = [_write(v, names, constants, known, depth + 1) for v in node.inputs if v is not None]
    new = _straight_through(node, names, constants, known, depth) or _operator(node, inputs)
    return new if len(new.text) <= LIMIT else _Formula(f"a formula of {node.op_type} and more")


def _operator(node: ir.Node, inputs: list[_Formula]) -> _Formula:
    if (
        is_op(node, "Where")
        and (node.inputs[1] is not None)
        and (node.inputs[1].name or "").startswith("bipolar_quant")
    ):
        # What reading an ONNX file makes of QONNX's operator: Where(x < 0, -1, 1).
        return _Formula(f"BipolarQuant({inputs[0].text.removesuffix(' < 0')})")
    if is_op(node, *_INFIX) and len(inputs) == 2:
        symbol, binds = _INFIX[node.op_type]
        return _Formula(f"{inputs[0].inside(binds)} {symbol} {inputs[1].inside(binds + 1)}", binds)
    if is_op(node, "Neg"):
        return _Formula(f"-{inputs[0].inside(_ATOM)}")
    if is_op(node, "ReduceMean") and inputs[0].text.startswith("Abs("):
        return _Formula(f"mean|{inputs[0].text[4:-1]}|")
    if is_op(node, *_FIRST_INPUT):
        inputs = inputs[:1]
    return _Formula(f"{node.op_type}({', '.join(part.text for part in inputs)})")


def _straight_through(
    node: ir.Node, names: Mapping[ir.Value, str], constants: str, known: dict[ir.Value, _Formula], depth: int
) -> _Formula | None:
    """The formula of a straight-through estimator, whose S is written twice in the graph or shared."""

    def text(value: ir.Value) -> str:
        return _write(value, names, constants, known, depth + 2).text

    a = next(straight_through(node, lambda s, shift: text(s) == text(shift)), None)
    return None if a is None else _Formula(f"straight-through trick over {text(a)}")
