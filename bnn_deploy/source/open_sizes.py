"""Sizes that a module's inputs leave open: an example, names, and the check against forward() at other sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnn_deploy.errors import InputError, option
from bnn_deploy.source.input_sizes import TRIED
from bnn_deploy.source.module_inputs import ModuleInputs
from bnn_deploy.source.torch_module import as_written, difference, own_copy
from bnn_deploy.source.user_code import why

OTHERS: tuple[Callable[[int, int], int], ...] = (
    lambda size, i: size * 2 if i % 2 == 0 else size * 3 // 2,
    lambda size, i: size * 2,
    lambda size, i: size + 1 + 2 * (i % 2),
)
"""Other sizes than an example's: two that differ, two that are equal, and odd ones; `i` counts the open dimensions."""


def resized(inputs: ModuleInputs, size: Callable[[int, int], int]) -> ModuleInputs:
    """The inputs with other sizes for those that are open."""
    items = []
    for item in inputs.items:
        shape = list(item.shape)
        for i, dimension in enumerate(item.open):
            shape[dimension] = size(shape[dimension], i)
        items.append(replace(item, shape=tuple(shape), given=None if item.open else item.given))
    return replace(inputs, items=tuple(items))


def with_example_sizes(module: nn.Module, inputs: ModuleInputs, name: str) -> ModuleInputs:
    """The inputs; open sizes without an example get the first of TRIED at which the module runs.

    Raises:
        InputError: it runs at none.
    """
    if all(item.shape[i] for item in inputs.items for i in item.open):
        return inputs
    own = own_copy(module)
    for size in TRIED:
        tried = resized(inputs, lambda old, i, new=size: new)  # type: ignore[misc]
        try:
            with torch.no_grad(), as_written():
                tried.call(own, tried.example())
        except Exception as error:  # whatever forward() raises
            reason = why(error)
            continue
        return tried
    raise InputError(
        f"{name}: {option('input_shape')} leaves sizes open, and it runs at none of {', '.join(map(str, TRIED))} "
        f"({reason}): give numbers, or example_inputs=, too, in Python"
    )


def name_sizes(model: ir.Model, inputs: ModuleInputs, name: str) -> None:
    """Name the sizes that are open, as input_2, in every shape; torch.export names them s53 or similar.

    Raises:
        InputError: one is not open in the model: forward() runs at that size alone.
    """
    names: dict[str, str] = {}
    for value, item in zip(model.graph.inputs, inputs.items, strict=True):
        for dimension in (i + item.has_batch for i in item.open):
            assert value.shape is not None
            size = value.shape[dimension]
            if isinstance(size, int):
                raise InputError(
                    f"{name}: forward() takes the size {size} alone in dimension {dimension} of {item}, which "
                    f"{option('input_shape')} leaves open, such as by view(-1, {size}): give numbers"
                )
            names.setdefault(str(size.value), f"{item.name}_{dimension}")
    if not names:
        return
    symbols = re.compile(rf"\b({'|'.join(names)})\b")
    for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else size.value for size in value.shape]
            value.shape = ir.Shape(
                [symbols.sub(lambda m: names[m[1]], size) if isinstance(size, str) else size for size in sizes]
            )


def require_other_sizes(
    module: nn.Module, inputs: ModuleInputs, model: ir.Model, name: str, limit: float
) -> dict[str, tuple[int, ...]]:
    """Hold a float model, in onnxruntime, against forward() at other sizes than the example's.

    Args:
        module: the module, in eval mode.
        inputs: its inputs, some with open sizes; if none, nothing is done.
        model: the float model.
        name: the module's name in errors.
        limit: the largest difference that counts as rounding, see `difference`.

    Returns:
        Shapes of the inputs at which they agree.

    Raises:
        InputError: forward() runs at no other size, or computes something else there.
    """
    if not any(item.open for item in inputs.items):
        return {}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: dict[str, tuple[int, ...]] = {}
    for size in OTHERS:
        other = resized(inputs, size)
        tensors = other.random(2, 1, 1)
        try:
            with torch.no_grad(), as_written():
                expected: list[Any] = [x for x in tree_leaves(other.call(module, tensors)) if isinstance(x, Tensor)]
        except Exception:  # a size that is no multiple of its strides, say
            continue
        feed = {item.name: x.numpy() for item, x in zip(other.items, tensors, strict=True)}
        try:
            off = difference([torch.from_numpy(x) for x in session.run(None, feed)], expected)
            what = f"gives something else than forward(), by up to {off:.2g} standard deviations"
        except Exception:  # onnxruntime's exception types are not public
            off, what = math.inf, "does not run, unlike forward(), such as by a view() with sizes in numbers"
        if off > limit:
            at = ", ".join(map(str, other.items))
            raise InputError(
                f"{name}: {option('input_shape')} leaves sizes open, but at {at} its export {what}: give numbers"
            )
        found = found or {item.name: item.shape for item in other.items}
    if not found:
        raise InputError(
            f"{name}: {option('input_shape')} leaves sizes open, but forward() runs at no other ones than those of "
            f"{', '.join(map(str, inputs.items))} that were tried: give numbers"
        )
    return found
