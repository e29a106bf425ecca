"""Elementwise operators of float graphs, evaluated in numpy: the one place that knows what each computes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.graph import constant, is_op, static_shape
from bnn_deploy.provenance import zero_value

Array = NDArray[Any]

COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}

ELEMENTWISE: dict[str, Callable[..., Array]] = {
    **COMPARISONS,
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Ceil": np.ceil,
    "Div": lambda x, y: _divide(x, y),
    "Floor": np.floor,
    "Identity": lambda x: x,
    "Max": lambda *xs: functools.reduce(np.maximum, xs),
    "Min": lambda *xs: functools.reduce(np.minimum, xs),
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": lambda x, y: np.power(x, y.astype(x.dtype)),
    "Relu": lambda x: np.maximum(x, np.zeros((), x.dtype)),
    "Round": np.rint,
    "Sub": np.subtract,
    "Where": np.where,
    "Xor": np.logical_xor,
}
"""Operator -> the numpy function of its inputs. It keeps float32, and broadcasts as ONNX does."""


def _divide(x: Array, y: Array) -> Array:
    if x.dtype.kind != "f":
        raise TypeError("Div of integers rounds to 0, and numpy's does not")
    quotient: Array = np.divide(x, y)
    return quotient


def _cast(node: ir.Node, x: Array) -> Array:
    dtype: np.dtype[Any] = ir.DataType(node.attributes["to"].as_int()).numpy()
    cast: Array = x.astype(dtype)
    return cast


def _clip(node: ir.Node, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _hard_sigmoid(node: ir.Node, x: Array) -> Array:
    alpha, beta = (
        np.float32(node.attributes[key].as_float() if key in node.attributes else default)
        for key, default in (("alpha", 0.2), ("beta", 0.5))
    )
    clipped: Array = np.clip(x * alpha + beta, np.float32(0), np.float32(1))
    return clipped


def _sign(node: ir.Node, x: Array) -> Array:
    return np.where(x == 0, np.float32(zero), np.sign(x)) if (zero := zero_value(node)) else np.sign(x)


def _table(node: ir.Node, table: Array, indices: Array) -> Array:
    size = table.size
    return np.take(table, np.where(indices < 0, indices + size, indices).astype(np.int64), mode="clip")


def _quantize_linear(node: ir.Node, x: Array, scale: Array, zero: Array | None = None) -> Array:
    zero = np.zeros((), np.uint8) if zero is None else zero
    limits = np.iinfo(zero.dtype)
    integers: Array = np.clip(np.rint(x / scale) + zero, limits.min, limits.max)
    return integers.astype(zero.dtype)


def _dequantize_linear(node: ir.Node, x: Array, scale: Array, zero: Array | None = None) -> Array:
    floats = x.astype(np.float32)  # exact but for int32, which has no zero point: float8 holds no integers
    scaled: Array = (floats if zero is None else floats - zero.astype(np.float32)) * scale
    return scaled


WITH_ATTRIBUTES: dict[str, Callable[..., Array]] = {
    "Cast": _cast,
    "Clip": _clip,
    "DequantizeLinear": _dequantize_linear,
    "Gather": _table,
    "HardSigmoid": _hard_sigmoid,
    "QuantizeLinear": _quantize_linear,
    "Sign": _sign,
}
"""Operator -> the function of its node and its inputs, where an attribute or metadata matters; else as ELEMENTWISE."""

APPROXIMATE: dict[str, Callable[[Array], Array]] = {
    "Sigmoid": lambda x: np.float32(1) / (np.float32(1) + np.exp(-x)),
    "Tanh": np.tanh,
}
"""Operator -> its numpy function, which rounds in its own way: what rises still rises, but to other last bits."""

_CASTS = (
    *(ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16),
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
)
"""The types that a Cast may have; to them numpy rounds as ONNX does."""

_WHOLE = (ir.DataType.BOOL, ir.DataType.UINT8)
"""The types of which a Cast to unsigned integers is defined for all values."""


def is_elementwise(node: ir.Node) -> bool:
    """Whether `evaluate` knows the operator, in the form that it has here."""
    if is_op(node, "Clip"):
        return not node.attributes  # the bounds of Clip before opset 11
    if is_op(node, "Cast"):
        to, data = ir.DataType(node.attributes["to"].as_int()), node.inputs[0]
        return to in _CASTS or (to == ir.DataType.UINT8 and data is not None and data.dtype in _WHOLE)
    if is_op(node, "QuantizeLinear"):  # to integers, and not to float8
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        return zero is None or zero.dtype.kind in "iu"
    if is_op(node, "Gather"):  # from a table
        table = constant(node.inputs[0])
        return table is not None and table.ndim == 1 and constant(node.inputs[1]) is None
    if is_op(node, "Pow"):  # numpy's are others' to the last bit for -1 alone
        base = uniform(node.inputs[0])
        return base is not None and bool((base == -1).all())
    return is_op(node, *ELEMENTWISE, *WITH_ATTRIBUTES)


def evaluate(node: ir.Node, operands: Sequence[Array | None]) -> Array:
    """Run one elementwise operator in numpy, with its arithmetic: float32 stays float32.

    Args:
        node: `is_elementwise`, or one of APPROXIMATE.
        operands: its inputs, in shapes that broadcast; None for one that is left out. A scale or zero point per channel
            of QuantizeLinear and DequantizeLinear comes in such a shape, too.

    Raises:
        TypeError, ValueError: the shapes or types do not fit each other, or it is a Div of integers.
    """
    if node.op_type in APPROXIMATE:
        with np.errstate(over="ignore"):
            return APPROXIMATE[node.op_type](*operands)  # type: ignore[arg-type]
    if node.op_type in WITH_ATTRIBUTES:
        return WITH_ATTRIBUTES[node.op_type](node, *operands)
    return ELEMENTWISE[node.op_type](*operands)


def straight_through(node: ir.Node, same: Callable[[ir.Value, ir.Value], bool] = operator.is_) -> Iterator[ir.Value]:
    """The a of (a - S) + S, S + (a - S) and (a + S) - S: a straight-through estimator (STE) leaves such arithmetic.

    Args:
        node: the outer Add or Sub.
        same: tells whether two tensors are the same S.

    Yields:
        Each a, the likeliest first; nothing if `node` ends none of the three, or S is constant.
    """
    pairs = {"Add": ((0, 1), (1, 0)), "Sub": ((0, 1),)}.get(node.op_type, ()) if node.domain == "" else ()
    for inner_index, shift_index in pairs:
        inner_value, shift = node.inputs[inner_index], node.inputs[shift_index]
        inner = None if inner_value is None else inner_value.producer()
        if inner is None or shift is None or uniform(shift) is not None:
            continue
        if not is_op(inner, "Sub" if node.op_type == "Add" else "Add"):
            continue
        first, second = inner.inputs[:2]
        if first is None or second is None:
            continue
        if same(second, shift):
            yield first
        if node.op_type == "Sub" and same(first, shift):
            yield second


def uniform(value: ir.Value | None) -> Array | None:
    """A constant, or the one that Expand or ConstantOfShape repeats at run time, unrepeated."""
    array = constant(value)
    producer = None if value is None else value.producer()
    if array is not None or producer is None:
        return array
    if is_op(producer, "Expand"):
        return constant(producer.inputs[0])
    if is_op(producer, "ConstantOfShape"):
        attribute = producer.attributes.get("value")
        return np.zeros((), np.float32) if attribute is None else attribute.as_tensor().numpy().reshape(())
    return None


def same_shape(value: ir.Value, leaf: ir.Value) -> bool:
    """Whether `value`, a function of `leaf`, has as many elements, as far as the shapes are known."""
    first, second = static_shape(value), static_shape(leaf)
    if first is None or second is None:
        return False
    return len(first) == len(second) and all(
        a == b or a is None or b is None for a, b in zip(first, second, strict=True)
    )
