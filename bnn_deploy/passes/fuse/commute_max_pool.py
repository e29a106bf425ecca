"""CommuteMaxPool: binarise first, then pool the bits."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.fusion_reasons import PoolStays, UsedElsewhere
from bnn_deploy.passes.graph import is_binary_op, is_op, remove_if_dead
from bnn_deploy.passes.lower.layer import insert_max_pool, is_plain_pool
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import take_bit_metadata


class CommuteMaxPool(Pass):
    """Binarize(MaxPool(x), t)  ==>  BinaryMaxPool(Binarize(x, t)).

    x >= t is monotone, so the maximum reaches t exactly if one element does: an OR, on data 32 times smaller.

    Conditions: the MaxPool feeds only this Binarize, and has no index output and no auto_pad.

    Declines: a MaxPool that something else uses too.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Binarize of a MaxPool."""
        result = Outcome(model)
        for node in list(model.graph):
            pooled = node.inputs[0] if is_binary_op(node, "Binarize") else None
            pool = None if pooled is None else pooled.producer()
            if pooled is None or pool is None or not is_op(pool, "MaxPool"):
                continue
            if not is_plain_pool(pool):
                result.decline(node, PoolStays(pooled.name or ""))
                continue
            if len(list(pooled.uses())) > 1 or pooled.is_graph_output():
                result.decline(node, UsedElsewhere(f"MaxPool '{pooled.name}' is"))
                continue
            data, bits = pool.inputs[0], node.outputs[0]
            assert data is not None
            name = bits.name or ""
            node.replace_input_with(0, data)
            bits.name = f"{data.name}_bits"
            new = insert_max_pool(pool, bits, pooled)
            new_node = new.producer()
            assert new_node is not None and node.graph is not None
            take_bit_metadata(new_node, node)
            # The new pool was inserted before the old one, that is before the Binarize: put it behind.
            node.graph.remove(new_node)
            node.append(new_node)
            new.shape, bits.shape = (
                bits.shape,
                None if data.shape is None or new.shape is None else _bits_shape(data, new),
            )
            ir.convenience.replace_all_uses_with(bits, new)
            new_node.replace_input_with(0, bits)
            new.name = name
            remove_if_dead(pool)
            result.rewrote(node, pool)
        return result


def _bits_shape(data: ir.Value, like: ir.Value) -> ir.Shape:
    assert data.shape is not None and like.shape is not None
    return ir.Shape([data.shape[0], *data.shape[2:], like.shape[-1]])
