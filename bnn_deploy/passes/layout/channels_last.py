"""A binarisation of data that is channels last."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import insert_node, maker, replace_value


def replace_channels_last(
    binarize: ir.Node, data: ir.Value, op_type: str, threshold: ir.Value, dtype: ir.DataType
) -> ir.Node:
    """Replace a Binarize by Transpose(data, channels last) and a binarisation of that form, and return this.

    Args:
        binarize: the node; the shape of its bits is known.
        data: what to binarise instead of its input, [N, C, spatial...].
        op_type: BinarizeChannelsLast or BinarizeQuantized.
        threshold: of the new node, [C].
        dtype: of `data`.
    """
    bits = binarize.outputs[0]
    assert bits.shape is not None and threshold.shape is not None
    name = bits.name or ""
    last = insert_node(
        binarize,
        "Transpose",
        [data],
        {"perm": [0, *range(2, len(bits.shape)), 1]},
        f"{name}_channels_last",
        dtype=dtype,
        shape=[*bits.shape[:-1], threshold.shape[0]],
    )
    new = insert_node(
        binarize,
        op_type,
        [last, threshold],
        {},
        f"{name}_new",
        dtype=ir.DataType.UINT32,
        shape=bits.shape,
        domain=DOMAIN,
        metadata=binarize.metadata_props,
    )
    replace_value(bits, new)
    new.name = name
    return maker(new)
