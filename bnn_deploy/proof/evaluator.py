"""onnx's ReferenceEvaluator with another MaxPool: its own walks through all windows in Python."""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_max_pool import MaxPool as OnnxMaxPool


class ShiftedMaxPool(OnnxMaxPool):
    """MaxPool as the largest of shifted tensors, in plain numpy, for the forms that networks have.

    Floats without NaN, no smaller than a window, with pads in numbers that are smaller than it, and no indices; any
    other form is left to onnx's own.
    """

    op_domain = ""

    def _run(self, x: NDArray[Any], **attributes: Any) -> tuple[NDArray[Any], ...]:  # type: ignore[override]
        kernel = attributes["kernel_shape"]
        rank = len(kernel)
        strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
        pads = attributes.get("pads") or [0] * 2 * rank
        extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
        if (
            len(self.output) > 1
            or x.dtype.kind != "f"
            or attributes.get("auto_pad", "NOTSET") != "NOTSET"
            or attributes.get("ceil_mode")
            or any(pad >= extent for pad, extent in zip(pads, [*extents, *extents], strict=True))
            or any(size < extent for size, extent in zip(x.shape[2:], extents, strict=True))
            or np.isnan(x).any()
        ):
            result: tuple[NDArray[Any], ...] = super()._run(x, **attributes)  # type: ignore[no-untyped-call]
            return result
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=-np.inf)
        # From the first window's place of a tap to the last's, as all are in the padded tensor.
        sizes = [size - extent + 1 for size, extent in zip(padded.shape[2:], extents, strict=True)]
        taps = product(*(range(0, extent, dilation) for extent, dilation in zip(extents, dilations, strict=True)))
        every = (slice(None), slice(None))
        shifted = (
            padded[every + tuple(slice(i, i + size, step) for i, size, step in zip(tap, sizes, strides, strict=True))]
            for tap in taps
        )
        return (reduce(np.maximum, shifted),)


ShiftedMaxPool.__name__ = "MaxPool"  # by which onnx knows what operator it is


class Evaluator(ReferenceEvaluator):
    """The ReferenceEvaluator with `ShiftedMaxPool`, in function bodies and branches, too.

    It makes one of its own class for each of these, and gives that of a branch its own operators again.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        """For a model, serialised or not; `options` are those of ReferenceEvaluator."""
        super().__init__(model, **options | {"new_ops": [ShiftedMaxPool]})
