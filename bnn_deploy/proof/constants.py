"""Large weights of a model's function bodies, computed once, in little memory.

onnxruntime folds constants while it makes a session, and until it is ready keeps whatever it computes on the way: of
the bits of a layer's weights several tensors of 32 times their size. Run as a model of their own, in onnxruntime too,
each is freed when it has been used; and what comes out is an input of the model from then on, and not in its session
again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, inliner

from bnn_deploy.proof.pieces import piece
from bnn_deploy.runtime.session import FATAL, PROVIDERS

LARGE_BYTES = 2**20
"""Bytes of packed weights from which they are worth it: as floats they have 32 times as many."""


def has_large_bits(model: ModelProto) -> bool:
    """Whether a model has such weights."""
    tensors = (tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.UINT32)
    return any(4 * int(np.prod(tensor.dims)) >= LARGE_BYTES for tensor in tensors)


def without_constants(model: ModelProto) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A model whose large constants are inputs, serialised, and those inputs.

    Its functions are replaced by their bodies, as onnxruntime does.
    """
    flat = inliner.inline_local_functions(model)
    constant = {tensor.name for tensor in flat.graph.initializer} | {""}
    folded: list[NodeProto] = []
    rest: list[NodeProto] = []
    for node in flat.graph.node:
        is_constant = constant.issuperset(node.input) and not any(a.HasField("g") for a in node.attribute)
        (folded if is_constant else rest).append(node)
        constant |= set(node.output) if is_constant else set()
    made = {name for node in folded for name in node.output}
    read = {name for node in rest for name in node.input} | {info.name for info in flat.graph.output}
    wanted = sorted(made & read)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = FATAL
    alone = piece(flat, folded, [], wanted).SerializeToString()
    session = ort.InferenceSession(alone, options, providers=PROVIDERS)
    values = dict(zip(wanted, map(np.asarray, session.run(wanted, {})), strict=True))
    large = {name: value for name, value in values.items() if value.nbytes >= LARGE_BYTES}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in large.items()
    ]
    result = piece(flat, rest, [*flat.graph.input, *inputs], [])
    result.graph.output.extend(flat.graph.output)
    result.graph.initializer.extend(
        helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape, value.tobytes(), raw=True)
        for name, value in values.items()
        if name not in large
    )
    return result.SerializeToString(), large
