"""Inputs of models: read from files, checked, or made at random."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, one_line


def session_inputs(
    path: str, session: ort.InferenceSession, batch: int, data: str | os.PathLike[str] | None
) -> list[NDArray[Any]]:
    """One array per input of the model, in the order of its inputs."""
    infos = session.get_inputs()
    if data is not None:
        arrays = _load_arrays(Path(data))
        return [_sample(Path(data), arrays, info, len(infos) == 1, batch, path) for info in infos]
    rng = np.random.default_rng(0)
    result = []
    for info in infos:
        if info.type != "tensor(float)":
            raise InputError(f"{path}: input {info.name} is {info.type}: only float inputs can be random, give data")
        shape = list(info.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        elif shape and batch not in (1, shape[0]):
            raise InputError(f"{path}: input {info.name} has a fixed batch of {shape[0]}: batch {batch} does not fit")
        if not all(isinstance(size, int) for size in shape):
            raise InputError(f"{path}: input {info.name} has shape {_shape(info.shape)}: give data, to say how large")
        result.append(rng.standard_normal(shape, dtype=np.float32))
    return result


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name; the array of an .npy file has the name ''.

    Raises:
        InputError: no such file, or not a file of plain arrays.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a .npy or .npz file of plain arrays ({one_line(error, 120)})") from error


def _sample(
    path: Path, arrays: dict[str, NDArray[Any]], info: Any, only_input: bool, batch: int, model: str
) -> NDArray[Any]:
    """The first samples of the array in `path` that belongs to input `info` of the model."""
    if info.name not in arrays and (not only_input or not arrays):
        raise InputError(f"{path}: holds {', '.join(arrays) or 'no array'}, but {model} needs {info.name}")
    array = arrays[info.name] if info.name in arrays else next(iter(arrays.values()))
    fixed = info.shape[0] if info.shape and isinstance(info.shape[0], int) else None
    wanted = [None, *info.shape[1:]] if info.shape else []
    if not _fits(array.shape, wanted):
        raise InputError(
            f"{path}: shape {_shape(array.shape)} does not fit input {info.name} of {model}, {_shape(info.shape)}"
        )
    if fixed is not None and batch not in (1, fixed):
        raise InputError(f"{model}: input {info.name} has a fixed batch of {fixed}: batch {batch} does not fit")
    samples = fixed or batch
    if array.ndim and len(array) < samples:
        raise InputError(f"{path}: holds {len(array)} samples, fewer than the batch of {samples}")
    dtype = {"tensor(float)": "float32", "tensor(double)": "float64"}.get(info.type)
    dtype = dtype or info.type.removeprefix("tensor(").removesuffix(")")
    try:
        return np.ascontiguousarray(array[:samples] if array.ndim else array).astype(dtype, casting="same_kind")
    except TypeError:
        raise InputError(f"{path}: {array.dtype} does not fit input {info.name} of {model}, {info.type}") from None


def feed_of(path: str, session: ort.InferenceSession, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays by this model's input names: two exports of one network may name their inputs differently."""
    infos = session.get_inputs()
    if len(infos) != len(arrays):
        raise InputError(f"{path}: has {len(infos)} inputs, the other model {len(arrays)}")
    for info, array in zip(infos, arrays, strict=True):
        if not _fits(array.shape, info.shape):
            raise InputError(
                f"{path}: input {info.name} is {_shape(info.shape)}, the other model's {_shape(array.shape)}"
            )
    return {info.name: array for info, array in zip(infos, arrays, strict=True)}


def _fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    """Whether a shape has the wanted rank and sizes; a name or None in `wanted` is any size."""
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or size == want for size, want in zip(shape, wanted, strict=True)
    )


def _shape(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


@dataclass(frozen=True)
class Inputs:
    """The inputs that a network is run on.

    Attributes:
        x: [N, ...] float32.
        labels: classes [N], or None.
        origin: their file or kind, for reports.
    """

    x: NDArray[np.float32]
    labels: NDArray[Any] | None
    origin: str


def load_data(
    data: NDArray[np.float32] | str | os.PathLike[str] | None,
    labels: NDArray[Any] | None,
    samples: int | None,
    name: str,
    shape: tuple[int, ...] | None,
) -> Inputs:
    """Get inputs for a model.

    Args:
        data: an array, a .npy file, a .npz file, or None for 32 random normal inputs. In a .npz file the inputs are the
            array named like the model's input, or 'images', 'x', 'data', or the only array; the labels are 'labels' or
            'y'.
        labels: classes [N]; they take precedence over the file's.
        samples: number of samples to keep, from the first; None for all.
        name: the name of the model's input.
        shape: one sample's shape; None skips its check.

    Raises:
        InputError: no such file, no such array, or not float32 [N, *shape].
    """
    origin = "given array"
    if data is None:
        assert shape is not None
        data = np.random.default_rng(0).standard_normal((32, *shape)).astype(np.float32)
        origin = "random normal inputs (give --data for real ones)"
    elif not isinstance(data, np.ndarray):
        origin = str(data)
        data, found = _inputs_and_labels(Path(data), name)
        labels = found if labels is None else labels
    if data.dtype != np.float32:
        raise InputError(
            f"{origin}: the inputs are {data.dtype}; the network needs float32, normalised as in its training"
        )
    if not np.isfinite(data).all():
        raise InputError(f"{origin}: the inputs hold NaN or infinity")
    if data.ndim == 0 or len(data) == 0 or (shape is not None and data.shape[1:] != shape):
        raise InputError(
            f"{origin}: the inputs have shape {list(data.shape)}; the model needs {['N', *(shape or ['...'])]}, N >= 1"
        )
    if labels is not None and np.shape(labels) != (len(data),):
        raise InputError(
            f"{origin}: the labels have shape {list(np.shape(labels))}; {len(data)} inputs need [{len(data)}]"
        )
    return Inputs(data[:samples], None if labels is None else np.asarray(labels)[:samples], origin)


def _inputs_and_labels(path: Path, name: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The inputs and, if there are any, the labels in a file, see `load_data`."""
    arrays = _load_arrays(path)
    if "" in arrays:
        return arrays[""], None
    labels = next((arrays.pop(key) for key in ("labels", "y") if key in arrays), None)
    key = next((key for key in (name, "images", "x", "data") if key in arrays), None)
    if key is None and len(arrays) == 1:
        key = next(iter(arrays))
    if key is None:
        raise InputError(
            f"{path}: which array holds the inputs? It has {', '.join(arrays) or 'none'}; call it '{name}'"
        )
    return arrays[key], labels


def whole_batches(inputs: Inputs, batch: int | None) -> Inputs:
    """The inputs without an incomplete last batch; `batch` is the model's fixed batch size, None if it has none.

    Raises:
        InputError: there are fewer than `batch`.
    """
    if batch is None or len(inputs.x) % batch == 0:
        return inputs
    count = len(inputs.x) // batch * batch
    if count == 0:
        raise InputError(
            f"{inputs.origin}: {len(inputs.x)} inputs, but the model was exported for batches of exactly {batch}; "
            "give more --data, or export it with a dynamic batch dimension"
        )
    labels = None if inputs.labels is None else inputs.labels[:count]
    return Inputs(inputs.x[:count], labels, inputs.origin)
