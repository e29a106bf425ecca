"""The PyTorch sources, a module, a checkpoint or a state dict, as a module that can be exported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnn_deploy.architectures import ARCHITECTURES
from bnn_deploy.errors import InputError, one_line, option
from bnn_deploy.file_kind import other_kind
from bnn_deploy.files import require_file
from bnn_deploy.source.checkpoint import checkpoint_name, load_network
from bnn_deploy.source.torch_module import class_name, precision_note, unwrap
from bnn_deploy.source.user_code import without_output

TorchInput = nn.Module | torch.export.ExportedProgram | Mapping[str, Any] | str | os.PathLike[str]
"""A module or program of torch.export, or the path of one, or of a checkpoint, or its content, such as a state dict."""

PROGRAMS: dict[str, Callable[[str], nn.Module | torch.export.ExportedProgram]] = {
    "torchscript": lambda path: torch.jit.load(path, map_location="cpu"),  # type: ignore[no-untyped-call]
    "exported-program": torch.export.load,
}
"""Values of --arch for files that hold a program beside its weights, which loading and converting it runs."""


@dataclass(frozen=True)
class TorchSource:
    """A source in PyTorch.

    Attributes:
        module: the network, without wrappers; or a program of torch.export.
        name: the source's name in errors: the file, or the class.
        notes: what was done to it that its user should know, one line each.
        accuracy: what a checkpoint says of its accuracy, see `LoadedNetwork`.
    """

    module: nn.Module | torch.export.ExportedProgram
    name: str
    notes: tuple[str, ...]
    accuracy: dict[str, float] = field(default_factory=dict)


def torch_source(
    source: object,
    arch: str | None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
) -> TorchSource:
    """The network of any PyTorch source.

    Args:
        source: a module, a program of torch.export, the path of a checkpoint, or its content, such as a state dict.
        arch: of a checkpoint: its architecture; of a file that holds a program: one of PROGRAMS.
        arch_args: keyword arguments of the architecture.
        key: of a checkpoint: where its state dict is, see `load_network`.
        prefix: of a checkpoint: what its keys begin with, see `load_network`.

    Raises:
        InputError: it is something else, or its architecture is missing, or see `load_network`.
    """
    notes: tuple[str, ...] = ()
    accuracy: dict[str, float] = {}
    if isinstance(source, torch.export.ExportedProgram):
        return TorchSource(source, "the program", ())
    if isinstance(source, str | os.PathLike) and arch in PROGRAMS:
        name = os.fspath(source)
        program = _load_program(name, arch)
        if isinstance(program, torch.export.ExportedProgram):
            return TorchSource(program, name, ())
        loaded = program
    elif isinstance(source, nn.Module):
        name, loaded = "", source
    elif isinstance(source, str | os.PathLike) or (isinstance(source, Mapping) and source):
        name = checkpoint_name(source)
        if arch is None:
            file = None if isinstance(source, Mapping) else Path(source)
            if file is not None:
                require_file(file)
            if file is not None and (what := other_kind(file)):
                raise InputError(f"{name}: {what}")
            raise InputError(f"{name}: say which architecture it is: {', '.join(ARCHITECTURES)} or FILE.py:NAME")
        loaded, notes, accuracy = load_network(source, arch, arch_args, key, prefix)
    else:
        raise InputError(_what_it_is(source))
    module, taken_off = unwrap(loaded)
    notes = (*notes, *taken_off, *precision_note(module))
    return TorchSource(module, name or class_name(module), notes, accuracy)


def _load_program(path: str, arch: str) -> nn.Module | torch.export.ExportedProgram:
    """Load a file that holds a program."""
    require_file(path)
    try:
        with without_output():
            return PROGRAMS[arch](path)
    except Exception as error:  # torch has no type for it
        raise InputError(f"{path}: not what {option('arch', arch)} says, or damaged: {one_line(error, 120)}") from error


def _what_it_is(source: object) -> str:
    """Why a source is none, and what to give instead."""
    sources = "a torch.nn.Module or ExportedProgram, a checkpoint's path or state dict with arch=, or an ONNX model"
    if isinstance(source, type):
        return f"{source.__name__} is a class: give a module made of it, with its weights loaded; sources are {sources}"
    return f"{type(source).__name__} is no source: give {sources}"
