"""Checkpoint -> torch module: safe loading, the state dict wherever it is in the file, and every mismatch named."""

from __future__ import annotations

import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bnn_deploy.errors import InputError, SetupError, one_line, option, reading
from bnn_deploy.file_kind import other_kind
from bnn_deploy.files import require_file
from bnn_deploy.source.network_file import build
from bnn_deploy.source.user_code import without_output

LISTED = 8
"""How many keys an error names."""

# The functions that rebuild a numpy scalar and array: numpy 2 moved them from numpy.core to numpy._core.
_numpy_scalar = np.float64(0).__reduce__()[0]
_numpy_array = np.zeros(1).__reduce__()[0]

# Checkpoints may store the accuracy as a numpy scalar, or random states as arrays; these globals run no code.
_NUMPY: list[Any] = [
    (np.dtype, "numpy.dtype"),
    (np.ndarray, "numpy.ndarray"),
    (np.float64, "numpy.float64"),
    *((_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_numpy_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *(
        (getattr(np.dtypes, name), f"numpy.dtypes.{name}")
        for name in vars(np.dtypes)
        if re.fullmatch(r"(Bool|(U?Int|Float|Complex)\d+|Str|Bytes|DateTime64|TimeDelta64)DType", name)
    ),
]


class _Option(dict[Any, Any]):
    """Stands for an object of the training, such as its options; the code of its own class does not run."""

    def __new__(cls, *args: Any) -> _Option:
        """One without content."""
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key, or in a set

    def __setstate__(self, state: Any) -> None:
        """Take no state."""

    def extend(self, items: Any) -> None:
        """Take no items."""


_OPTIONS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|typing\.Any"
    r"|collections\.defaultdict|builtins\.(dict|list|int|float|str|bool|tuple|frozenset|range|slice)"
    r"|datetime\.(date|time|datetime|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction|uuid\.UUID"
    r"|numpy\.random\.[\w.]+"
    r"|(pytorch_lightning|lightning|lightning_fabric)\.[\w.]+\.AttributeDict|omegaconf\.[\w.]+"
    r"|(yacs|fvcore\.common)\.config\.CfgNode|ml_collections\.[\w.]+|mmengine\.config\.[\w.]+|munch\.Munch"
    r"|easydict\.EasyDict|addict(\.addict)?\.Dict|torch\.(nn\.modules\.(loss|activation)|optim|amp|cuda\.amp)\.[\w.]+"
    r"|__main__\.\w+"
)
"""The classes that `_Option` stands for: options, losses, optimizers and random states that a script saved beside the
weights, and the script's own classes. Whatever their names are, nothing of them runs."""


_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
"""What the first pickle of a file holds that torch.save wrote in its old form, which is no zip archive."""


class LoadedNetwork(NamedTuple):
    """A network with the weights of a checkpoint.

    Attributes:
        module: in eval mode; its weights are latent.
        notes: what its user should know: a line for what was left out, and for other state dicts that fit.
        accuracy: what the checkpoint says of its accuracy, beside its weights: the key -> the number there.
    """

    module: nn.Module
    notes: tuple[str, ...]
    accuracy: dict[str, float]


def state_dicts(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Read the state dicts in a checkpoint without running any code in it.

    A file is what torch.save wrote, with dicts of tensors at any depth, or a safetensors file. DataParallel's
    `module.` and torch.compile's `_orig_mod.` are stripped from the keys of the tensors: 'module.conv1.weight' and
    'features.module.0.bias' become 'conv1.weight' and 'features.0.bias'.

    Returns:
        The state dicts by their keys in the file: "ema.model" is under "model" in the dict under "ema", "0" the first
        of a tuple, "" the file itself. The state of optimizers, and smaller dicts in a state dict, are left out.

    Raises:
        InputError: the file is missing, truncated or not a checkpoint, or loading it would run code.
    """
    return _read_checkpoint(source)[0]


def _read_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The state dicts in a checkpoint, and what it says of its accuracy."""
    path = checkpoint_name(source)
    found: dict[str, dict[str, Tensor]] = {}
    with reading(path, "not a PyTorch checkpoint, or a damaged one"):
        loaded: Any = source if isinstance(source, Mapping) else _read(Path(source))
        _collect(loaded, "", found)
        accuracy = _accuracy(loaded)
    if not found:
        has = (
            f"; it has {', '.join(map(repr, list(loaded)[:LISTED]))}" if isinstance(loaded, Mapping) and loaded else ""
        )
        raise InputError(f"{path}: no state dict in it: expected a dict of tensors, or one under some name{has}")
    return {key: _without_wrappers(own, path) for key, own in found.items()}, accuracy


_ACCURACY = re.compile(r"(best|val|valid|test|top)?_?(val|valid|test|top)?_?(acc|accuracy|prec|precision|top)_?[15]?")
"""The keys under which scripts save what they measured: best_acc, best_acc1, val_accuracy, best_prec1, top1."""


def _has_one(value: Tensor | np.generic) -> bool:
    return (value.numel() if isinstance(value, Tensor) else value.size) == 1


def _accuracy(loaded: Any) -> dict[str, float]:
    """The numbers of a checkpoint's own keys that name an accuracy."""
    found = {}
    for key, value in loaded.items() if isinstance(loaded, Mapping) else ():
        if not isinstance(key, str) or not _ACCURACY.fullmatch(key.lower()):
            continue
        number = value.item() if isinstance(value, Tensor | np.generic) and _has_one(value) else value
        if isinstance(number, int | float) and math.isfinite(number):
            found[key] = float(number)
    return found


def checkpoint_name(source: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    """What to call a checkpoint in errors."""
    return "the state dict" if isinstance(source, Mapping) else os.fspath(source)


def _read(path: Path) -> Any:
    require_file(path)
    if (other := other_kind(path)) is not None:
        raise InputError(f"{path}: {other}")
    return _load_safetensors(path) if _is_safetensors(path) else _load(path)


def _load(path: Path) -> Any:
    """What torch.save wrote, but for objects of `_OPTIONS`."""
    allowed = list(_NUMPY)
    while True:
        try:
            with torch.serialization.safe_globals(allowed), without_output():
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            name = "" if found is None else found[1] if "." in found[1] else f"builtins.{found[1]}"
            if _OPTIONS.fullmatch(name) and (_Option, name) not in allowed:
                allowed.append((_Option, name))
                continue
            if "Unsupported operand" in str(error) and (zipfile.is_zipfile(path) or _MAGIC in _starts(path, 64)):
                raise InputError(
                    f"{path}: its pickle protocol is not the one that torch.save writes by default and that can be "
                    "read without running code (2): save it again without pickle_protocol"
                ) from error
            if found is None or found[1] == "persistent_load":
                raise InputError(f"{path}: not a PyTorch checkpoint") from error
            raise InputError(
                f"{path}: refused, because loading it would run code: it needs the Python object {found[1]}; "
                "save the weights alone, torch.save({'state_dict': model.state_dict()}, ...)"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            if _starts(path, 2) == b"PK":
                raise InputError(f"{path}: truncated or damaged ({one_line(error, 120)})") from error
            # The unpickler's message does not help the user of a file that is not a pickle.
            raise InputError(f"{path}: not a PyTorch checkpoint; expected what torch.save wrote") from error


def _starts(path: Path, count: int) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(count)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors' do: with the length of a header in JSON, 8 bytes, little-endian."""
    start = _starts(path, 9)
    return path.suffix == ".safetensors" or (start[8:] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise SetupError(f"{path}: reading it needs the package safetensors: pip install safetensors") from error
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or a damaged one ({one_line(error, 120)})") from error
    return tensors


def _collect(value: Any, key: str, found: dict[str, dict[str, Tensor]]) -> None:
    """Add the state dicts in `value`, which stands under `key` in the file, to `found`."""
    own = {}
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping) and not ("param_groups" in value and "state" in value):
        items = value.items()
        own = {name: item for name, item in items if isinstance(name, str) and isinstance(item, Tensor)}
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    inner: dict[str, dict[str, Tensor]] = {}
    for name, item in items:
        _collect(item, f"{key}.{name}" if key else str(name), inner)
    # A state dict may hold a small dict as extra state; a checkpoint may hold a stray tensor beside its state dict.
    larger = {name: tensors for name, tensors in inner.items() if len(tensors) > len(own)}
    found.update(larger or ({key: own} if own else {}))


_WRAPPERS = ("module", "_orig_mod")
"""The parts that DataParallel and torch.compile put into keys."""


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _without_wrappers(state_dict: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    stripped: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = _unwrapped(key)
        if name in stripped:
            raise InputError(f"{path}: {name} is there twice, with and without 'module.'")
        stripped[name] = value
    return stripped


def _candidates(found: Mapping[str, dict[str, Tensor]], key: str | None, path: str) -> list[str]:
    """The keys under which the network may be: the one that the user or its name says, or all."""
    if key is not None:
        if key not in found:
            raise InputError(f"{path}: no state dict under {option('key', key)}; it has {_listed(found)}")
        return [key]
    usual = [name for name in ("state_dict", "model_state_dict") if name in found]
    return usual[:1] or list(found)


def _listed(found: Mapping[str, dict[str, Tensor]]) -> str:
    shown = ", ".join(f"'{key}' ({len(own)} tensors)" for key, own in list(found.items())[:LISTED])
    return shown + (", ..." if len(found) > LISTED else "")


def with_prefix(state_dict: Mapping[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict whose keys begin with `prefix`, which ends in a dot or not, without it.

    Raises:
        InputError: there are none.
    """
    prefix = prefix.rstrip(".") + "."
    chosen = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if not chosen:
        firsts = list(dict.fromkeys(key.partition(".")[0] for key in state_dict))
        listed = ", ".join(firsts[:LISTED]) + (", ..." if len(firsts) > LISTED else "")
        raise InputError(f"{name}: no key begins with {option('prefix', prefix)}; they begin with {listed}")
    return chosen


def _prefixes(state_dict: Mapping[str, Tensor], own: Iterable[str]) -> list[str]:
    """The prefixes, "" or such as "model.", with which all keys of a network are in a state dict."""
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    if not wanted:
        return [""]
    ends = [key for key in state_dict if key == wanted[0] or key.endswith(f".{wanted[0]}")]
    possible = [key.removesuffix(wanted[0]) for key in ends]
    return [prefix for prefix in possible if all(prefix + key in state_dict for key in wanted)]


def fit(state_dict: Mapping[str, Tensor], keys: Iterable[str], name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict with the keys of a network: without a prefix, such as Lightning's "model.", with which it fits.

    Args:
        state_dict: of a checkpoint.
        keys: the network's.
        name: the checkpoint's name in errors.

    Returns:
        The state dict, as it is if no prefix makes it fit; and a line about the keys that were left out, if any were.

    Raises:
        InputError: it fits with several prefixes.
    """
    own = {_unwrapped(key): key for key in keys}
    # AveragedModel counts in it what it averaged.
    state_dict = {key: value for key, value in state_dict.items() if key != "n_averaged" or key in own}
    prefixes = _prefixes(state_dict, own)
    if "" in prefixes or not prefixes:
        return {own.get(key, key): value for key, value in state_dict.items()}, ()
    if len(prefixes) > 1:
        raise InputError(
            f"{name}: its keys fit with several prefixes: {', '.join(prefixes)}; say which with {option('prefix')}"
        )
    chosen = {own.get(key, key): value for key, value in with_prefix(state_dict, prefixes[0], name).items()}
    left = [key for key in state_dict if not key.startswith(prefixes[0])]
    listed = ", ".join(left[:LISTED]) + (", ..." if len(left) > LISTED else "")
    return chosen, ((f"{len(left)} tensors outside of '{prefixes[0]}' were left out: {listed}",) if left else ())


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    """Load a state dict strictly, except that num_batches_tracked may be missing: inference does not use it.

    See `fit` for prefixes of its keys.

    Args:
        module: the network; loaded in place.
        state_dict: the tensors.
        name: the checkpoint's name in errors.

    Returns:
        A line about tensors that were left out, if any were.

    Raises:
        InputError: keys are missing, unexpected or of another shape (the message lists them), a value is NaN or
            infinite, or a running variance is negative.
    """
    own = module.state_dict()
    state_dict, notes = fit(state_dict, own, name)
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
        with reading(name, f"its {key} cannot be used"):  # a tensor without memory, sparse, quantised or complex
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise InputError(
                    f"{name}: {key} holds NaN or infinity: the training diverged; use an earlier checkpoint"
                )
            if key.endswith("running_var") and (value < 0).any():
                channel = int(value.argmin())
                raise InputError(
                    f"{name}: {key} is {float(value[channel]):g} in channel {channel}; a variance cannot be negative: "
                    "the file is damaged, use another checkpoint"
                )
    with reading(name, f"its tensors cannot be loaded into {type(module).__name__}"):
        module.load_state_dict(state_dict, strict=False)
    return notes


def load_network(
    source: str | os.PathLike[str] | Mapping[str, Any],
    arch: str,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
) -> LoadedNetwork:
    """Load a checkpoint into a network, in eval mode; its weights stay latent.

    Args:
        source: a checkpoint's path, or its content.
        arch: as `build` takes it.
        arch_args: likewise.
        key: where its state dict is, as of `state_dicts`; None for `state_dict`, `model_state_dict`, the only one, the
            only one that fits the network, or of several that fit, `model`.
        prefix: of the keys of the network's tensors; None for the only one with which they fit.

    Raises:
        InputError: as `state_dicts`, `build` and `load_weights`; or several state dicts fit, or there is none at `key`.
    """
    (found, accuracy), path = _read_checkpoint(source), checkpoint_name(source)
    names = _candidates(found, key, path)
    largest = max((found[name] for name in names), key=len)
    module = build(arch, largest, arch_args)
    own = [_unwrapped(name) for name in module.state_dict()]
    fitting = [name for name, state in found.items() if _prefixes(state, own)]
    if len(names) > 1:
        names = [name for name in names if name in fitting]
        names = ["model"] if "model" in names else names  # beside an average of it, for instance
        if len(names) != 1:
            which = "more than one fits" if names else "none fits"
            raise InputError(
                f"{path}: it has several dicts of tensors, and {which} {type(module).__name__}: {_listed(found)}; "
                f"say which with {option('key')}"
            )
    state_dict = found[names[0]]
    if state_dict is not largest:
        module = build(arch, state_dict, arch_args)
    others = [name for name in fitting if name not in names]
    also = (
        (f"loaded was '{names[0]}'; {option('key')} takes another that fits: {', '.join(others[:LISTED])}",)
        if others
        else ()
    )
    if prefix is not None:
        state_dict = with_prefix(state_dict, prefix, path)
    notes = load_weights(module, state_dict, path)
    return LoadedNetwork(module.eval(), (() if key is not None else also) + notes, accuracy)


def load_module(path: str | os.PathLike[str], arch: str, arch_args: Mapping[str, Any] | None = None) -> nn.Module:
    """`load_network` without its notes."""
    return load_network(path, arch, arch_args).module
