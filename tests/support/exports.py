"""Float exports that a whole session shares: one takes torch seconds, and the tests export the same networks often."""

from __future__ import annotations

import copy
import hashlib
import marshal
import pickle
import warnings
from dataclasses import replace
from types import FunctionType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from bnn_deploy.source.torch_export import FloatExport, export_float

MAX_PARAMETERS = 20_000_000
"""Larger networks, AlexNet that is, are exported anew: to keep them takes half a gigabyte."""


class SharedExports:
    """`export_float` that exports the same module once and then gives copies.

    Modules are the same if all that they hold has the same content (see `_Writer`), and their classes are the very same
    objects: a file that was changed may define others under the old names. Of a module that has something without
    content that can be written, each export is a new one.

    Attributes:
        hits: how many exports were not made anew.
    """

    def __init__(self) -> None:
        self.hits = 0
        self._made: dict[tuple[Any, ...], FloatExport] = {}

    def __call__(self, module: nn.Module, shape: tuple[int, ...]) -> FloatExport:
        key = _key(module, shape)
        if key is None:
            return export_float(module, shape)
        if key in self._made:
            self.hits += 1
        else:
            self._made[key] = export_float(module, shape)
        made = self._made[key]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch, about its own copying
            return replace(made, program=copy.deepcopy(made.program), model=made.model.clone())


class _Writer(pickle.Pickler):
    """Writes a module's content, the same bytes for the same: tensors by their values, functions by their code.

    Attributes:
        classes: all that were met, of which only the names are written.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.fast = True  # without references to what came before, which depend on which strings are one object
        self.classes: list[type] = []

    def reducer_override(self, value: Any) -> Any:
        content: tuple[Any, ...]
        if isinstance(value, Tensor):
            content = (str(value.dtype), value.shape, value.detach().numpy().tobytes())
        elif isinstance(value, nn.Module):
            # Hooks are kept by numbers that count up from one module to the next.
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


def _key(module: nn.Module, shape: tuple[int, ...]) -> tuple[Any, ...] | None:
    if sum(parameter.numel() for parameter in module.parameters()) > MAX_PARAMETERS:
        return None
    digest = hashlib.sha256()
    writer = _Writer(SimpleNamespace(write=digest.update))
    try:
        writer.dump(module)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return digest.digest(), tuple(writer.classes), tuple(shape)
