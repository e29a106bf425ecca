"""What a converted model is held against, if its user does not say it: where its files are, and which code may run.

A model may come from anyone, so its metadata is never a reason to run code. FILE.py runs only if the user names it, in
the command or in a bnn-deploy.toml, or if this user has converted this very model here with that FILE.py, and it has
not changed since: the folder of `kept` says so, under the model's content. A checkpoint is data; it is looked for where
it was, beside the model and in the current folder, by its name and its content.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from bnn_deploy.errors import InputError, option, reading_metadata
from bnn_deploy.files import is_file
from bnn_deploy.kept import file_digest, find_conversion
from bnn_deploy.provenance import FileStamp, Origin, Properties, read_origin

SHOWN_DIGITS = 12
"""Digits of a SHA-256 in messages."""


@dataclass(frozen=True)
class Original:
    """What a converted model is held against.

    Attributes:
        against: the checkpoint, module or model, as `verify` takes it.
        arch: its architecture; None if it needs none.
        arch_args: keyword arguments of that.
        key: where the network's state dict is in a checkpoint.
        prefix: what its keys begin with.
        notes: how it differs from what the model was converted from, one line each.
        classes: the names of the classes that the model's metadata records.
    """

    against: Any
    arch: str | None
    arch_args: Mapping[str, Any] | None
    key: str | None
    prefix: str | None
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def find_original(model: str | os.PathLike[str], metadata: Properties, given: Original) -> Original:
    """What the user gave, completed by what is known of the model.

    Args:
        model: the converted model's file.
        metadata: its metadata.
        given: what the user gave; None for what is to be found.

    Raises:
        InputError: nothing was given to hold it against, and what it was converted from is not found, or has changed.
    """
    from bnn_deploy.source.darknet.network import is_cfg
    from bnn_deploy.source.onnx_file import is_onnx

    with reading_metadata(model):
        origin = read_origin(metadata)
    places = find_conversion(file_digest(model))
    against = _find_source(model, origin, places) if given.against is None else given.against
    is_path = isinstance(against, str | os.PathLike) and is_file(against)
    same = is_path and origin.source is not None and file_digest(against) == origin.source.sha256
    notes = []
    if is_path and origin.source is not None and not same:
        notes.append(f"{against} is not the file that the model was converted from, {_stamp(origin.source)}")
    arch, arch_args = given.arch, given.arch_args
    if arch is None and (isinstance(against, Mapping) or (is_path and not is_onnx(against) and not is_cfg(against))):
        arch = _find_arch(origin, places, same)
        arch_args = arch_args or (origin.arch_args if arch is not None else None)
        if arch is None and origin.arch is not None:
            raise InputError(_name_the_code(os.fspath(model), origin, places))
    elif arch is not None and origin.arch_file is not None:
        file = arch.rpartition(":")[0]
        if is_file(file) and file_digest(file) != origin.arch_file.sha256:
            notes.append(f"{file} is not the file that the model was converted with, {_stamp(origin.arch_file)}")
    key, prefix = given.key, given.prefix
    if same and (key, prefix) == (None, None):
        key, prefix = origin.key, origin.prefix
    return Original(against, arch, arch_args, key, prefix, tuple(notes), origin.classes)


def _find_source(model: str | os.PathLike[str], origin: Origin, places: Mapping[str, str | None]) -> Path:
    """The file that a model was converted from: where it was, beside the model, or in the current folder."""
    how = f"say what it is held against: {option('against', example='FILE')}"
    stamp = origin.source
    if stamp is None:
        raise InputError(f"{os.fspath(model)}: it does not say which file it was converted from; {how}")
    known = places.get("source")
    folders = [Path(model).parent, Path()] if _is_plain(stamp.name) else []
    candidates = [*([Path(known)] if known is not None else []), *(folder / stamp.name for folder in folders)]
    there = [path for path in candidates if is_file(path)]
    for path in there:
        if file_digest(path) == stamp.sha256:
            return path
    if there:
        raise InputError(
            f"{os.fspath(model)}: {there[0]} has changed since the conversion (it was {_stamp(stamp)}); {how}"
        )
    raise InputError(f"{os.fspath(model)}: it was converted from {_stamp(stamp)}, which is not here; {how}")


def _is_plain(name: str) -> bool:
    """Whether a name from a model's metadata is that of a file in a folder, on any system: no path."""
    return name not in ("", ".", "..") and Path(name).name == name == PureWindowsPath(name).name


def _find_arch(origin: Origin, places: Mapping[str, str | None], same: bool) -> str | None:
    """The architecture of a model: a name, or code that this user has named for this very model and that is as it was.

    Args:
        origin: what its metadata says.
        places: what is kept of its conversion here.
        same: whether the file that it is held against is the one that it was converted from.
    """
    from bnn_deploy.architectures import ARCHITECTURES

    if origin.arch in ARCHITECTURES:  # by this table alone: what is no name in it may be that of a file
        return origin.arch
    known = places.get("arch")
    if known is None:
        return None
    if origin.arch_file is None:  # the file that it was converted from holds the program
        return known if same else None
    file = known.rpartition(":")[0]
    return known if is_file(file) and file_digest(file) == origin.arch_file.sha256 else None


def _name_the_code(model: str, origin: Origin, places: Mapping[str, str | None]) -> str:
    """Why the code of an architecture is not run, and what to do."""
    how = f"code is run only if you name it: give {option('arch', origin.arch)}"
    if origin.arch_file is None:
        return f"{model}: it was converted from a file that holds its program; {how}"
    if places.get("arch") is not None:
        return f"{model}: {origin.arch_file.name} has changed since the conversion, or is gone; {how}"
    return f"{model}: it was converted with the class in {_stamp(origin.arch_file)}; {how}"


def _stamp(stamp: FileStamp) -> str:
    """A file by its name and the first digits of its content's digest."""
    return f"{stamp.name}, SHA-256 {stamp.sha256[:SHOWN_DIGITS]}..."
