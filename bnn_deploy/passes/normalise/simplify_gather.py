"""SimplifyGather: indexing with tensors, which PyTorch exports as GatherND, is a Gather along each axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import add_initializer, constant, insert_node, is_op, remove_if_dead, static_shape
from bnn_deploy.passes.outcome import Outcome, Pass


class SimplifyGather(Pass):
    """GatherND(x, i)  ==>  Gather(x, i), along the first axis, or along each axis if i is a grid.

    1. i is constant, [n, 1] or [rows, columns, 2], each row of the latter of one first index and each column of one
       second index, as x[:, :, i[:, None], j] gives it.
    2. Or x is a constant table [n], and i is Unsqueeze(indices, -1): table[(x >= 0).long()].

    Declines: nothing; other indices stay as they are.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every GatherND that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            batch = node.attributes.get("batch_dims")
            if not is_op(node, "GatherND") or (batch is not None and batch.as_int()):
                continue
            picks = _picks(model.graph, node)
            if not picks:
                continue
            old, value = node.outputs[0], node.inputs[0]
            name, shape = old.name or "", None if value is None or value.shape is None else list(value.shape)
            assert value is not None and old.dtype is not None
            for axis, indices in enumerate(picks):
                last = axis + 1 == len(picks)
                if shape is not None and indices.shape is not None:
                    shape[axis : axis + 1] = list(indices.shape)
                value = insert_node(
                    node,
                    "Gather",
                    [value, indices],
                    {"axis": axis},
                    f"{name}_along_{axis}",
                    dtype=old.dtype,
                    shape=old.shape if last else shape,
                )
                result.rewrote(node)
            ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
            remove_if_dead(node)
            old.name, value.name = f"{name}_before_gather", name
        return result


def _picks(graph: ir.Graph, node: ir.Node) -> list[ir.Value]:
    """The indices along the first axes; none if they are not of the forms that are known."""
    data, value = node.inputs[:2]
    indices, table = constant(value), constant(data)
    name = node.outputs[0].name or ""
    if indices is None:
        unsqueeze = None if value is None else value.producer()
        if table is None or table.ndim != 1 or value is None or unsqueeze is None or not is_op(unsqueeze, "Unsqueeze"):
            return []
        axes, shape, inner = constant(unsqueeze.inputs[1]), static_shape(value), unsqueeze.inputs[0]
        if (
            axes is None
            or shape is None
            or inner is None
            or [int(axis) % len(shape) for axis in axes] != [len(shape) - 1]
        ):
            return []
        return [inner]
    if indices.ndim == 2 and indices.shape[1] == 1:
        return [add_initializer(graph, f"{name}_indices", indices[:, 0])]
    if indices.ndim == 3 and indices.shape[2] == 2 and indices.size:
        rows, columns = indices[:, 0, 0], indices[0, :, 1]
        if np.array_equal(indices, np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)):
            return [add_initializer(graph, f"{name}_{kind}", i) for kind, i in (("rows", rows), ("columns", columns))]
    return []
