"""What the report says of the weights of a layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.graph import einsum_terms, is_op
from bnn_deploy.passes.lower.filter_values import filter_values
from bnn_deploy.passes.lower.layer import MAX_SPREAD
from bnn_deploy.passes.recognise.layer_weights import filters_of
from bnn_deploy.passes.stored import parameter
from bnn_deploy.source.weight_form import WeightForm


def layer_filters(node: ir.Node) -> NDArray[Any] | None:
    """A layer's constant weights as [O, ...]; None if they are not constant."""
    if is_op(node, "Einsum"):
        return _einsum_filters(node)
    weight = parameter(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if weight is None or weight.ndim < 2 else filters_of(node, weight)


def _einsum_filters(node: ir.Node) -> NDArray[Any] | None:
    """The weights of an Einsum of two operands, [O, products]; None if none of both, or none for sure, is constant."""
    equation = einsum_terms(node)
    arrays = [parameter(value) for value in node.inputs]
    index = next((i for i, array in enumerate(arrays) if array is not None), None)
    if equation is None or index is None or len(arrays) != 2:
        return None
    terms, out = equation
    weight, kept = arrays[index], [i for i, label in enumerate(terms[index]) if label in out]
    if weight is None or len(terms[index]) != weight.ndim or not weight.size or len(kept) == weight.ndim:
        return None
    outputs = [weight.shape[i] for i in kept]
    return np.moveaxis(weight, kept, range(len(kept))).reshape(math.prod(outputs), -1)


def describe_weights(
    filters: NDArray[Any] | None, form: WeightForm | None, scheme: str | None
) -> tuple[str, float | None, int, tuple[float, float] | None]:
    """Text, spread, zeros and scale of a layer's weights [O, ...]."""
    if filters is None:
        return "not constant", None, 0, None
    if scheme is not None:
        origin = f"latent, binarised by {scheme}"
    elif form is None or form.text == "W":
        origin = "constant"
    else:
        origin = f"{form.text}, folded"
    magnitudes = np.abs(filters.reshape(len(filters), -1))
    counts = np.count_nonzero(magnitudes, axis=1)
    zeros = magnitudes.size - int(counts.sum())
    high = magnitudes.max(axis=1).astype(np.float64)
    if not np.isfinite(high).all():
        return f"{origin}, with NaN or infinity", None, zeros, None
    low = magnitudes.min(axis=1) if zeros == 0 else np.where(magnitudes == 0, np.inf, magnitudes).min(axis=1)
    alive = high > 0
    spread = float(((high - low)[alive] / high[alive]).max(initial=0.0))
    parts = [origin]
    values = filter_values(filters) if spread > MAX_SPREAD else None
    if values is not None:
        parts.append(f"{max(map(len, values))} values per filter")
    elif spread > MAX_SPREAD:
        parts.append("real-valued")
    elif origin == "constant":
        parts.append("two-valued")
    if zeros and values is None:
        parts[-1] += f" but for {zeros} exact {'zeros' if zeros > 1 else 'zero'}"
    if spread > MAX_SPREAD:
        return ", ".join(parts), spread, zeros, None
    if spread:
        parts.append(f"spread {spread:.0e}")
    # As LowerBinaryConv takes it: one magnitude to the last bit, or the mean.
    means = magnitudes.sum(axis=1, dtype=np.float64) / np.maximum(counts, 1)
    alpha = np.where(high == low, high, means)
    return ", ".join(parts), spread, zeros, (float(np.float32(alpha.min())), float(np.float32(alpha.max())))
