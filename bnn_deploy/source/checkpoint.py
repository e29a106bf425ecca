"""Checkpoint -> torch module: safe loading, key clean-up, and every mismatch named."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnn_deploy.architectures import ARCHITECTURES, Network
from bnn_deploy.errors import InputError, one_line

LISTED = 8
"""How many keys an error names."""

# The function that rebuilds a numpy scalar: numpy 2 moved it from numpy.core to numpy._core.
_numpy_scalar = np.float64(0).__reduce__()[0]

# Checkpoints of the recipe may store the accuracy as a numpy scalar; these globals build one and run no code.
_NUMPY_SCALARS: list[Any] = [
    (np.dtype, "numpy.dtype"),
    (np.float64, "numpy.float64"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    *((getattr(np.dtypes, name), f"numpy.dtypes.{name}") for name in ("Float32DType", "Float64DType", "Int64DType")),
]


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a checkpoint's state dict without running any code in it.

    The file is a state dict, or a dict that has one under 'state_dict', 'model_state_dict', or any other name if it is
    the only one. DataParallel's `module.` and torch.compile's `_orig_mod.` are stripped from the keys:
    'module.conv1.weight' and 'features.module.0.bias' become 'conv1.weight' and 'features.0.bias'.

    Raises:
        InputError: the file is missing, truncated or not a checkpoint, or loading it would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if "Unsupported operand" in str(error) and zipfile.is_zipfile(path):
            raise InputError(
                f"{path}: its pickle protocol is not the one that torch.save writes by default and that can be read "
                "without running code (2): save it again without pickle_protocol"
            ) from error
        if found is None or found[1] == "persistent_load":
            raise InputError(f"{path}: not a PyTorch checkpoint") from error
        raise InputError(
            f"{path}: refused, because loading it would run code: it needs the Python object {found[1]}; "
            "save the weights alone, torch.save({'state_dict': model.state_dict()}, ...)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if path.open("rb").read(2) == b"PK":
            raise InputError(f"{path}: truncated or damaged ({one_line(error, 120)})") from error
        # The unpickler's message does not help the user of a file that is not a pickle.
        raise InputError(f"{path}: not a PyTorch checkpoint; expected what torch.save wrote") from error
    stripped: dict[str, Tensor] = {}
    for key, value in _weights(loaded, path).items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in stripped:
            raise InputError(f"{path}: {name} is there twice, with and without 'module.'")
        stripped[name] = value
    return stripped


_WRAPPERS = ("module", "_orig_mod")
"""The parts that DataParallel and torch.compile put into keys."""


def _weights(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a checkpoint holds: under its usual names, or the only dict of tensors that is there."""

    def tensors(value: Any) -> dict[str, Tensor]:
        items = value.items() if isinstance(value, Mapping) else ()
        return {key: item for key, item in items if isinstance(key, str) and isinstance(item, Tensor)}

    top = tensors(loaded)
    items = loaded.items() if isinstance(loaded, Mapping) else ()
    # A state dict may hold a small dict as extra state; a checkpoint may hold a stray tensor beside its state dict.
    found = {key: own for key, value in items if len(own := tensors(value)) > len(top)}
    for key in ("state_dict", "model_state_dict"):
        if key in found:
            return found[key]
    if len(found) == 1:
        return next(iter(found.values()))
    if len(found) > 1:
        listed = ", ".join(f"'{key}' ({len(own)} tensors)" for key, own in list(found.items())[:LISTED])
        raise InputError(
            f"{path}: more than one dict of tensors in it: {listed}; save the network's alone, under 'state_dict'"
        )
    if top:
        return top
    keys = f"; it has {', '.join(map(repr, list(loaded)[:LISTED]))}" if isinstance(loaded, Mapping) and loaded else ""
    raise InputError(
        f"{path}: no state dict in it: expected a dict of tensors, or one under 'state_dict' or another name{keys}"
    )


def without_prefix(state_dict: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """A state dict without a first part that all its keys share, as Lightning's "model.", if it fits a network so.

    Args:
        state_dict: of a checkpoint.
        own: the network's keys.
    """
    first = {key.partition(".")[0] for key in state_dict}
    shorter = {key.partition(".")[2]: value for key, value in state_dict.items()}
    fits = len(first) == 1 and all(key in shorter for key in own if not key.endswith("num_batches_tracked"))
    return shorter if fits else dict(state_dict)


def load_class(spec: str) -> type[nn.Module]:
    """Import CLASS from FILE.py; `spec` is FILE.py:CLASS.

    Raises:
        InputError: no such file, no such class, not an nn.Module, or the file raises when it is imported.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--arch {spec}: no such file {path}")
    # FILE.py may import modules beside it, as when it is run as a script.
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    # A prefixed module name: a file called json.py must not replace the standard library's json.
    import_name = f"bnn_deploy_arch_{path.stem}"
    try:
        module_spec = importlib.util.spec_from_file_location(import_name, path)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[import_name] = module  # dataclasses, for one, look the module up here
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--arch {spec}: importing {path} failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        sys.path.remove(folder)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
        raise InputError(
            f"--arch {spec}: {path} has no nn.Module class '{name}'; it has {', '.join(classes) or 'none'}"
        )
    return found


def build(arch: str, state_dict: Mapping[str, Tensor], arch_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the network `arch`, a name of ARCHITECTURES or FILE.py:CLASS, without weights.

    Args:
        arch: the name.
        state_dict: the weights that will be loaded; a built-in network with variants chooses one by them.
        arch_args: keyword arguments of the class.

    Raises:
        InputError: the name is unknown, or the class cannot be constructed with `arch_args`, or without arguments.
    """
    found: type[nn.Module]
    if arch in ARCHITECTURES:
        found = ARCHITECTURES[arch]
    elif ":" in arch:
        found = load_class(arch)
    else:
        raise InputError(f"unknown architecture '{arch}': choose {', '.join(ARCHITECTURES)}, or FILE.py:CLASS")
    try:
        if arch_args:
            return found(**arch_args)
        return found.for_state_dict(dict(state_dict)) if issubclass(found, Network) else found()
    except Exception as error:
        given = f"with --arch-args {json.dumps(dict(arch_args))}" if arch_args else "without arguments"
        hint = "" if arch_args or "required" not in str(error) else "; give them as JSON with --arch-args"
        raise InputError(
            f"--arch {arch}: {found.__name__}() cannot be made {given}: {type(error).__name__}: {one_line(error)}{hint}"
        ) from error


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict strictly, except that num_batches_tracked may be missing: inference does not use it.

    Args:
        module: the network; loaded in place.
        state_dict: the tensors.
        name: the checkpoint's name in errors.

    Raises:
        InputError: keys are missing, unexpected or of another shape (the message lists them), a value is NaN or
            infinite, or a running variance is negative.
    """
    own = module.state_dict()
    state_dict = without_prefix(state_dict, own)
    missing = [key for key in own if key not in state_dict and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state_dict if key not in own]
    misshaped = [
        f"{key} is {list(value.shape)}, not {list(own[key].shape)}"
        for key, value in state_dict.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:LISTED])}{', ...' if len(keys) > LISTED else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if keys
    ]
    if problems:
        raise InputError(f"{name}: its keys do not fit {type(module).__name__}: {'; '.join(problems)}")
    for key, value in state_dict.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{name}: {key} holds NaN or infinity: the training diverged; use an earlier checkpoint")
        if key.endswith("running_var") and (value < 0).any():
            channel = int(value.argmin())
            raise InputError(
                f"{name}: {key} is {float(value[channel]):g} in channel {channel}; a variance cannot be negative: "
                "the file is damaged, use another checkpoint"
            )
    module.load_state_dict(dict(state_dict), strict=False)


def load_module(path: str | os.PathLike[str], arch: str, arch_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Load a checkpoint into a network, in eval mode; its weights stay latent.

    Raises:
        InputError: as `load_state_dict`, `build` and `load_weights`.
    """
    state_dict = load_state_dict(path)
    module = build(arch, state_dict, arch_args)
    load_weights(module, state_dict, str(path))
    return module.eval()


def input_shape(module: nn.Module, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """One sample's shape: as given, else the module's own `input_shape`.

    Raises:
        InputError: no shape is given, and the module has no attribute `input_shape`.
    """
    shape = given or getattr(module, "input_shape", None)
    if shape is None:
        raise InputError(f"{type(module).__name__} has no attribute input_shape: give --input-shape C,H,W")
    return tuple(int(size) for size in shape)
