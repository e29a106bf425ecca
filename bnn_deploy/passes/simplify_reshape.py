"""SimplifyReshape: shapes that are computed at run time only to keep the batch dimension become constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import PassResult, add_initializer, constant, is_op, remove_if_dead


class SimplifyReshape:
    """Reshape(x, Concat(batch of x, constants))  ==>  Reshape(x, [0, constants]).

    PyTorch's x.view(x.shape[0], ...) exports as Shape -> Squeeze -> Reshape -> Concat -> Reshape: five nodes that cost
    a small network a noticeable part of its time.

    Conditions: the first dimension of the data and of the result are the same symbol, and all others are known.

    Declines: nothing; a Reshape that does not qualify stays as it is.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrite every Reshape that qualifies."""
        result = PassResult()
        for node in list(model.graph):
            data, shape = (node.inputs[0], node.outputs[0].shape) if is_op(node, "Reshape") else (None, None)
            if data is None or data.shape is None or shape is None or constant(node.inputs[1]) is not None:
                continue
            same_batch = len(shape) > 0 and len(data.shape) > 0 and shape[0] == data.shape[0]
            sizes = [dim for dim in shape[1:] if isinstance(dim, int)]
            if not same_batch or len(sizes) != len(shape) - 1:
                continue
            old = node.inputs[1]
            target = np.array([0, *sizes], dtype=np.int64)  # 0 keeps the dimension of the input
            node.replace_input_with(1, add_initializer(model.graph, f"{node.outputs[0].name}_shape", target))
            node.attributes.pop("allowzero", None)
            remove_if_dead(None if old is None else old.producer())
            result.modified += 1
        return result
