"""ConvolveTokens: linear layers of levels on [N, T, C] become convolutions with a 1x1 kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import MAX_SPATIAL
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, constant, insert_node, is_op, maker, replace_value, static_shape
from bnn_deploy.passes.lower.layer import LevelsInput, NotTwoValuedError, levels_input, two_valued
from bnn_deploy.passes.outcome import Outcome, Pass, display_name
from bnn_deploy.provenance import Transpose, node_place, note_place


class ConvolveTokens(Pass):
    """MatMul(q(x), W)  ==>  Transpose -> Conv, 1x1 -> Transpose, for x [N, ..., C] of three to five dimensions.

    1. q has 2 to 16 values (see `few_levels.quantizer`); W [C, O] has two values, ±alpha, per output.
    2. LowerLevels, behind it, makes a binary layer of the Conv.

    LowerLinear has the layers of ±1. It declines nothing: what it does not take, LowerLevels names.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every layer that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            if is_op(node, "MatMul") and _reads_levels_of_tokens(node):
                result.rewrote(_convolution(node), node)
        return result


def _reads_levels_of_tokens(node: ir.Node) -> bool:
    """Whether a MatMul is of condition 1."""
    data, weight = node.inputs[0], constant(node.inputs[1])
    shape = None if data is None else static_shape(data)
    if shape is None or weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return False
    if not 3 <= len(shape) <= 2 + MAX_SPATIAL or shape[-1] != len(weight):
        return False
    source = levels_input(node)
    if not isinstance(source, LevelsInput) or source.pools or source.flattened is not None:
        return False
    try:
        two_valued(weight.T)
    except NotTwoValuedError:
        return False
    return True


def _convolution(node: ir.Node) -> ir.Node:
    """Insert the convolution of a MatMul and its Transposes; return the Conv."""
    data, output, weight, graph = node.inputs[0], node.outputs[0], constant(node.inputs[1]), node.graph
    assert data is not None and data.shape is not None and weight is not None and isinstance(graph, ir.Graph)
    rank, name = len(data.shape), output.name or ""
    batch, *spatial, channels = data.shape
    second, last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    first = insert_node(
        node,
        "Transpose",
        [data],
        {"perm": second},
        f"{name}_tokens",
        dtype=ir.DataType.FLOAT,
        shape=[batch, channels, *spatial],
    )
    note_place(first, node_place(data.producer(), data).then(Transpose(second)))
    filters = np.ascontiguousarray(weight.T).reshape(weight.shape[1], weight.shape[0], *[1] * (rank - 2))
    convolved = insert_node(
        node,
        "Conv",
        [first, add_initializer(graph, f"{name}_filters", filters)],
        {"kernel_shape": [1] * (rank - 2)},
        f"{name}_map",
        dtype=ir.DataType.FLOAT,
        shape=[batch, weight.shape[1], *spatial],
        name=display_name(node),
        metadata=node_place(node, output).then(Transpose(second)).as_source(),
    )
    result = insert_node(
        node, "Transpose", [convolved], {"perm": last}, f"{name}_rows", dtype=ir.DataType.FLOAT, shape=output.shape
    )
    result.metadata_props.update(output.metadata_props)
    replace_value(output, result)
    result.name = name
    return maker(convolved)
