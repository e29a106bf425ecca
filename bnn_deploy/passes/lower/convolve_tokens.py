"""ConvolveTokens: linear layers of levels on [N, T, C] become convolutions with a 1x1 kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import MAX_SPATIAL
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, insert_node, is_op, static_shape
from bnn_deploy.passes.lower.each_layer import EachLayer
from bnn_deploy.passes.lower.layer import FloatLayer, LevelsInput, is_on_rows, levels_input
from bnn_deploy.passes.lower.level_form import level_form
from bnn_deploy.passes.lower.tokens import channels_second, replace_by_convolution
from bnn_deploy.passes.reasons import Channels, Reason, SpatialDimensions
from bnn_deploy.provenance import node_place, note_place


class ConvolveTokens(EachLayer[LevelsInput]):
    """MatMul(q(x), W)  ==>  Transpose -> Conv, 1x1 -> Transpose, for x [N, ..., C] of three to five dimensions.

    1. q has 2 to 16 values (see `few_levels.quantizer`); W [C, O] has a few values per output.
    2. LowerLevels, behind it, makes a binary layer of the Conv.

    LowerLinear has the layers of ±1.

    Declines, with the reason, what LowerLevels would decline, and more than five dimensions.

    Raises InputError for an output whose weights are all zeros.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def _source(self, node: ir.Node) -> LevelsInput | Reason | None:
        source = levels_input(node) if is_op(node, "MatMul") else None
        return source if isinstance(source, LevelsInput) and is_on_rows(source) else None

    def _lower(self, node: ir.Node, source: LevelsInput, layer: FloatLayer) -> ir.Node | Reason:
        data, output, graph = node.inputs[0], node.outputs[0], node.graph
        shape = None if data is None else static_shape(data)
        assert data is not None and data.shape is not None and shape is not None and isinstance(graph, ir.Graph)
        rank, channels, outputs = len(shape), shape[-1], len(layer.weight)
        assert channels is not None
        if rank > 2 + MAX_SPATIAL:
            return SpatialDimensions(rank - 2)
        if channels != layer.weight.shape[1]:
            return Channels(channels, layer.weight.shape[1])
        filters = np.ascontiguousarray(layer.weight).reshape(outputs, channels, *[1] * (rank - 2))
        form = level_form(node, source, layer, filters, np.zeros(outputs, np.float32))
        if isinstance(form, Reason):
            return form
        second, name = channels_second(rank), output.name or ""
        batch, *spatial, _ = data.shape
        first = insert_node(
            node,
            "Transpose",
            [data],
            {"perm": list(second.perm)},
            f"{name}_tokens",
            dtype=ir.DataType.FLOAT,
            shape=[batch, channels, *spatial],
        )
        note_place(first, node_place(data.producer(), data).then(second))
        inputs = [first, add_initializer(graph, f"{name}_filters", filters)]
        return replace_by_convolution(node, "Conv", inputs, {}, outputs, domain="")
