"""SkipZeros: a linear layer behind a ReLU, whose input a binary layer makes, leaves the inputs that are 0 out."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import (
    add_initializer,
    constant,
    insert_node,
    is_op,
    maker,
    replace_value,
    sole_consumer,
)
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import SOURCE, source_metadata


class SkipZeros(Pass):
    """Gemm(Relu(Flatten(x)), W, b)  ==>  ReluLinear(x, W, b), W stored as [inputs, outputs].

    About half of what a ReLU gives is 0, and products with 0 add nothing: their weights are not read. A last layer of
    one image takes as long as memory gives its weights. The three nodes become one.

    1. x comes from an operator of the domain; the Flatten may be missing.
    2. The Relu feeds only the Gemm, and the Flatten only the Relu; neither is a tensor at which `verify` cuts.

    Conditions: constant finite float32 W, constant b or none, alpha and beta 1, and x not transposed.

    Declines: nothing; such a Gemm is right as it is.

    Args:
        names: the tensors of the float graph.
    """

    def __init__(self, names: Set[str]) -> None:
        self.names = names
        self.rows: dict[ir.Value, ir.Value] = {}

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Gemm that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            relu = node.inputs[0].producer() if is_op(node, "Gemm") and node.inputs[0] is not None else None
            if relu is None or not is_op(relu, "Relu") or not _is_inner(relu, node):
                continue
            data, weight = relu.inputs[0], _weight(node)
            flatten = None if data is None else data.producer()
            if flatten is not None and _is_flatten(flatten) and _is_inner(flatten, relu):
                data = flatten.inputs[0]
            maker_of_data = None if data is None else data.producer()
            if weight is None or maker_of_data is None or maker_of_data.domain != DOMAIN:
                continue
            bias = _bias(node, weight.shape[1])
            if bias is not None:
                result.rewrote(self._insert(node, data, weight, bias), node, relu)
        return result

    def _insert(
        self, gemm: ir.Node, data: ir.Value | None, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> ir.Node:
        """Put a ReluLinear in the place of a Gemm."""
        assert gemm.graph is not None
        old = gemm.outputs[0]
        name = old.name or ""
        stored = gemm.inputs[1]
        assert stored is not None
        if _is_transposed(gemm):  # stored once for all that share it
            if stored not in self.rows:
                self.rows[stored] = add_initializer(gemm.graph, f"{name}_rows", weight)
            stored = self.rows[stored]
        given = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        if given is None or given.shape is None or len(given.shape) != 1 or given.shape[0] != len(bias):
            given = add_initializer(gemm.graph, f"{name}_bias", bias)
        new = insert_node(
            gemm,
            "ReluLinear",
            [data, stored, given],
            {},
            f"{name}_new",
            dtype=ir.DataType.FLOAT,
            shape=old.shape,
            domain=DOMAIN,
            name=gemm.name,
            metadata=gemm.metadata_props,
        )
        node = maker(new)
        if name in self.names and len(list(old.uses())) > 1:
            node.metadata_props.update(source_metadata(old))  # a cut for verify, as it was
        new.metadata_props.update(old.metadata_props)
        replace_value(old, new)
        new.name = name
        return node


def _is_inner(node: ir.Node, reader: ir.Node) -> bool:
    """Whether only `reader` reads a node, at whose output `verify` does not cut."""
    return sole_consumer(node.outputs[0]) is reader and SOURCE not in node.metadata_props


def _is_flatten(node: ir.Node) -> bool:
    """Whether a node is a Flatten to [N, features]."""
    axis = node.attributes.get("axis")
    return is_op(node, "Flatten") and (axis is None or axis.as_int() == 1)


def _weight(gemm: ir.Node) -> NDArray[np.float32] | None:
    """The weights of a plain Gemm, [inputs, outputs]; None if they are not constant, finite and float32."""
    given = gemm.attributes
    if any(name in given and given[name].as_float() != 1.0 for name in ("alpha", "beta")):
        return None
    if "transA" in given and given["transA"].as_int() != 0:
        return None
    weight = constant(gemm.inputs[1])
    if weight is None or weight.dtype != np.float32 or weight.size == 0 or not np.isfinite(weight).all():
        return None
    return weight.T if _is_transposed(gemm) else weight


def _is_transposed(gemm: ir.Node) -> bool:
    """Whether the weights of a Gemm are stored as [outputs, inputs]."""
    return "transB" in gemm.attributes and gemm.attributes["transB"].as_int() != 0


def _bias(gemm: ir.Node, outputs: int) -> NDArray[np.float32] | None:
    """The bias of a Gemm, [outputs]; None if it is not constant, or not the same for all rows."""
    if len(gemm.inputs) < 3 or gemm.inputs[2] is None:
        return np.zeros(outputs, np.float32)
    bias = constant(gemm.inputs[2])
    if (
        bias is None
        or bias.dtype != np.float32
        or bias.size not in (1, outputs)
        or (bias.ndim == 2 and bias.shape[0] != 1)
    ):
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), outputs))
