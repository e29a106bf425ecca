"""ResolveAutoPad: pads that a rule gives are written as numbers."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.passes.graph import auto_pad, constant, ints, is_op, static_shape
from bnn_deploy.passes.outcome import Outcome, Pass


class ResolveAutoPad(Pass):
    """Conv | MaxPool with auto_pad = SAME_UPPER, SAME_LOWER or VALID  ==>  the same with explicit pads.

    TensorFlow's exporter writes "SAME", which at stride 2 is asymmetric.

    Conditions: the kernel's and the input's spatial sizes are known (with stride 1, only the kernel's has to be; for
        VALID, nothing).

    Declines: sizes that are not known; the layer stays as it is, and LowerBinaryConv says so.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every node that qualifies."""
        result = Outcome(model)
        for node in model.graph:
            rule = auto_pad(node) if is_op(node, "Conv", "MaxPool") else None
            pads = None if rule is None else _pads(node, rule)
            if pads is not None:
                del node.attributes["auto_pad"]
                node.attributes["pads"] = ir.AttrInt64s("pads", pads)
                result.rewrote(node)
        return result


def _pads(node: ir.Node, rule: str) -> list[int] | None:
    """The pads (begins, then ends) that the rule gives; None if sizes are unknown."""
    shape = None if node.inputs[0] is None else static_shape(node.inputs[0])
    weight = constant(node.inputs[1]) if is_op(node, "Conv") else None
    kernel = ints(node, "kernel_shape", [] if weight is None else weight.shape[2:])
    if not kernel:
        return None
    if rule == "VALID":
        return [0] * (2 * len(kernel))
    sizes = [] if shape is None else shape[2:]
    if len(sizes) != len(kernel):
        return None
    strides, dilations = (ints(node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    small, large = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None and stride > 1:
            return None
        size = size or 1  # with stride 1 the pads are the same for any size
        total = max((-(-size // stride) - 1) * stride + dilation * (taps - 1) + 1 - size, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    return small + large if rule == "SAME_UPPER" else large + small
