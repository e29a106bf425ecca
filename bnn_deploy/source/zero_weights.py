"""Gives weights of exactly 0 among others of one magnitude that magnitude: torch.sign(0) is 0 in weights, too."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import FLOAT_LAYERS
from bnn_deploy.passes.graph import add_initializer, is_op
from bnn_deploy.passes.outcome import display_name
from bnn_deploy.passes.pipeline import canonicalize, fold
from bnn_deploy.passes.recognise.layer_weights import filters_of, has_few_levels, has_one_magnitude
from bnn_deploy.passes.stored import parameter

ZeroWeights = Literal["plus", "minus"]
"""What a weight of exactly 0 becomes: +alpha or -alpha of its filter."""

_RARE = 0.01
"""Largest share of zeros in the weights of a layer with real-valued inputs: more are meant, as in a fixed filter."""


def fill_zero_weights(source: ir.Model, sign: ZeroWeights) -> tuple[ir.Model, dict[str, int]]:
    """Replace the exact zeros among weights of ±alpha per filter.

    Layers that read a sign or few levels, and those with rarely a zero; a filter that is all zeros stays so.

    Args:
        source: a float model; it is not changed.
        sign: what a zero becomes.

    Returns:
        The model with folded constants and these weights; the names of the layers, with the number of their zeros.
    """
    model = source.clone()
    fold(model)
    canonical = model.clone()
    canonicalize(canonical)
    few = {display_name(node) for node in canonical.graph if is_op(node, *FLOAT_LAYERS) and has_few_levels(node)}
    found = {}
    for node in list(model.graph):
        weight = parameter(node.inputs[1]) if is_op(node, *FLOAT_LAYERS) else None
        if weight is None or weight.dtype != np.float32 or weight.ndim < 2:
            continue
        filters = filters_of(node, weight)
        filled = _filled(filters, 1 if sign == "plus" else -1)
        count = int((filled != filters).sum())
        if count and has_one_magnitude(filters) and (display_name(node) in few or count < _RARE * filters.size):
            own = np.ascontiguousarray(filters_of(node, filled))
            node.replace_input_with(1, add_initializer(model.graph, f"{node.outputs[0].name}_filled_weight", own))
            found[display_name(node)] = count
    return model, found


def _filled(filters: NDArray[np.float32], sign: int) -> NDArray[np.float32]:
    """Filters [O, ...] with sign * alpha, the mean magnitude of the filter's other weights, in place of 0."""
    magnitude = np.abs(filters.reshape(len(filters), -1).astype(np.float64))
    counts = np.count_nonzero(magnitude, axis=1)
    high = magnitude.max(axis=1, initial=0)
    equal = ((magnitude == high[:, np.newaxis]) | (magnitude == 0)).all(axis=1)
    alpha = np.where(equal, high, magnitude.sum(axis=1) / np.maximum(counts, 1))
    shape = (-1, *[1] * (filters.ndim - 1))
    filled: NDArray[np.float32] = np.where(filters == 0, np.float32(sign * alpha).reshape(shape), filters)
    return filled
