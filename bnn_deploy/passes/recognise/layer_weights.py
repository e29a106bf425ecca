"""The constant weights of float layers, by filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.graph import group_of, is_op, some_filters, swap_filters
from bnn_deploy.passes.lower.layer import MAX_SPREAD, LevelsInput, levels_input, sign_input


def has_few_levels(node: ir.Node) -> bool:
    """Whether a layer's input is a sign, or has few levels."""
    return sign_input(node) is not None or isinstance(levels_input(node), LevelsInput)


def filters_of(node: ir.Node, weight: NDArray[Any]) -> NDArray[Any]:
    """The weight as [O, ...]; of such a one, the weight as `node` takes it."""
    if is_op(node, "ConvTranspose"):
        return swap_filters(weight, group_of(node))
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
    return np.swapaxes(weight, 0, -1) if is_op(node, "Gemm", "MatMul") and not transposed else weight


def has_one_magnitude(filters: NDArray[np.float32]) -> bool:
    """Whether the weights of each filter that are not 0 are ±alpha, up to rounding."""
    return all(map(_have_one_magnitude, some_filters(filters)))


def _have_one_magnitude(filters: NDArray[np.float64]) -> bool:
    magnitude = np.abs(filters)
    high = magnitude.max(axis=1)
    low = np.where(magnitude == 0, np.inf, magnitude).min(axis=1)
    return bool((high - low <= MAX_SPREAD * high).all())
