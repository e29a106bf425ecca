"""PackWeights: binary weights of layers with real-valued inputs are stored as one bit each."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

import onnx_ir as ir

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import DOMAIN, FLOAT_LAYERS
from bnn_deploy.passes.conditions import batch_norms_folded
from bnn_deploy.passes.graph import add_initializer, insert_node, is_binary_op, is_op
from bnn_deploy.passes.lower.binary_filters import BinaryFilters, binary_filters
from bnn_deploy.passes.outcome import Outcome, Pass, display_name
from bnn_deploy.passes.reasons import Reason, WeightsReadElsewhere
from bnn_deploy.provenance import SOURCE


class PackWeights(Pass):
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

    needs = (batch_norms_folded,)

    def __init__(self, names: Set[str]) -> None:
        self.names = names

    def call(self, model: ir.Model) -> Outcome:
        """Pack every weight that qualifies."""
        result = Outcome(model)
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
            result.rewrote(node)
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
