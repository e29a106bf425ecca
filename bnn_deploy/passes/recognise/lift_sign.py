"""LiftSign: a sign behind a Flatten goes in front of it, next to what makes its values."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.operators.bits import WORD
from bnn_deploy.operators.contract import MAX_SPATIAL
from bnn_deploy.passes.conditions import shapes_known
from bnn_deploy.passes.graph import insert_node, is_flatten, is_op, maker, remove_if_dead, static_shape
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import Reshape, node_place, place, sign_metadata, zero_value


class LiftSign(Pass):
    """Linear(Sign(Flatten(x)))  ==>  Linear(Flatten(Sign(x))).

    1. Flatten, or a Reshape to [N, features], of a map x [N, C, spatial...] in front of linear layers only. The sign is
       then of C channels and not of `features`: what made x is folded into one threshold per channel, and the linear
       layer becomes a convolution over the map.
    2. The new node notes that its source in the float graph is flat.

    Conditions: one to three spatial dimensions, sizes that are known, a sign that only linear layers read, and 32
        channels or more: the words of fewer would be mostly empty.

    Declines: nothing; a sign of flat features, with a BatchNorm over them, is right as it is.
    """

    needs = (shapes_known,)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Sign that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            data = node.inputs[0] if is_op(node, "Sign") else None
            flatten = None if data is None else data.producer()
            if flatten is None or not is_op(flatten, "Flatten", "Reshape") or not is_flatten(flatten, node.outputs[0]):
                continue
            x = flatten.inputs[0]
            shape = None if x is None else static_shape(x)
            if x is None or x.shape is None or shape is None or None in shape[1:]:
                continue
            if not 3 <= len(shape) <= 2 + MAX_SPATIAL:
                continue
            if (shape[1] or 0) < WORD:
                continue
            new = self._lift(node, flatten, x, [size for size in shape[1:] if size is not None])
            result.rewrote(new, flatten, node)
        return result

    def _lift(self, node: ir.Node, flatten: ir.Node, x: ir.Value, sizes: list[int]) -> ir.Node:
        old = node.outputs[0]
        name = old.name or ""
        source = node_place(node, old).then(Reshape([-1, *sizes]))
        metadata = sign_metadata(source, place(x), zero_value(node))
        sign = insert_node(
            node, "Sign", [x], {}, f"{name}_lifted", dtype=ir.DataType.FLOAT, shape=x.shape, metadata=metadata
        )
        attributes = {key: attribute.value for key, attribute in flatten.attributes.items()}
        new = insert_node(
            node,
            flatten.op_type,
            [sign, *flatten.inputs[1:]],
            attributes,
            f"{name}_flat",
            dtype=ir.DataType.FLOAT,
            shape=old.shape,
        )
        ir.convenience.replace_all_uses_with(old, new)
        remove_if_dead(node)
        new.name = name
        return maker(sign)
