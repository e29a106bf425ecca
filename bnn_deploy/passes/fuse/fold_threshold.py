"""FoldThreshold: what stands between a layer and its binarisation goes into the binarisation's threshold."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.passes.fuse.complement import complement_channels, complementable
from bnn_deploy.passes.fusion_reasons import Falls, UsedElsewhere
from bnn_deploy.passes.graph import constant, is_binary_op, is_op, remove_if_dead
from bnn_deploy.passes.lower.layer import SMALLEST
from bnn_deploy.passes.monotone import bisect_threshold, monotone
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.passes.reasons import Reason

TAME = (2.0**-40, 2.0**40)
"""Factors between these make no product 0 or infinite but of numbers that no layer gives."""


class FoldThreshold(Pass):
    """Binarize(f(x), t), f monotone in each channel  ==>  Binarize(x, t').

    1. f is BatchNormalization, Relu, LeakyRelu, PRelu, Clip, Mul, Add, Sub or Div by a constant per channel, Neg, Sign
       or Identity, with x of the same shape, used only by this Binarize.
    2. t' is the smallest float32 x for which the float32 expression f(x) >= t holds, found by bisection over the
       float32 numbers and not by algebra, so the bits agree by construction, f's rounding included. BatchNormalization
       is evaluated as a * x + b with a = gamma / sqrt(var + eps) and b = beta - mean * a, as PyTorch and onnxruntime
       do.
    3. A channel in which f falls (negative gamma) is x <= s, the complement of x > s: its bits are stored complemented,
       and the weight bits (and pad value) of that channel are flipped in every consumer, which leaves every product
       unchanged.
    4. A constant channel (gamma 0) gets an infinite threshold.
    5. A Mul by constants > 0 that differ by position (XNOR-Net++) in front of a plain sign is left out: but for
       products too small for a normal float32, it leaves every sign as it is.

    Declines: a falling channel where a consumer is not a BinaryConv (its OR would become an AND); PRelu with a negative
    slope, which is not monotone; constants that are not per channel.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Fold until nothing changes."""
        result = Outcome(model)
        for node in list(model.graph):
            if is_binary_op(node, "Binarize"):
                while (reason := self._fold(node, result)) is None:
                    pass
                if reason:
                    result.decline(node, reason)
        return result

    def _fold(self, binarize: ir.Node, result: Outcome) -> Reason | Literal[""] | None:
        """Fold one node into `binarize`: None if done, a reason if declined, "" if there is nothing to look at."""
        value = binarize.inputs[0]
        producer = None if value is None else value.producer()
        if value is None or producer is None:
            return ""
        threshold = constant(binarize.inputs[1])
        assert threshold is not None
        function = monotone(producer, len(threshold))
        if function is None:
            return ""
        if isinstance(function, Reason):
            if not _keeps_signs(producer, threshold):
                return function
            function = np.asarray  # as any number > 0 does
        if len(list(value.uses())) > 1 or value.is_graph_output():
            return UsedElsewhere(f"'{value.name}' ({producer.op_type}) is")
        with np.errstate(over="ignore"):  # the bisection starts at the largest floats
            new, falling = bisect_threshold(lambda x: function(x) >= threshold, len(threshold))
        if falling.any():
            for consumer in binarize.outputs[0].consumers():
                reason = complementable(consumer, binarize.outputs[0])
                if reason:
                    channel = int(np.flatnonzero(falling)[0])
                    return Falls(channel, producer.op_type, value.name or "", reason)
            complement_channels(binarize, falling)
        data = producer.inputs[0] if constant(producer.inputs[0]) is None else producer.inputs[1]
        assert binarize.graph is not None and data is not None
        binarize.replace_input_with(0, data)
        old = binarize.inputs[1]
        name = old.name if old is not None else None
        assert old is not None and name is not None
        old.const_value = ir.tensor(new, name=name)
        remove_if_dead(producer)
        result.rewrote(binarize, producer)
        return None


def _keeps_signs(node: ir.Node, threshold: NDArray[np.float32]) -> bool:
    """Whether a node is a Mul by constants > 0, none of them extreme, and the thresholds are those of a plain sign."""
    factors = [array for value in node.inputs if (array := constant(value)) is not None]
    shapes = [value.shape for value in (*node.inputs, *node.outputs) if value is not None and constant(value) is None]
    if not is_op(node, "Mul") or len(factors) != 1 or shapes[0] is None or shapes[0] != shapes[1]:
        return False
    plain = bool(np.isin(threshold, (np.float32(0), SMALLEST)).all())
    return plain and bool(((factors[0] >= TAME[0]) & (factors[0] <= TAME[1])).all())
