"""The sizes of the inputs of a float ONNX model: fixed, given, or left open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, ValueInfoProto, helper

from bnn_deploy.errors import InputError, option

SampleShape = tuple[int | None, ...] | Mapping[str, tuple[int | None, ...]]
"""The shape of one sample, without the batch: of the first input, or of each by its name; None leaves a size open."""

TRIED = (64, 32, 224)
"""The sizes at which a network whose sizes are open is run, if none are given."""


@dataclass(frozen=True)
class Examples:
    """Shapes, without the batch, that a model's inputs may have.

    Attributes:
        shapes: input -> shape.
        others: input -> another shape that it may have, too; empty if no size is open.
    """

    shapes: dict[str, tuple[int, ...]]
    others: dict[str, tuple[int, ...]]


def settle_sizes(model: ModelProto, name: str, sample: SampleShape | None) -> Examples:
    """Fix the sizes that `sample` gives if the network runs at no other ones; else they stay open.

    The model does not say it: exporters write open sizes for networks with a linear layer behind a map, too. So
    onnxruntime runs it at two sizes.

    Args:
        model: changed in place: the sizes, and the name of the batch, which is "batch".
        name: its name in errors.
        sample: the shape of one sample, or one that it may have; None if the model says it, or leaves it open.

    Returns:
        Shapes at which it runs.

    Raises:
        InputError: the shape of an input is unknown or not that of `sample`, `sample` names an input that is none, or
            sizes are open and it runs at none, or only one, of those tried.
    """
    given = _checked(model, name, sample)
    own = {value.name: _sizes(value) for value in model.graph.input}
    examples = Examples({key: _fill(sizes, given.get(key), 0) for key, sizes in own.items()}, {})
    unknown = [value for value in model.graph.input if 0 in examples.shapes[value.name]]
    if unknown:
        found = [{key: _fill(own[key], given.get(key), size) for key in own} for size in TRIED]
        runs = [shapes for shapes in found if _runs(model, shapes)]
        if len(runs) < 2:
            dims = unknown[0].type.tensor_type.shape.dim
            raise InputError(
                f"{name}: its input '{unknown[0].name}' has dimensions besides the batch that are not numbers "
                f"({', '.join(str(dim.dim_value or dim.dim_param or '?') for dim in dims)}); give "
                f"{option('input_shape')}"
            )
        examples = Examples(runs[0], runs[1])
    elif any(None in sizes for sizes in own.values()):
        shapes = examples.shapes
        scaled = [
            {
                key: tuple(round(b * factor) if a is None else b for a, b in zip(own[key], shapes[key], strict=True))
                for key in own
            }
            for factor in (0.5, 2)
        ]
        other = next((sizes for sizes in scaled if _runs(model, sizes)), None)
        examples = Examples(shapes, other or {})
    _name_dimensions(model, {} if examples.others else given)
    return examples


def _sizes(value: ValueInfoProto) -> tuple[int | None, ...]:
    """The sizes of an input without its first dimension; None for open ones."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim[1:])


def _fill(own: tuple[int | None, ...], given: tuple[int, ...] | None, size: int) -> tuple[int, ...]:
    """The sizes, with `given` or else `size` for the open ones."""
    return given or tuple(size if dim is None else dim for dim in own)


def _checked(model: ModelProto, name: str, sample: SampleShape | None) -> dict[str, tuple[int, ...]]:
    """The given shape of each input that has one."""
    inputs = model.graph.input
    if sample is not None and not isinstance(sample, Mapping):
        sample = {inputs[0].name: sample}
    if any(None in shape for shape in (sample or {}).values()):
        raise InputError(
            f"{name}: an ONNX model says itself which sizes are open: give {option('input_shape')} in numbers"
        )
    for key in sample or {}:
        if key not in {value.name for value in inputs}:
            known = ", ".join(value.name for value in inputs)
            raise InputError(f"{name}: it has no input '{key}', which {option('input_shape')} names; it has {known}")
    for value in inputs:
        tensor = value.type.tensor_type
        rank = len(tensor.shape.dim)
        if not tensor.HasField("shape") or (len(inputs) == 1 and rank < 2):
            raise InputError(f"{name}: its input '{value.name}' has {rank} dimensions; a batch has 2 or more")
        own, given = _sizes(value), (sample or {}).get(value.name)
        if given is not None and (
            len(given) != len(own) or any(a not in (None, b) for a, b in zip(own, given, strict=True))
        ):
            which = "its input" if len(inputs) == 1 else f"its input '{value.name}'"
            raise InputError(
                f"{name}: {which} is {['N', *own]}, which {option('input_shape')} {list(given)} does not fit"
            )
    return {key: tuple(size or 0 for size in shape) for key, shape in (sample or {}).items()}


def _runs(model: ModelProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether onnxruntime runs the model on ones of these shapes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        first = [dim.dim_value or 1 for dim in tensor.shape.dim[:1]]
        feed[value.name] = np.ones([*first, *shapes[value.name]], helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, feed)
    except Exception:  # onnxruntime's exception types are not public
        return False
    return True


def _name_dimensions(model: ModelProto, fixed: dict[str, tuple[int, ...]]) -> None:
    """Fix sizes, name the batch "batch", that of the first input with an open first dimension, and all open sizes."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for i, dim in enumerate(dims[1:], start=1):
            if value.name in fixed:
                dim.dim_value = fixed[value.name][i - 1]
            elif not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{value.name}_{i}"
        if dims and not dims[0].HasField("dim_value"):
            # Two inputs have the same batch if they give it the same name.
            key = dims[0].dim_param or value.name
            dims[0].dim_param = names.setdefault(key, f"batch_{value.name}" if names else "batch")
    if names:
        del model.graph.value_info[:]  # recorded shapes may have another name for the batch
        for value in model.graph.output if len(model.graph.output) > 1 else ():
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in names:
                    dim.dim_param = names[dim.dim_param]
