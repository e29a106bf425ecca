"""Layers whose input has few values in a form that no pass reads: they are found by running the float model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.passes.graph import LAYER_OPERATORS, constant, is_op
from bnn_deploy.passes.moves import moves_only
from bnn_deploy.passes.outcome import Decline, display_name
from bnn_deploy.passes.reasons import FewValues, RealInput

SAMPLES = 4

MOST = 16
"""Values that still are few."""

LEAST = 32
"""Elements of a tensor of which that can be said."""

LARGE = 100
"""The least factor that may take random numbers to both ends of a Clip or Tanh."""

SPREAD = 1e-4
"""Relative difference of two magnitudes that are one."""

_CONTINUOUS = (
    *("Abs", "Add", "BatchNormalization", "Celu", "Clip", "Concat", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid"),
    *("HardSwish", "Identity", "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax"),
    *("Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "Relu", "Resize", "Selu", "Sigmoid", "Softmax"),
    *("Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("MaxPool", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
)
"""What makes real numbers of real numbers: few values come of something else."""


def name_few_values(model: ir.Model, declined: Sequence[Decline]) -> list[Decline]:
    """Give the layers whose input turns out to have few values that as the reason, and not that it is real-valued.

    Args:
        model: the float model.
        declined: the layers that stay float.

    Returns:
        The same layers. Where nothing that makes steps stands in front of one the model is not run; where it does not
        run on random inputs, the reasons stay as they are.
    """
    candidates = {decline.node for decline in declined if isinstance(decline.why, RealInput)}
    inputs = {
        display_name(node): value
        for node in model.graph
        if is_op(node, *LAYER_OPERATORS) and display_name(node) in candidates
        if (value := node.inputs[0]) is not None and value.producer() is not None and _has_steps(value)
    }
    found = _run(model, {value.name or "": value for value in inputs.values()}) if inputs else {}
    few = {node: what for node, value in inputs.items() if (what := _few(found.get(value.name or "")))}
    return [
        replace(decline, why=FewValues(few[decline.node], inputs[decline.node].producer().op_type))  # type: ignore[union-attr]
        if decline.node in few
        else decline
        for decline in declined
    ]


def _has_steps(value: ir.Value) -> bool:
    """Whether something that may make steps stands between a value and the layers before it."""
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer()
        if node is None or is_op(node, *LAYER_OPERATORS):
            continue
        divides = is_op(node, "Div") and constant(node.inputs[1]) is not None
        if (not is_op(node, *_CONTINUOUS) and not divides and not moves_only(node)) or _magnifies(node):
            return True
        for operand in node.inputs:
            if operand is not None and operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return False


def _magnifies(node: ir.Node) -> bool:
    """Whether a node multiplies by so much that what follows may be saturated: Clip(1e9 * x, -1, 1), Tanh(1000 * x)."""
    factors = [constant(value) for value in node.inputs] if is_op(node, "Mul") else []
    return any(factor is not None and factor.size and abs(factor).min() >= LARGE for factor in factors)


def _run(model: ir.Model, wanted: dict[str, ir.Value]) -> dict[str, NDArray[Any]]:
    """Some tensors of a float model, for random inputs; none if it does not run on them."""
    rng = np.random.default_rng(0)
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in wanted]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            ir.to_proto(copy).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feed = {}
        for entry in session.get_inputs():
            sizes = [size if isinstance(size, int) else SAMPLES for size in entry.shape]
            dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}[entry.type]
            whole_range = rng.integers(0, 256, sizes) if dtype == np.uint8 else rng.standard_normal(sizes)
            feed[entry.name] = whole_range.astype(dtype)
        return dict(zip(wanted, session.run(None, feed), strict=True))
    except Exception:  # onnxruntime's exception types are not public, and it is only for a better reason
        return {}


def _few(value: NDArray[Any] | None) -> str:
    """What few values a tensor has; "" if they are not few."""
    if value is None or value.dtype.kind != "f" or value.size < LEAST or not np.isfinite(value).all():
        return ""
    distinct = np.unique(value)
    if 2 <= len(distinct) <= 3:
        return _listed(distinct)
    magnitude = np.abs(value)
    kept = {"sample": (0,), "channel": (1,), "sample and channel": (0, 1), "position": (0, *range(2, value.ndim))}
    for what, axes in kept.items() if value.min() < 0 else ():
        others = tuple(axis for axis in range(value.ndim) if axis not in axes)
        if np.prod([value.shape[axis] for axis in others]) < SAMPLES:
            continue
        high = magnitude.max(axis=others, keepdims=True)
        if (np.where(magnitude == 0, high, magnitude) >= (1 - SPREAD) * high).all():
            return f"one magnitude per {what}"
    return _listed(distinct) if 2 <= len(distinct) <= MOST else ""


def _listed(distinct: NDArray[Any]) -> str:
    return f"{len(distinct)} values ({', '.join(f'{number:.4g}' for number in distinct)})"
