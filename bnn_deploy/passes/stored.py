"""Parameters that a float model stores in few bits, and a DequantizeLinear makes floats of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.elementwise import evaluate
from bnn_deploy.passes.graph import constant, is_op

STORED = "bnn_deploy.stored"
"""The key, in the `meta` of an initializer, of the `Stored` that it was made of."""


@dataclass(frozen=True)
class Stored:
    """The constant inputs of a DequantizeLinear in their order, each with its name, and its attributes.

    The names need not differ: a number that is equal to its zero point may be the same initializer.
    """

    inputs: tuple[tuple[str, NDArray[Any]], ...]
    attributes: dict[str, Any]


def stored_inputs(node: ir.Node | None) -> list[NDArray[Any]] | None:
    """The inputs of a DequantizeLinear to float32 if all are constant, and no scale is of a block; else None."""
    if node is None or not is_op(node, "DequantizeLinear") or "block_size" in node.attributes:
        return None
    if node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
        return None
    values = [value for value in node.inputs if value is not None]
    arrays = [array for value in values if (array := constant(value)) is not None]
    if len(arrays) < len(values):
        return None
    data, *scales = arrays
    axis = _axis(node)
    fits = all(scale.size == 1 or (scale.ndim == 1 and scale.size == data.shape[axis]) for scale in scales)
    return arrays if fits else None


def parameter(value: ir.Value | None) -> NDArray[Any] | None:
    """A constant, or the float32 values of one that is stored in few bits; None for anything else."""
    node = None if value is None else value.producer()
    arrays = stored_inputs(node)
    if node is None or arrays is None:
        return constant(value)
    data, *scales = arrays
    shape = [1] * data.ndim
    if data.ndim:
        shape[_axis(node)] = -1
    aligned = [scale.reshape(shape if scale.size > 1 else ()) for scale in scales]
    return evaluate(node, [data, *aligned]).astype(np.float32)


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 1
