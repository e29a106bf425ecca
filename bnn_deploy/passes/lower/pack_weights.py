"""PackWeights: binary weights of layers with real-valued inputs are stored as one bit each."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import DOMAIN, FLOAT_LAYERS
from bnn_deploy.passes.graph import add_initializer, constant, insert_node, is_binary_op, is_op
from bnn_deploy.passes.lower.layer import NotTwoValuedError, two_valued
from bnn_deploy.passes.outcome import PassResult, display_name
from bnn_deploy.passes.reasons import Reason, SmallFilters, WeightsReadElsewhere, ZeroFilter
from bnn_deploy.provenance import SOURCE

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


class PackWeights:
    """Conv | ConvTranspose | Gemm | MatMul (x, W)  ==>  the same of (x, (Transpose) UnpackWeights(bits of W, alpha)).

    BWN, section 3.1 of the XNOR-Net paper: the input is real-valued, so the layer stays a float one of the runtime's,
    but its weights are ±alpha per filter (equation 6). onnxruntime unpacks them once, when it makes the session.

    1. W is constant, at least MIN_BYTES large, and two-valued per filter as LowerBinaryConv wants it: where |w| varies
       by rounding (1e-3), the mean stands for it.
    2. All users of W are such layers; they share the unpacked tensor.
    3. The layer's output is a cut of the float graph, so that `verify` judges it alone.

    Declines: exact zeros, filters that are all zeros, filters of less than 8 weights, weights that something else
    reads, too. A layer whose weights are real-valued, or all one number, is not looked at, nor is a grouped
    ConvTranspose.

    Args:
        names: the tensors of the float graph.
    """

    def __init__(self, names: Set[str]) -> None:
        self.names = names

    def __call__(self, model: ir.Model) -> PassResult:
        """Pack every weight that qualifies."""
        result = PassResult()
        for node in list(model.graph):
            found = binary_filters(node)
            if found is None:
                continue
            if isinstance(found, Reason):
                result.decline(node, found)
                continue
            value = node.inputs[1]
            assert value is not None
            users = [usage.node for usage in value.uses()]
            stranger = next((user for user in users if not _is_layer_of(user, value)), None)
            if stranger is not None or value.is_graph_output():
                who = (
                    "the model's outputs hold"
                    if stranger is None
                    else f"{stranger.op_type} '{display_name(stranger)}' reads"
                )
                result.decline(node, WeightsReadElsewhere(who))
                continue
            _pack(model.graph, node, value, found)
            for user in users:
                name = user.outputs[0].name or ""
                if name in self.names:
                    user.metadata_props[SOURCE] = name
            result.modified += 1
        return result


def packed_layers(model: ir.Model) -> list[str]:
    """The names of the layers of a converted model that read binary weights and real-valued inputs."""
    return [
        display_name(node)
        for node in model.graph
        if is_op(node, *FLOAT_LAYERS)
        and any(is_binary_op(producer, "UnpackWeights") for producer in _weight_producers(node))
    ]


def _weight_producers(node: ir.Node) -> list[ir.Node]:
    """What makes the weight of a layer: a node, and, if that is a Transpose, what is before it."""
    producers: list[ir.Node] = []
    value = node.inputs[1]
    while value is not None and (producer := value.producer()) is not None:
        producers.append(producer)
        value = producer.inputs[0] if is_op(producer, "Transpose") else None
    return producers


def _is_layer_of(node: ir.Node, weight: ir.Value) -> bool:
    """Whether `node` is a layer that reads `weight` as its weights, and as nothing else."""
    return is_op(node, *FLOAT_LAYERS) and [i for i, value in enumerate(node.inputs) if value is weight] == [1]


def _pack(graph: ir.Graph, node: ir.Node, value: ir.Value, filters: BinaryFilters) -> None:
    name = node.outputs[0].name
    shape: list[Any] = list(filters.signs.shape)
    words = pack_bits(filters.signs.reshape(len(filters.signs), math.prod(shape[1:])))
    unpacked = insert_node(
        node,
        "UnpackWeights",
        [
            add_initializer(graph, f"{name}_weight_bits", words),
            add_initializer(graph, f"{name}_scale", filters.alpha),
        ],
        {"shape": shape[1:]},
        f"{name}_weight",
        dtype=ir.DataType.FLOAT,
        shape=shape,
        domain=DOMAIN,
        name=f"{display_name(node)}.weight",
    )
    if filters.perm != sorted(filters.perm):  # not in the function: onnxruntime 1.19 infers shapes without its perm
        unpacked = insert_node(
            node,
            "Transpose",
            [unpacked],
            {"perm": filters.perm},
            f"{name}_weight_transposed",
            dtype=ir.DataType.FLOAT,
            shape=value.shape,
        )
    value.replace_all_uses_with(unpacked)
