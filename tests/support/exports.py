"""Float exports shared by a test session: torch takes seconds for one, and tests export the same networks often."""

from __future__ import annotations

import copy
import functools
import hashlib
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from bnn_deploy.source.kept_exports import write_module
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

    Modules are equal if `write_module` writes the same for them and their classes are the same objects: a changed file
    may define other classes under the old names. A module with an attribute that cannot be written is exported anew
    each time.

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


def _key(module: nn.Module, inputs: ModuleInputs) -> tuple[Any, ...] | None:
    if sum(parameter.numel() for parameter in module.parameters()) > MAX_PARAMETERS:
        return None
    digest = hashlib.sha256()
    classes = write_module(module, digest)
    return None if classes is None else (digest.digest(), tuple(classes), inputs)
