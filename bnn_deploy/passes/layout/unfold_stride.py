"""UnfoldStride: move the stride of a convolution over an image into its channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import (
    add_initializer,
    auto_pad,
    constant,
    insert_node,
    ints,
    is_op,
    reads_abs_mean,
    static_shape,
)
from bnn_deploy.passes.outcome import Outcome, Pass

MAX_CHANNELS = 4


class UnfoldStride(Pass):
    """Conv(x, W, strides=[s, s])  ==>  Conv(SpaceToDepth(x, s), W', strides=[1, 1]).

    1. W' [O, s * s * C, k', k'] holds W's taps and zeros, so every sum has the same products and some zeros.
    2. Where C is a colour or three, an 8-bit convolution spends its time on gathering single values for the matrix
       product; now it gathers s * s * C at a time. A float convolution gains nothing.

    Conditions: two dimensions, one stride s > 1 smaller than the kernel, explicit pads, no group, no dilation, at
    most MAX_CHANNELS channels, and a height and width that are known and divisible by s.

    Declines: nothing; the convolution is right as it was. The filter of XNOR-Net's K, which stays float, is left alone.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every such Conv."""
        result = Outcome(model)
        for node in list(model.graph):
            if is_op(node, "Conv") and not reads_abs_mean(node) and self._unfold(model.graph, node):
                result.rewrote(node)
        return result

    @staticmethod
    def _unfold(graph: ir.Graph, node: ir.Node) -> bool:
        x, weight, out = node.inputs[0], constant(node.inputs[1]), node.outputs[0]
        shape = None if x is None else static_shape(x)
        if x is None or x.dtype is None or x.shape is None:
            return False
        if shape is None or len(shape) != 4 or weight is None or weight.ndim != 4:
            return False
        stride, second = ints(node, "strides", [1, 1])
        if auto_pad(node) or stride == 1 or second != stride or ints(node, "dilations", [1, 1]) != [1, 1]:
            return False
        _, channels, height, width = shape
        if channels is None or height is None or width is None or height % stride or width % stride:
            return False
        if weight.shape[1] != channels or channels > MAX_CHANNELS or min(weight.shape[2:]) <= stride:
            return False
        top, left, bottom, right = ints(node, "pads", [0, 0, 0, 0])
        before_y, kernel_y, behind_y = _blocks(height, weight.shape[2], stride, top, bottom)
        before_x, kernel_x, behind_x = _blocks(width, weight.shape[3], stride, left, right)
        outputs = weight.shape[0]

        taps = np.zeros((outputs, channels, kernel_y * stride, kernel_x * stride), weight.dtype)
        skip_y, skip_x = before_y * stride - top, before_x * stride - left
        taps[:, :, skip_y : skip_y + weight.shape[2], skip_x : skip_x + weight.shape[3]] = weight
        # SpaceToDepth orders its channels by row, column, channel.
        taps = taps.reshape(outputs, channels, kernel_y, stride, kernel_x, stride).transpose(0, 3, 5, 1, 2, 4)
        unfolded = insert_node(
            node,
            "SpaceToDepth",
            [x],
            {"blocksize": stride},
            f"{out.name}_unfolded",
            dtype=x.dtype,
            shape=[x.shape[0], channels * stride**2, height // stride, width // stride],
        )
        node.replace_input_with(0, unfolded)
        taps = taps.reshape(outputs, -1, kernel_y, kernel_x)
        node.replace_input_with(1, add_initializer(graph, f"{out.name}_unfolded_weight", taps))
        node.attributes["strides"] = ir.AttrInt64s("strides", [1, 1])
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [kernel_y, kernel_x])
        node.attributes["pads"] = ir.AttrInt64s("pads", [before_y, before_x, behind_y, behind_x])
        return True


def _blocks(size: int, kernel: int, stride: int, begin: int, end: int) -> tuple[int, int, int]:
    """Padding before, kernel and padding behind along an axis, in blocks of `stride`."""
    before = -(-begin // stride)
    blocks = -(-(before * stride - begin + kernel) // stride)
    windows = (size + begin + end - kernel) // stride + 1
    return before, blocks, windows + blocks - 1 - before - size // stride
