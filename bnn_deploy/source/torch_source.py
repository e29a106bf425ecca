"""The PyTorch sources, a module, a checkpoint or a state dict, as a module that can be exported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bnn_deploy.architectures import ARCHITECTURES
from bnn_deploy.errors import InputError
from bnn_deploy.source.checkpoint import build, load_module, load_weights
from bnn_deploy.source.torch_module import precision_note, unwrap

TorchInput = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
"""A module, a state dict, or the path of a checkpoint."""


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


def torch_source(source: object, arch: str | None, arch_args: Mapping[str, Any] | None) -> TorchSource:
    """The network of any PyTorch source.

    Args:
        source: a module, the path of a checkpoint, or a state dict.
        arch: of a checkpoint or a state dict: its architecture.
        arch_args: keyword arguments of the architecture.

    Raises:
        InputError: it is something else, or its architecture is missing, or see `load_module`.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        loaded = load_module(source, _needed(arch, name), arch_args)
    elif isinstance(source, nn.Module):
        name, loaded = "", source
    elif isinstance(source, Mapping) and source and all(isinstance(value, Tensor) for value in source.values()):
        name = "the state dict"
        loaded = build(_needed(arch, name), source, arch_args)
        load_weights(loaded, source, name)
        loaded = loaded.eval()
    else:
        raise InputError(_what_it_is(source))
    module, notes = unwrap(loaded)
    return TorchSource(module, name or type(module).__name__, (*notes, *precision_note(module)))


def _needed(arch: str | None, name: str) -> str:
    if arch is None:
        raise InputError(f"{name}: say which architecture it is: {', '.join(ARCHITECTURES)} or FILE.py:CLASS")
    return arch


def _what_it_is(source: object) -> str:
    """Why a source is none, and what to give instead."""
    sources = "a torch.nn.Module, a checkpoint's path or state dict with arch=, or an ONNX model"
    if isinstance(source, type):
        return f"{source.__name__} is a class: give a module made of it, with its weights loaded; sources are {sources}"
    if isinstance(source, Mapping):
        keys = ", ".join(repr(key) for key in list(source)[:8])
        return f"the dict with the keys {keys or 'none'} is no state dict, name -> tensor; sources are {sources}"
    return f"{type(source).__name__} is no source: give {sources}"
