"""Linear layers on tokens as convolutions: [N, ..., C] has its channels last, a convolution's input second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from bnn_deploy.passes.graph import insert_node, maker, replace_value
from bnn_deploy.passes.outcome import display_name
from bnn_deploy.provenance import NO_PLACE, Transpose, node_place


def channels_second(rank: int) -> Transpose:
    """What makes [N, C, ...] of [N, ..., C]."""
    return Transpose([0, rank - 1, *range(1, rank - 1)])


def replace_by_convolution(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any], outputs: int, domain: str
) -> ir.Node:
    """Replace a MatMul, whose output is [N, ..., O], by a convolution with a 1x1 kernel and a Transpose behind it.

    Args:
        node: the MatMul.
        op_type: the convolution's.
        inputs: the convolution's.
        attributes: the convolution's, but for its window.
        outputs: O.
        domain: of the operator.

    Returns:
        The convolution, whose output is [N, O, ...].
    """
    output = node.outputs[0]
    assert output.shape is not None
    name, rank = output.name or "", len(output.shape)
    batch, *spatial, _ = output.shape
    convolved = insert_node(
        node,
        op_type,
        inputs,
        {"kernel_shape": [1] * (rank - 2), **attributes},
        f"{name}_map",
        dtype=ir.DataType.FLOAT,
        shape=[batch, outputs, *spatial],
        domain=domain,
        name=display_name(node),
        metadata=None if NO_PLACE in node.meta else node_place(node, output).then(channels_second(rank)).as_source(),
    )
    new = maker(convolved)
    if NO_PLACE in node.meta:
        new.meta[NO_PLACE] = True
    result = insert_node(
        node,
        "Transpose",
        [convolved],
        {"perm": [0, *range(2, rank), 1]},
        f"{name}_rows",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    result.metadata_props.update(output.metadata_props)
    replace_value(output, result)
    result.name = name
    return new
