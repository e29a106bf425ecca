"""Inputs of models: read from files, checked, or made at random."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.data.dataset import open_data
from bnn_deploy.data.pictures import ArrayPictures, EncodedPicture, FloatPictures, Pictures, prepared
from bnn_deploy.data.rows import Rows, chosen, mapped
from bnn_deploy.errors import InputError, about, one_line, option, reading_metadata
from bnn_deploy.preprocessing import Preprocessing, read_preprocessing
from bnn_deploy.provenance import read_shapes


def session_inputs(
    path: str, session: ort.InferenceSession, batch: int, data: str | os.PathLike[str] | None
) -> list[NDArray[Any]]:
    """One array per input of the model, in the order of its inputs."""
    infos = session.get_inputs()
    with reading_metadata(path):
        wanted = read_inputs(session)
    if data is not None:
        arrays = _arrays(data, wanted)
        return [_sample(os.fspath(data), arrays, info, len(infos) == 1, batch, path) for info in infos]
    rng = np.random.default_rng(0)
    result = []
    for info, item in zip(infos, wanted, strict=True):
        shape = list(info.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        elif shape and batch not in (1, shape[0]):
            raise InputError(f"{path}: input {info.name} has a fixed batch of {shape[0]}: batch {batch} does not fit")
        with about(path):
            result.append(random_array(rng, item, shape[0] if shape and isinstance(shape[0], int) else None))
    return result


_SCALED = Preprocessing(mean=(0.0,), std=(1.0,))
"""For images to be measured on where the model records nothing: its time does not depend on their normalisation."""


def _arrays(data: str | os.PathLike[str], wanted: Sequence[InputSpec]) -> Mapping[str, Rows]:
    """The arrays of a path; those of images as inputs of the model."""
    dataset = open_data(data)
    images = any(rows.dtype == np.uint8 for rows in dataset.arrays.values())
    if dataset.files is None and not (images and any(item.dtype != "uint8" for item in wanted)):
        return dataset.arrays
    scaled = [replace(item, preprocessing=(item.preprocessing or Preprocessing()).over(_SCALED)) for item in wanted]
    return load_data(data, None, None, scaled).arrays


def _sample(path: str, arrays: Mapping[str, Rows], info: Any, only_input: bool, batch: int, model: str) -> NDArray[Any]:
    """The first samples of the array in `path` that belongs to input `info` of the model."""
    if info.name not in arrays and (not only_input or not arrays):
        raise InputError(f"{path}: holds {', '.join(arrays) or 'no array'}, but {model} needs {info.name}")
    array = arrays[info.name] if info.name in arrays else next(iter(arrays.values()))
    fixed = info.shape[0] if info.shape and isinstance(info.shape[0], int) else None
    wanted = [None, *info.shape[1:]] if info.shape else []
    if not fits(array.shape, wanted):
        raise InputError(
            f"{path}: shape {_shape(array.shape)} does not fit input {info.name} of {model}, {_shape(info.shape)}"
        )
    if fixed is not None and batch not in (1, fixed):
        raise InputError(f"{model}: input {info.name} has a fixed batch of {fixed}: batch {batch} does not fit")
    samples = fixed or batch
    if array.shape and len(array) < samples:
        raise InputError(f"{path}: holds {len(array)} samples, fewer than the batch of {samples}")
    dtype = numpy_name(info.type)
    first = array[:samples] if array.shape else np.asarray(array)
    try:
        return np.ascontiguousarray(first).astype(dtype, casting="same_kind")
    except TypeError:
        raise InputError(f"{path}: {array.dtype} does not fit input {info.name} of {model}, {info.type}") from None


def feed_of(path: str, session: ort.InferenceSession, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays by this model's input names: two exports of one network may name their inputs differently."""
    infos = session.get_inputs()
    if len(infos) != len(arrays):
        raise InputError(f"{path}: has {len(infos)} inputs, the other model {len(arrays)}")
    for info, array in zip(infos, arrays, strict=True):
        if not fits(array.shape, info.shape):
            raise InputError(
                f"{path}: input {info.name} is {_shape(info.shape)}, the other model's {_shape(array.shape)}"
            )
    return {info.name: array for info, array in zip(infos, arrays, strict=True)}


def fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    """Whether a shape has the wanted rank and sizes; a name or None in `wanted` is any size."""
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or size == want for size, want in zip(shape, wanted, strict=True)
    )


def _shape(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


ArrayLike = Any
"""An array, or what `as_array` makes one of: a tensor of torch, or nested lists of numbers."""

Data = ArrayLike | Mapping[str, ArrayLike] | str | os.PathLike[str] | bytes
"""What `load_data` takes: the only input [N, ...], all inputs by name, the path of a file or a folder of images, or the
content of the file of one image."""


MAX_RANDOM = 2**30
"""Most numbers of an input that are made at random: a model's sizes may lie."""


@dataclass(frozen=True)
class InputSpec:
    """An input of a model.

    Attributes:
        name: its name.
        dtype: numpy's name of its type, such as "float32".
        shape: with the batch; a name or None for a size that the model leaves open.
        example: a shape without the batch, for random inputs of a model that leaves sizes open; empty if unknown.
        preprocessing: how images become this input, as the model's metadata records; None if it does not.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    example: tuple[int, ...] = ()
    preprocessing: Preprocessing | None = None

    @property
    def sample(self) -> list[int | str | None]:
        """The shape with N as the batch, for errors."""
        return ["N", *(size if isinstance(size, int) else size or "?" for size in self.shape[1:])]


def read_inputs(session: ort.InferenceSession) -> list[InputSpec]:
    """The inputs of a session's model."""
    infos = session.get_inputs()
    metadata = session.get_modelmeta().custom_metadata_map
    examples, steps = read_shapes(metadata, [info.name for info in infos]), read_preprocessing(metadata)
    return [
        InputSpec(info.name, numpy_name(info.type), tuple(info.shape), examples.get(info.name, ()), steps)
        for info in infos
    ]


def numpy_name(kind: str) -> str:
    """The name in numpy of onnxruntime's "tensor(float)" or "float"."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def batch_size(wanted: Sequence[InputSpec]) -> int | None:
    """The batch that a model with these inputs is made for; None if it leaves that open."""
    first = [item.shape[0] for item in wanted if item.shape]
    return first[0] if first and isinstance(first[0], int) and all(isinstance(size, int) for size in first) else None


def has_batch(item: InputSpec, batch: int | None) -> bool:
    """Whether the first dimension of an input of a model with this batch is the batch: no table or number is in it."""
    return bool(item.shape) and (not isinstance(item.shape[0], int) or item.shape[0] == batch)


MORE_SAMPLES = 8
"""Samples that the magnitudes of tensors are taken over at least: a single number may happen to lie near 0."""


@dataclass(frozen=True)
class Inputs:
    """The inputs that a network is run on, of which a part at a time is in memory.

    Attributes:
        arrays: input -> [N, ...]; an input without the batch as a whole, an array.
        whole: the names of the inputs without the batch.
        labels: classes [N], or None.
        origin: their file or kind, for reports.
        indices: of the samples in the data, [N], in order; None if they are its first N.
        pictures: all of the data as images, to be looked at; None if it is none of images.
        class_names: of the labels, from 0 on; empty if they are not known.
    """

    arrays: Mapping[str, Rows]
    whole: frozenset[str]
    labels: NDArray[Any] | None
    origin: str
    indices: NDArray[np.intp] | None = None
    pictures: Pictures | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of samples N."""
        return next((len(array) for name, array in self.arrays.items() if name not in self.whole), 1)

    def part(self, start: int, stop: int | None) -> dict[str, NDArray[Any]]:
        """The samples from `start` to before `stop`, by input."""
        return {
            name: np.asarray(array if name in self.whole else array[start:stop]) for name, array in self.arrays.items()
        }

    def batches(self, size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """All samples, at most `size` at a time, by input."""
        return (self.part(start, start + size) for start in range(0, len(self), size))

    def index(self, sample: int) -> int:
        """The index in the data of a sample here."""
        return sample if self.indices is None else int(self.indices[sample])

    def file(self, sample: int) -> str:
        """The file of a sample here, in its folder; "" if samples are no files of their own."""
        return "" if self.pictures is None else self.pictures.name(self.index(sample))

    def take(self, samples: NDArray[np.intp]) -> Inputs:
        """Some of the samples, which are in order."""
        return replace(
            self,
            arrays={
                name: array if name in self.whole else chosen(array, samples) for name, array in self.arrays.items()
            },
            labels=None if self.labels is None else self.labels[samples],
            indices=samples if self.indices is None else self.indices[samples],
        )

    def first(self, count: int | None) -> Inputs:
        """The first `count` samples; None for all."""
        return self if count is None or count >= len(self) else self.take(np.arange(count))

    def drawn(self, count: int, seed: int) -> Inputs:
        """`count` samples, each at most once, in the order of the data; the same for the same seed."""
        if count >= len(self):
            return self
        # RandomState, because numpy promises that its numbers never change; those of a Generator may.
        order = np.random.RandomState(seed).permutation(len(self))
        taken = self.take(np.sort(order[:count]).astype(np.intp))
        return replace(taken, origin=f"{self.origin}, {count:,} of {len(self):,} drawn with seed {seed}")

    def named(self, names: Sequence[str]) -> Inputs:
        """With the names of a model's classes, if it has some: the classes of a folder are found among them by name."""
        own = self.class_names
        if not names or not set(own) <= set(names):
            return self
        labels = self.labels
        if own and labels is not None:
            labels = np.array([names.index(name) for name in own])[labels]
        return replace(self, labels=labels, class_names=tuple(names))

    def more(self) -> Inputs:
        """Samples beside these if they are fewer than MORE_SAMPLES: the same numbers in random order; else none."""
        if len(self) >= MORE_SAMPLES:
            return self.first(0)
        rng, times = np.random.default_rng(0), -(-MORE_SAMPLES // len(self))

        def shuffled(array: NDArray[Any]) -> NDArray[Any]:
            rows = np.tile(array.reshape(len(array), -1), (times, 1))
            return rng.permuted(rows, axis=1).reshape(-1, *array.shape[1:])

        own = self.part(0, None)
        arrays = {name: array if name in self.whole else shuffled(array) for name, array in own.items()}
        return Inputs(arrays, self.whole, None, self.origin)


def load_data(
    data: Data | None,
    labels: ArrayLike | None,
    samples: int | None,
    wanted: Sequence[InputSpec],
    *,
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
) -> Inputs:
    """Get inputs for a model; those of a file are read in parts, when they are needed.

    Args:
        data: an array or a tensor of torch, those by input, a path, the content of an image file, or None for 32
            random samples (floats from a standard normal distribution, integers of 8 bits from their whole range,
            others 0 or 1). A path is that of

            * a .npz file: the array of an input has its name; that of an only input may also be 'images', 'x', 'data',
              or the only array. The labels are 'labels' or 'y'.
            * a .npy file of an only input.
            * an IDX file, as MNIST's, also compressed by gzip; the labels are in the file beside it.
            * a folder of images with a sub-folder per class, by the rules of torchvision's ImageFolder; or of images
              without classes.
            * an image.

            Images of bytes, uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], become an input of floats by
            `preprocessing`.
            Other numbers of another type than the input's are converted if they mean the same there: floats of another
            precision, and integers in the range of the input's.
        labels: classes [N]; they take precedence over the file's.
        samples: number of samples to keep, from the first, or drawn with `seed`; None for all.
        wanted: the model's inputs.
        preprocessing: how images become the input; what it leaves out is as the model's metadata records.
        seed: draw the samples at random with this seed; None takes the first, and 0 of a folder with classes, of which
            the first would be one.

    Raises:
        InputError: no such path, no such array, or not of an input's type and shape, or images without a preprocessing.
            Reading parts may raise it, too: a number is NaN, or the file is damaged there.
        SetupError: images are to be read and Pillow is not installed.
    """
    batch = batch_size(wanted)
    whole = frozenset(item.name for item in wanted if not has_batch(item, batch))
    origin = "given arrays" if isinstance(data, Mapping) else "given array"
    files: Pictures | None = None
    class_names: tuple[str, ...] = ()
    arrays: dict[str, Rows]
    labels = None if labels is None else as_array(labels, "labels")
    if data is None:
        if preprocessing is not None:
            raise InputError("a preprocessing is that of images: give data, too")
        arrays = dict(_random_samples(wanted, whole))
        floats = any(np.dtype(item.dtype).kind == "f" for item in wanted)
        origin = f"random {'normal ' if floats else ''}inputs (give {option('data')} for real ones)"
    elif isinstance(data, Mapping):
        arrays = _by_name({name: as_array(value, name) for name, value in data.items()}, wanted, origin)
    elif isinstance(data, bytes):
        arrays, origin, files = {}, "image", EncodedPicture(data)
    elif not isinstance(data, str | os.PathLike):
        arrays = _by_name({"": as_array(data, origin)}, wanted, origin)
    else:
        origin = str(data)
        dataset = open_data(data, frozenset(item.name for item in wanted))
        labels = dataset.labels if labels is None else labels
        files, class_names = dataset.files, dataset.class_names
        if files is None:
            arrays = _by_name(dict(dataset.arrays), wanted, origin)
    if len(wanted) != 1 and (files is not None or preprocessing is not None):
        raise InputError(f"{origin}: images are the input of a model with one; this one has {len(wanted)}")
    pictures: Pictures | None = files
    if len(wanted) == 1:
        (item,) = wanted
        steps = preprocessing_of(item, preprocessing, origin)
        if files is None and data is not None:
            pictures = _pictures(arrays[item.name], origin)
        if pictures is not None and (files is not None or _is_to_prepare(arrays[item.name], item, steps)):
            arrays = {item.name: prepared(pictures, steps, item.shape, item.dtype, origin)}
        elif preprocessing is not None:
            raise InputError(
                f"{origin}: its {arrays[item.name].dtype} {list(arrays[item.name].shape)} are no images of bytes, "
                "uint8 [N, H, W] or with 1 or 3 channels: only those are preprocessed"
            )
    for item in wanted:
        arrays[item.name] = _checked(arrays[item.name], item, origin, len(wanted) == 1, item.name in whole)
    result = Inputs(arrays, whole, None if labels is None else np.asarray(labels), origin, None, pictures, class_names)
    for name, array in arrays.items():
        if name not in whole and len(array) != len(result):
            raise InputError(f"{origin}: input '{name}' has {len(array)} samples, another one {len(result)}")
    if result.labels is not None and result.labels.dtype.kind not in "biuf":
        raise InputError(f"{origin}: the labels are {result.labels.dtype}; they must be the numbers of the classes")
    if labels is not None and np.shape(labels) != (len(result),):
        raise InputError(
            f"{origin}: the labels have shape {list(np.shape(labels))}; {len(result)} inputs need [{len(result)}]"
        )
    if seed is None and class_names:
        seed = 0
    return result.first(samples) if samples is None or seed is None else result.drawn(samples, seed)


def preprocessing_of(item: InputSpec, given: Preprocessing | None, origin: str) -> Preprocessing:
    """The preprocessing of an input: what is given, and what the model records.

    Raises:
        InputError: a mean or std is given for a model that takes bytes.
    """
    if given is not None and item.dtype == "uint8" and given.normalisation() is not None:
        raise InputError(f"{origin}: the model takes bytes, and normalises them itself: leave out mean and std")
    return (given or Preprocessing()).over(item.preprocessing)


def _pictures(rows: Rows, origin: str) -> Pictures | None:
    """An array as images to be looked at; None if it does not look like them."""
    rank = len(rows.shape)
    is_image = (rank == 4 and (rows.shape[1] in (1, 3) or rows.shape[3] in (1, 3))) or (
        rank == 3 and rows.dtype == np.uint8
    )
    if not is_image or not len(rows):
        return None
    if rows.dtype == np.uint8:
        return ArrayPictures(rows, origin)
    return FloatPictures(rows) if rows.dtype.kind == "f" else None


def _is_to_prepare(rows: Rows, item: InputSpec, steps: Preprocessing) -> bool:
    """Whether an array of images has to be preprocessed to be an input."""
    if rows.dtype != np.uint8:
        return False
    if item.dtype != "uint8":
        return np.dtype(item.dtype).kind == "f"
    return not fits(rows.shape[1:], item.shape[1:]) or (steps.size, steps.crop) != (None, None)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """An array of an array, of a tensor of torch on any device, or of lists of numbers.

    Raises:
        InputError: it is none of these.
    """
    if hasattr(value, "detach"):  # a tensor; torch itself is not needed here
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype):
            value = value.float()  # numpy has no such type; float32 has all its numbers
    try:
        result = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: {type(value).__name__} is no array ({one_line(error, 80)})") from error
    if result.dtype.kind not in "biuf":
        raise InputError(f"{name}: {type(value).__name__} is no array of numbers: give a numpy array or a torch tensor")
    return result


def _random_samples(wanted: Sequence[InputSpec], whole: frozenset[str]) -> dict[str, NDArray[Any]]:
    """32 random samples of each input; of an input without the batch, one value."""
    rng = np.random.default_rng(0)
    return {item.name: random_array(rng, item, None if item.name in whole else 32) for item in wanted}


def random_array(rng: np.random.Generator, item: InputSpec, batch: int | None) -> NDArray[Any]:
    """A random array of an input's type, see `load_data`; `batch` is its first size, None for that of the model.

    Raises:
        InputError: a size is open, and no example says how large it may be; or it is negative, or all are too large.
    """
    shape = item.shape if batch is None else (batch, *item.shape[1:])
    if len(item.example) == len(shape) - 1:
        shape = (shape[0], *item.example)
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) != len(shape):
        raise InputError(f"input {item.name} has shape {_shape(item.shape)}: give data, to say how large")
    if min(sizes, default=0) < 0:
        raise InputError(f"input {item.name} has shape {_shape(item.shape)}: no size is negative, export it again")
    if math.prod(sizes) > MAX_RANDOM:
        raise InputError(
            f"input {item.name} has shape {_shape(shape)}: at most {MAX_RANDOM:,} numbers are made at random; give data"
        )
    kind = np.dtype(item.dtype)
    if kind.kind == "f":
        return rng.standard_normal(sizes).astype(kind)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "iu" and kind.itemsize == 1 else (0, 1)
    return rng.integers(low, high, sizes, endpoint=True).astype(kind)


def random_feed(wanted: Sequence[InputSpec], samples: int) -> dict[str, NDArray[Any]]:
    """A random array of each input, see `random_array`: `samples` samples, or what the model fixes."""
    rng, batch = np.random.default_rng(0), batch_size(wanted)
    return {item.name: random_array(rng, item, samples if has_batch(item, batch) else None) for item in wanted}


def _checked(array: Rows, item: InputSpec, origin: str, only: bool, whole: bool) -> Rows:
    """The array of an input, in its type, without NaN, and of its shape.

    Raises:
        InputError: it is not so.
    """
    which = "the inputs are" if only else f"input '{item.name}' is"
    wanted = np.dtype(item.dtype)
    if array.dtype != wanted and not _means_the_same(array.dtype, wanted):
        how = ", normalised as in its training" if wanted == np.float32 else ""
        how = (
            ": images as they are, which the model normalises"
            if wanted == np.uint8 and array.dtype.kind == "f"
            else how
        )
        raise InputError(f"{origin}: {which} {array.dtype}; the network needs {wanted}{how}")
    which = "the inputs" if only else f"input '{item.name}'"

    def finite(part: NDArray[Any]) -> NDArray[Any]:
        if wanted.kind == "f" and not np.isfinite(part).all():
            raise InputError(f"{origin}: {which} {'hold' if only else 'holds'} NaN or infinity")
        with np.errstate(over="ignore", invalid="ignore"):
            result = part.astype(wanted, copy=False)
        if part.dtype != wanted and (np.isinf(result).any() if wanted.kind == "f" else (result != part).any()):
            raise InputError(f"{origin}: {which} {'hold' if only else 'holds'} numbers beyond the range of {wanted}")
        return result

    if whole and not fits(array.shape, item.shape):
        raise InputError(f"{origin}: {which} has shape {list(array.shape)}; the model needs {_shape(item.shape)}")
    if not whole and (not array.shape or len(array) == 0 or not fits(array.shape[1:], item.shape[1:])):
        verb = "have" if only else "has"
        raise InputError(f"{origin}: {which} {verb} shape {list(array.shape)}; the model needs {item.sample}, N >= 1")
    if isinstance(array, np.ndarray):
        return finite(array)
    return finite(array[:]) if whole else mapped(array, array.shape, wanted, finite)


def _means_the_same(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether numbers may mean the same in another type: floats, rounded; integers, if they are in its range.

    Bytes are none of these for an input of floats: they are images that nobody has normalised.
    """
    kinds = given.kind + wanted.kind
    return kinds == "ff" or (given.kind in "iu" and wanted.kind in "iu")


def _by_name(arrays: dict[str, Rows], wanted: Sequence[InputSpec], origin: str) -> dict[str, Rows]:
    """The array of each input: of its name; for an only input also under a usual name, or the only array.

    Raises:
        InputError: there is none.
    """
    names = [item.name for item in wanted]
    if len(names) == 1:
        key = next((key for key in (*names, "images", "x", "data") if key in arrays), None)
        key = next(iter(arrays)) if key is None and len(arrays) == 1 else key
        if key is None:
            raise InputError(
                f"{origin}: which array holds the inputs? It has {', '.join(arrays) or 'none'}; call it '{names[0]}'"
            )
        return {names[0]: arrays[key]}
    if missing := [name for name in names if name not in arrays]:
        has = "one array without a name" if list(arrays) == [""] else ", ".join(arrays) or "no array"
        raise InputError(
            f"{origin}: holds {has}, but the model has the inputs {', '.join(names)}: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    return {name: arrays[name] for name in names}


def whole_batches(inputs: Inputs, batch: int | None) -> Inputs:
    """The inputs without an incomplete last batch; `batch` is the model's fixed batch size, None if it has none.

    Raises:
        InputError: there are fewer than `batch`.
    """
    if batch is None or len(inputs) % batch == 0:
        return inputs
    count = len(inputs) // batch * batch
    if count == 0:
        raise InputError(
            f"{inputs.origin}: {len(inputs)} inputs, but the model was exported for batches of exactly {batch}; "
            f"give more {option('data')}, or export it with a dynamic batch dimension"
        )
    return inputs.first(count)
