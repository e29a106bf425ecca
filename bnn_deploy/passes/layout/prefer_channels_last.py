"""PreferChannelsLast: binarise a float convolution's output in the layout that onnxruntime gives it most cheaply."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import insert_node, is_binary_op, is_op, replace_value, sole_consumer
from bnn_deploy.passes.outcome import Outcome, Pass


def replace_channels_last(
    binarize: ir.Node, data: ir.Value, op_type: str, threshold: ir.Value, dtype: ir.DataType
) -> None:
    """Replace a Binarize by Transpose(data, channels last) and a binarisation of that form.

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


class PreferChannelsLast(Pass):
    """Binarize(Conv(x), t)  ==>  BinarizeChannelsLast(Transpose(Conv(x), channels last), t).

    onnxruntime computes a float convolution in blocks of channels, and must reorder its output. Reordering to channels
    last copies whole blocks, and the Transpose disappears in it; the bits of a pixel are then compared side by side.

    Conditions: a two-dimensional Conv that feeds only this Binarize, with a multiple of 32 channels: with a rest
    it does not pay.

    Declines: nothing.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Binarize of a Conv."""
        result = Outcome(model)
        for node in list(model.graph):
            value = node.inputs[0] if is_binary_op(node, "Binarize") else None
            bits, threshold = node.outputs[0], node.inputs[1] if value is not None else None
            if value is None or threshold is None or bits.shape is None or len(bits.shape) != 4:
                continue
            if not is_op(value.producer(), "Conv") or sole_consumer(value) is not node or threshold.shape is None:
                continue
            channels = threshold.shape[0]
            if not isinstance(channels, int) or channels % 32:
                continue
            replace_channels_last(node, value, "BinarizeChannelsLast", threshold, ir.DataType.FLOAT)
            result.rewrote(node)
        return result
