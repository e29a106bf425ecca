"""ConvolveDirectly: a float convolution of few channels, whose output the operators of the domain read, is theirs."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import DOMAIN, MAX_POOL
from bnn_deploy.operators.shapes import beyond
from bnn_deploy.passes.conditions import thresholds_folded
from bnn_deploy.passes.graph import (
    add_initializer,
    auto_pad,
    constant,
    group_of,
    insert_node,
    ints,
    is_binary_op,
    is_op,
    maker,
    reads_abs_mean,
    remove_if_dead,
    replace_value,
    sole_consumer,
    static_shape,
)
from bnn_deploy.passes.lower.layer import is_plain_pool, pool_window
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import BEFORE, SOURCE, bit_metadata, source_metadata

MAX_DIRECT_CHANNELS = 4
"""Most input channels: with more, onnxruntime's convolution in blocks of channels is faster."""


class ConvolveDirectly(Pass):
    """Binarize(Conv(x, W, b), t)  ==>  DirectConvThreshold(x, W, b, t); Conv(x, W, b)  ==>  DirectConv(x, W, b).

    onnxruntime computes a convolution of few channels as a matrix product of patches, or in blocks of channels that it
    must reorder; these operators read x and write bits, or floats, as they are.

    1. The Conv feeds only the Binarize; a BinaryMaxPool that reads only these bits, and is read for them, becomes the
       pool of the DirectConvThreshold. Bits that stand for a sign of the float graph in front of its pool stay apart,
       so that `verify` sees them.
    2. Any other Conv that an operator of the domain reads, behind a MaxPool or a Relu, too. The MaxPool becomes the
       pool of the DirectConv, and a Relu in front of it comes behind: max(relu(y)) = relu(max(y)).

    Conditions: one or two spatial dimensions, one group, explicit pads (see `shapes.beyond`), constant float32 W and b,
    and at most MAX_DIRECT_CHANNELS input channels. A pool has at most MAX_POOL rows and columns and no dilations, each
    pad is smaller than its kernel, and it rounds down or need not round.

    Declines: nothing; other float layers are right as they are. The filter of XNOR-Net's K, which stays float, is left
    alone, and so are weights of one bit (UnpackWeights).

    Args:
        names: the tensors of the float graph.
    """

    needs = (thresholds_folded,)

    def __init__(self, names: Set[str]) -> None:
        self.names = names

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Conv that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            window = _window(node)
            if window is None:
                continue
            reader = sole_consumer(node.outputs[0])
            if is_binary_op(reader, "Binarize") and reader is not None and _is_per_channel(reader, node):
                _to_bits(node, reader, window, result)
            else:
                self._to_floats(node, window, result)
        return result

    def _to_floats(self, conv: ir.Node, window: dict[str, list[int]], result: Outcome) -> None:
        """Replace a Conv, and the MaxPool behind it, if an operator of the domain reads them."""
        relu = pool = None
        end = conv.outputs[0]
        while (node := sole_consumer(end)) is not None:
            if relu is None and is_op(node, "Relu"):
                relu = node
            elif pool is None and is_op(node, "MaxPool") and is_plain_pool(node) and _fits(node, conv.outputs[0]):
                pool = node
            else:
                break
            end = node.outputs[0]
        if all(user.domain != DOMAIN for user in end.consumers()):
            return
        pooled = conv.outputs[0] if pool is None else pool.outputs[0]
        new = _insert(conv, "DirectConv", window, pool, None, ir.DataType.FLOAT, pooled.shape)
        if relu is not None:
            relu.replace_input_with(0, new)
            last = relu.outputs[0]
            last.shape = end.shape
        else:
            last = new
        name, metadata = end.name or "", dict(end.metadata_props)
        if last is not end:
            replace_value(end, last)
            last.name = name
            last.metadata_props.update(metadata)
        node = maker(new)
        remove_if_dead(conv)
        if relu is None and len(list(new.uses())) > 1 and (BEFORE in metadata or name in self.names):
            node.metadata_props.update(source_metadata(new))  # a cut for verify, as it was
        result.rewrote(node, conv, *([] if pool is None else [pool]))


def _window(node: ir.Node) -> dict[str, list[int]] | None:
    """The window of a Conv that has a direct form; None for any other node."""
    weight = constant(node.inputs[1]) if is_op(node, "Conv") else None
    if weight is None or weight.dtype != np.float32 or weight.ndim not in (3, 4):
        return None
    if weight.shape[1] > MAX_DIRECT_CHANNELS or group_of(node) != 1 or auto_pad(node) or reads_abs_mean(node):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return None
    rank = weight.ndim - 2
    ones = [1] * rank
    window = {
        "kernel_shape": list(weight.shape[2:]),
        "strides": ints(node, "strides", ones),
        "pads": ints(node, "pads", [0] * (2 * rank)),
        "dilations": ints(node, "dilations", ones),
    }
    shape = None if node.inputs[0] is None else static_shape(node.inputs[0])
    sizes = [None] * rank if shape is None else shape[2:]
    return window if beyond(window, sizes, weight.shape[1]) is None else None


def _is_per_channel(binarize: ir.Node, conv: ir.Node) -> bool:
    """Whether the thresholds of a Binarize are one per filter of a Conv."""
    threshold, weight = constant(binarize.inputs[1]), constant(conv.inputs[1])
    return threshold is not None and weight is not None and len(threshold) == len(weight)


def _fits(pool: ir.Node, data: ir.Value) -> bool:
    """Whether a MaxPool or BinaryMaxPool of `data`, [N, C, spatial...] or bits of it, is a pool of DirectConv."""
    window = pool_window(pool)
    kernel, strides, pads = (window[name] for name in ("kernel_shape", "strides", "pads"))
    if any(dilation != 1 for dilation in window["dilations"]):
        return False
    if max(kernel) > MAX_POOL or not all(0 <= pad < size for pad, size in zip(pads, (*kernel, *kernel), strict=True)):
        return False
    shape = static_shape(data)
    if not window["ceil_mode"]:
        return True
    for i, size in enumerate([None] * len(kernel) if shape is None else shape[2:]):
        # A last window that lies in the padding alone is left out, but not by onnx's shape inference, and what stands
        # behind has the shapes that it inferred.
        if size is None or (size + pads[i] + pads[i + len(kernel)] - kernel[i]) % strides[i]:
            return False
    return True


def _pool_attributes(pool: ir.Node | None, rank: int) -> dict[str, list[int]]:
    """The attributes of DirectConv for a pool, or for none."""
    if pool is None:
        return {"pool_shape": [1] * rank, "pool_strides": [1] * rank, "pool_pads": [0] * (2 * rank)}
    window = pool_window(pool)
    return {"pool_shape": window["kernel_shape"], "pool_strides": window["strides"], "pool_pads": window["pads"]}


def _insert(
    conv: ir.Node,
    op_type: str,
    window: dict[str, list[int]],
    pool: ir.Node | None,
    threshold: ir.Value | None,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    metadata: Mapping[str, str] | None = None,
) -> ir.Value:
    """Insert the direct form of a Conv in its place, with a pool behind it."""
    x, weight, bias = (*conv.inputs, None)[:3]
    name, filters = conv.outputs[0].name or "", constant(weight)
    assert conv.graph is not None and filters is not None
    if bias is None:
        bias = add_initializer(conv.graph, f"{name}_bias", np.zeros(len(filters), np.float32))
    return insert_node(
        conv,
        op_type,
        [x, weight, bias, *([] if threshold is None else [threshold])],
        window | _pool_attributes(pool, len(window["kernel_shape"])),
        f"{name}_direct",
        dtype=dtype,
        shape=shape,
        domain=DOMAIN,
        name=conv.name,
        metadata=metadata,
    )


def _to_bits(conv: ir.Node, binarize: ir.Node, window: dict[str, list[int]], result: Outcome) -> None:
    """Replace a Conv, the Binarize that alone reads it, and the pool behind that."""
    last, pool = binarize, sole_consumer(binarize.outputs[0])
    if (
        pool is None
        or not is_binary_op(pool, "BinaryMaxPool")
        or not _fits(pool, conv.outputs[0])
        or SOURCE in binarize.metadata_props
    ):
        pool = None
    else:
        last = pool
    bits = last.outputs[0]
    new = _insert(
        conv,
        "DirectConvThreshold",
        window,
        pool,
        binarize.inputs[1],
        ir.DataType.UINT32,
        bits.shape,
        bit_metadata(last),
    )
    result.rewrote(maker(new), conv, binarize, *([] if pool is None else [pool]))
    name = bits.name
    replace_value(bits, new)
    new.name = name
