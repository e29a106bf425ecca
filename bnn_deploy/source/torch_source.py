"""The PyTorch sources, a module, a checkpoint or a state dict, as a module that can be exported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bnn_deploy.architectures import ARCHITECTURES
from bnn_deploy.errors import InputError
from bnn_deploy.source.checkpoint import checkpoint_name, load_network
from bnn_deploy.source.file_kind import other_kind
from bnn_deploy.source.torch_module import precision_note, unwrap

TorchInput = nn.Module | Mapping[str, Any] | str | os.PathLike[str]
"""A module, the path of a checkpoint, or its content, such as a state dict."""


@dataclass(frozen=True)
class TorchSource:
    """A source in PyTorch.

    Attributes:
        module: the network, without wrappers.
        name: the source's name in errors: the file, or the class.
        notes: what was done to it that its user should know, one line each.
    """

    module: nn.Module
    name: str
    notes: tuple[str, ...]


def torch_source(
    source: object,
    arch: str | None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
) -> TorchSource:
    """The network of any PyTorch source.

    Args:
        source: a module, the path of a checkpoint, or its content, such as a state dict.
        arch: of a checkpoint: its architecture.
        arch_args: keyword arguments of the architecture.
        key: of a checkpoint: where its state dict is, see `load_network`.
        prefix: of a checkpoint: what its keys begin with, see `load_network`.

    Raises:
        InputError: it is something else, or its architecture is missing, or see `load_network`.
    """
    notes: tuple[str, ...] = ()
    if isinstance(source, nn.Module):
        name, loaded = "", source
    elif isinstance(source, str | os.PathLike) or (isinstance(source, Mapping) and source):
        name = checkpoint_name(source)
        if arch is None:
            file = None if isinstance(source, Mapping) else Path(source)
            if file is not None and not file.is_file():
                raise InputError(f"{name}: no such file")
            if file is not None and (what := other_kind(file)):
                raise InputError(f"{name}: {what}")
            raise InputError(f"{name}: say which architecture it is: {', '.join(ARCHITECTURES)} or FILE.py:NAME")
        loaded, notes = load_network(source, arch, arch_args, key, prefix)
    else:
        raise InputError(_what_it_is(source))
    module, taken_off = unwrap(loaded)
    return TorchSource(module, name or type(module).__name__, (*notes, *taken_off, *precision_note(module)))


def _what_it_is(source: object) -> str:
    """Why a source is none, and what to give instead."""
    sources = "a torch.nn.Module, a checkpoint's path or state dict with arch=, or an ONNX model"
    if isinstance(source, type):
        return f"{source.__name__} is a class: give a module made of it, with its weights loaded; sources are {sources}"
    return f"{type(source).__name__} is no source: give {sources}"
