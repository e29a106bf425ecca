"""Constant weights of a float layer, read as ±alpha per filter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.operators.contract import FLOAT_LAYERS
from bnn_deploy.passes.graph import constant, is_op
from bnn_deploy.passes.lower.layer import NotTwoValuedError, two_valued
from bnn_deploy.passes.reasons import Reason, SmallFilters, ZeroFilter

MIN_BYTES = 4096
"""Smaller weights stay float32: the file would gain no more than the node and its function take, about 2 kB."""


@dataclass(frozen=True)
class BinaryFilters:
    """The weights of a layer as ±alpha per filter.

    Attributes:
        signs: [O, ...], True for +alpha.
        alpha: [O] float32.
        perm: the transposition between [O, ...] and the form that the layer reads; it is its own inverse.
    """

    signs: NDArray[np.bool_]
    alpha: NDArray[np.float32]
    perm: list[int]


def binary_filters(node: ir.Node) -> BinaryFilters | Reason | None:
    """Read the constant weight of a layer as ±alpha per filter.

    Returns:
        It; a reason if it is two-valued but cannot be stored so; None if the node is no layer, or its weight
        real-valued, or no constant of at least MIN_BYTES.
    """
    weight = constant(node.inputs[1]) if is_op(node, *FLOAT_LAYERS) and len(node.inputs) > 1 else None
    if weight is None or weight.dtype != np.float32 or weight.ndim < 2 or weight.nbytes < MIN_BYTES:
        return None
    perm = list(range(weight.ndim))
    if is_op(node, "ConvTranspose"):  # [C, O/group, kernel...]
        group = node.attributes.get("group")
        if group is not None and group.as_int() != 1:
            return None
        perm[:2] = [1, 0]
    elif is_op(node, "MatMul") or (is_op(node, "Gemm") and not _transposed(node)):  # [K, N]
        if weight.ndim != 2:
            return None
        perm = [1, 0]
    filters = weight.transpose(perm)
    if (filters == filters.flat[0]).all():
        return None  # a box filter, or a matrix of ones
    try:
        signs, alpha = two_valued(filters)
    except NotTwoValuedError as error:
        return error.reason if _has_zeros_only(filters) else None
    except InputError:
        return ZeroFilter()
    if signs[0].size < 8:
        return SmallFilters(signs[0].size)
    return BinaryFilters(signs, alpha, perm)


def _transposed(node: ir.Node) -> bool:
    return "transB" in node.attributes and node.attributes["transB"].as_int() != 0


def _has_zeros_only(filters: NDArray[np.float32]) -> bool:
    """Whether exact zeros are all that keeps the first filter that has one from being ±alpha."""
    magnitude = np.abs(filters.reshape(len(filters), -1))
    high = magnitude.max(axis=1, keepdims=True)
    return bool(((magnitude == 0) | (magnitude >= high * (1 - 1e-3))).all())
