"""By how much two implementations of a sum of float products may differ: by rounding, and by nothing else.

Kernels and function bodies add these products in orders of their own (see `operators.contract.Operator.sums`). Bits
that are made of such sums may differ where the sum is so near to its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import OPERATORS, operator_of, sum_rounding
from bnn_deploy.proof.margins import absolute_error
from bnn_deploy.proof.pieces import add_body, single_node

if TYPE_CHECKING:
    from onnx import ModelProto

    from bnn_deploy.proof.backends import Arrays, Runner


@dataclass(frozen=True)
class SumBound:
    """The sums of a node, and the largest difference that rounding them in another order makes.

    Attributes:
        sums: [N, O, spatial...] float32, by the function body.
        bound: float64, shaped as `sums`.
        threshold: of a node that makes bits of them, [O] float32; None for one that gives them as floats.
    """

    sums: NDArray[np.float32]
    bound: NDArray[np.float64]
    threshold: NDArray[np.float32] | None

    def differing(self, got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
        """Mask of the floats, or words of bits, that differ by more than rounding; both are of the first samples."""
        bound = self.bound[: len(expected)]
        if self.threshold is None:
            same = (got == expected) | (np.isnan(got) & np.isnan(expected))
            beyond: NDArray[np.bool_] = ~same & ~(absolute_error(got, expected) <= bound)
            return beyond
        sums = self.sums[: len(expected)]
        near = absolute_error(sums, self.threshold.reshape(-1, *[1] * (sums.ndim - 2))) <= bound
        words: NDArray[np.bool_] = ((got ^ expected) & ~pack_bits(np.moveaxis(near, 1, -1))) != 0
        return words


def sums_node(node: NodeProto, output: str) -> NodeProto:
    """The node that gives, as floats of that name, the sums that a node makes."""
    row = operator_of(node)
    assert row is not None and row.sums is not None
    made = NodeProto()
    made.CopyFrom(node)
    made.op_type, made.name = row.sums, output
    made.input[:] = node.input[: len(OPERATORS[row.sums].inputs)]
    made.output[:] = [output]
    del made.metadata_props[:]
    return made


def sum_bound(
    proto: ModelProto, node: NodeProto, inputs: Arrays, make: Callable[[ModelProto], Runner]
) -> SumBound | None:
    """The sums of a node, if two implementations may round them differently; None for an exact operator.

    Args:
        proto: the model, with the constants W, bias and levels.
        node: of the model.
        inputs: the node's data inputs.
        make: gives the function that runs a model by its function bodies.
    """
    row = operator_of(node)
    if row is None or row.sums is None:
        return None
    constants = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name in node.input}
    sums = sums_node(node, f"{node.output[0]}/sums")
    alone = single_node(proto, sums, 0, inputs)
    add_body(alone, row.sums)
    (values,) = make(alone)(inputs)
    for tensor in alone.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), tensor.name))
    (magnitudes,) = make(alone)({name: np.abs(array) for name, array in inputs.items()})
    weights, bias = (constants[name].dims for name in node.input[1:3])
    terms = math.prod(weights) // bias[0]
    bound = sum_rounding(terms) * magnitudes.astype(np.float64)
    threshold = None if row.threshold is None else numpy_helper.to_array(constants[node.input[row.threshold.input]])
    # Where a magnitude is infinite, no bound says anything: then nothing is excused.
    return SumBound(values, np.where(np.isfinite(bound), bound, 0), threshold)
