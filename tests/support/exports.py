"""Float exports shared by a test session: torch takes seconds for one, and tests export the same networks often."""

from __future__ import annotations

import copy
import functools
import hashlib
import marshal
import pickle
import warnings
from dataclasses import replace
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from bnn_deploy.source.module_inputs import ModuleInputs, one_input
from bnn_deploy.source.torch_export import FloatExport, export_float

MAX_PARAMETERS = 20_000_000
"""Larger networks (AlexNet) are exported anew: keeping them takes half a gigabyte."""


def keep_exporter_tables(patch: pytest.MonkeyPatch) -> None:
    """Let the exporter make its tables of all operators once: else each export does, in a third of its time."""
    patch.setattr(
        torch._export.utils, "_materialize_cpp_cia_ops", functools.cache(torch._export.utils._materialize_cpp_cia_ops)
    )
    made = functools.cache(ONNXRegistry.from_torchlib)

    def registry(opset_version: int) -> ONNXRegistry:
        own = copy.copy(made(opset_version))
        own.functions = {name: list(forms) for name, forms in own.functions.items()}
        return own

    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))


class SharedExports:
    """`export_float` that exports equal modules once and then returns copies.

    Modules are equal if `_Writer` writes the same bytes for them and their classes are the same objects: a changed file
    may define other classes under the old names. A module with an attribute that `_Writer` cannot write is exported
    anew each time.

    Attributes:
        hits: number of exports that were copies.
    """

    def __init__(self) -> None:
        self.hits = 0
        self._made: dict[tuple[Any, ...], FloatExport] = {}

    def __call__(self, module: nn.Module, inputs: ModuleInputs | tuple[int, ...]) -> FloatExport:
        key = _key(module, one_input(inputs) if isinstance(inputs, tuple) else inputs)
        if key is None:
            return export_float(module, inputs)
        if key in self._made:
            self.hits += 1
        else:
            self._made[key] = export_float(module, inputs)
        made = self._made[key]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch warns about its own deepcopy
            return replace(made, program=copy.deepcopy(made.program), model=made.model.clone())


class _Writer(pickle.Pickler):
    """Writes a module's content, equal content as equal bytes: tensors by value, functions by code.

    Attributes:
        classes: all classes that were written, by name only.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.fast = True  # no references to earlier objects: they depend on which strings are identical objects
        self.classes: list[type] = []

    def reducer_override(self, value: Any) -> Any:
        content: tuple[Any, ...]
        if isinstance(value, Tensor):
            content = (str(value.dtype), value.shape, value.detach().numpy().tobytes())
        elif isinstance(value, nn.Module):
            # The keys of hooks come from a global counter, so only the hooks themselves are written.
            state = {name: [*held.values()] if "_hooks" in name else held for name, held in vars(value).items()}
            content = (type(value), state)
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            content = (
                value.__qualname__,
                marshal.dumps(value.__code__),
                value.__defaults__,
                value.__kwdefaults__,
                cells,
            )
        elif isinstance(value, type) and value is not list:
            self.classes.append(value)
            content = (value.__module__, value.__qualname__)
        else:
            return NotImplemented
        return list, (content,)


def _key(module: nn.Module, inputs: ModuleInputs) -> tuple[Any, ...] | None:
    if sum(parameter.numel() for parameter in module.parameters()) > MAX_PARAMETERS:
        return None
    digest = hashlib.sha256()
    writer = _Writer(SimpleNamespace(write=digest.update))
    try:
        writer.dump(module)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return digest.digest(), tuple(writer.classes), inputs
