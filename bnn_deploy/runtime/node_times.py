"""The times of a model's nodes, from onnxruntime's profile, and what they compute in that time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from bnn_deploy.errors import InputError
from bnn_deploy.operators.bits import WORD, words
from bnn_deploy.operators.contract import DOMAIN, FLOAT, OPERATORS, Operator, standard_macs
from bnn_deploy.operators.shapes import Call, Made
from bnn_deploy.runtime.bound import Bound
from bnn_deploy.runtime.inputs import numpy_name
from bnn_deploy.runtime.model_nodes import ModelNode, read_nodes
from bnn_deploy.runtime.profile_results import BINARY_LAYER, BIT_OPERATOR, FLOAT_LAYER, INT8_LAYER, OTHER, NodeTime

Event = dict[str, Any]
"""An event of onnxruntime's profile: a complete event of the Trace Event Format, "dur" and "ts" in µs."""

KERNEL = "_kernel_time"
"""The end of the name of an event that is one run of a node's kernel."""

RESOLVED_MS = 0.005
"""The time from which rates are given: the profiler counts whole microseconds, which is 20 % of it."""

_LAYERS = {
    "Conv": ("Conv", FLOAT_LAYER),
    "ConvTranspose": ("ConvTranspose", FLOAT_LAYER),
    **dict.fromkeys(("Gemm", "MatMul", "FusedGemm", "FusedMatMul"), ("MatMul", FLOAT_LAYER)),
    **dict.fromkeys(("FusedConv", "NhwcFusedConv"), ("Conv", FLOAT_LAYER)),
    **dict.fromkeys(("QLinearConv", "ConvInteger"), ("Conv", INT8_LAYER)),
    **dict.fromkeys(
        ("QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        ("MatMul", INT8_LAYER),
    ),
}
"""Layers that onnxruntime runs, its optimiser's and those of int8 models among them -> the standard operator whose rule
for multiply-accumulates they follow, and their kind. A Gemm is taken for a MatMul, whose rule needs no weights:
onnxruntime forgets those that it has packed."""


def is_kernel(event: Event) -> bool:
    """Whether an event is one run of a node's kernel."""
    return event.get("cat") == "Node" and str(event["name"]).endswith(KERNEL)


def node_name(event: Event) -> str:
    """The name of the node of such an event."""
    return str(event["name"]).removesuffix(KERNEL)


def node_times(
    events: Sequence[Event], warmup: int, model: str | os.PathLike[str], batch: int, bound: Bound
) -> tuple[NodeTime, ...]:
    """Read onnxruntime's profile.

    Args:
        events: the parsed profile.
        warmup: number of first events of each node to skip.
        model: the file that was run, for the attributes of nodes.
        batch: samples per run.
        bound: the machine's.
    """
    durations: dict[tuple[str, str], list[int]] = {}
    last: dict[tuple[str, str], Event] = {}
    for event in events:
        if is_kernel(event):
            key = (event["args"].get("node_index", ""), node_name(event))
            durations.setdefault(key, []).append(event["dur"])
            last[key] = event["args"]
    medians = {key: float(np.median(times[warmup:])) / 1000 for key, times in durations.items() if times[warmup:]}
    total = sum(medians.values())
    names = Counter(name for _, name in medians)
    nodes: list[ModelNode] = []
    with suppress(InputError):  # onnxruntime has run it: a file of its own format, whose attributes stay unknown
        nodes = read_nodes(model)
    found = _operators(nodes, {name: last[i, name] for i, name in medians if names[name] == 1})
    return tuple(
        _node_time(key[1], median, median / total if total else 0.0, last[key], found.get(key[1]), batch, bound)
        for key, median in medians.items()
    )


def _operators(nodes: Sequence[ModelNode], arguments: Mapping[str, Event]) -> dict[str, tuple[Call, tuple[Made, ...]]]:
    """What our operators were called with and made, by the name of the node, of those in the profile.

    Args:
        nodes: the model's, in the order of its file.
        arguments: the profile's, by the name of the node.
    """
    channels: dict[str, int] = {}
    found = {}
    for node in nodes:
        row = OPERATORS.get(node.op_type) if node.domain == DOMAIN else None
        args = arguments.get(node.name)
        if row is None or args is None or args.get("op_name") != node.op_type:
            continue
        call = Call(node.attributes, _shapes(args, "input_type_shape"), channels.get(node.inputs[0]))
        made = row.shapes(call) or ()
        made_of = zip(node.outputs, made, strict=False)
        channels |= {name: item.channels for name, item in made_of if item.channels is not None}
        found[node.name] = call, made
    return found


def _node_time(
    name: str,
    median_ms: float,
    share: float,
    args: Event,
    called: tuple[Call, tuple[Made, ...]] | None,
    batch: int,
    bound: Bound,
) -> NodeTime:
    op_type = str(args.get("op_name", ""))
    shapes = _shapes(args, "output_type_shape")
    row = OPERATORS.get(op_type) if called is not None else None
    kind, per_sample, forgotten = _other_node(op_type, args) if row is None else (_kind(row), None, 0)
    channels = unused = None
    bits: list[int | None] = [None] * len(shapes)
    if row is not None and called is not None:
        call, made = called
        per_sample = row.macs(call, made[0]) if made else None
        bits = [made[i].channels if i < len(made) and row.holds_bits(i) else None for i in range(len(shapes))]
        if kind == BINARY_LAYER and "channels" in call.attributes:
            channels = call.attributes["channels"][0] // call.attributes.get("group", (1,))[0]
            unused = 1 - channels / (WORD * words(channels))
    macs = None if per_sample is None else per_sample * batch
    size = forgotten + sum(int(args.get(part) or 0) for part in ("activation_size", "parameter_size", "output_size"))
    resolved = median_ms >= RESOLVED_MS
    rate = macs / median_ms / 1e6 if macs and resolved else None
    best = {BINARY_LAYER: bound.binary_gmacs, FLOAT_LAYER: bound.float_gmacs}.get(kind)
    return NodeTime(
        name=name,
        op_type=op_type,
        kind=kind,
        median_ms=median_ms,
        share=share,
        output_shapes=shapes,
        output_dtypes=tuple(numpy_name(dtype) for output in args.get("output_type_shape", []) for dtype in output),
        output_bits=tuple(bits),
        macs=macs,
        bytes=size,
        channels=channels,
        unused_bits=unused,
        gmacs_per_second=rate,
        gbytes_per_second=size / median_ms / 1e6 if resolved else None,
        bound_share=None if rate is None or best is None else rate / best,
    )


def _kind(row: Operator) -> str:
    if row.is_binary_layer:
        return BINARY_LAYER
    return FLOAT_LAYER if row.status == FLOAT else BIT_OPERATOR


def _other_node(op_type: str, args: Event) -> tuple[str, int | None, int]:
    """The kind, the multiply-accumulates per sample, and the bytes of forgotten weights of a node of onnxruntime."""
    if op_type not in _LAYERS:
        return OTHER, 0, 0
    standard, kind = _LAYERS[op_type]
    data, *others = _shapes(args, "input_type_shape") or ((),)
    output = next(iter(_shapes(args, "output_type_shape")), None)
    weights = next((shape for shape in others if len(shape) == len(data)), None)
    if standard == "MatMul" and weights is None and data and output:
        columns = data[-1] * output[-1]
        return kind, standard_macs(standard, data, (), output), columns * (1 if kind == INT8_LAYER else 4)
    return kind, standard_macs(standard, data, weights, output), 0


def _shapes(args: Event, key: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of a node's inputs or outputs."""
    return tuple(tuple(shape) for tensor in args.get(key, []) for shape in tensor.values())
