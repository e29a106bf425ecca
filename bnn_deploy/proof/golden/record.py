"""The content of a golden file, and reading and writing it."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.files import write_files
from bnn_deploy.operators.bits import words

GOLDEN_FORMAT = 1
"""Version of the golden file's format."""

GOLDEN_BATCH = 4
"""Samples that are checked at a time: boards have little memory."""

MADE_WITH = ("onnxruntime", "numpy", "cpu", "isa")
"""The keys of `Golden.made_with`."""

ZEROS = "zeros/"
"""Prefix of a bit tensor's name for the probe's input of zeros, which replace the residual path of its layer."""

GOLDEN_PREFIX = "golden/"
"""Prefix of a bit tensor's name for the probe's input of its golden bits: "golden/sign2"."""


@dataclass(frozen=True)
class GoldenTensor:
    """The golden bits of one tensor.

    Attributes:
        tensor: its name in the model.
        fed: name of its counterpart in the probed model that is computed from golden bits; `tensor` itself if no bits
            come before it.
        layer: the layer's name in reports.
        channels: number of channels.
        planes: number of bit planes: 1, or k for levels of k bits; a plane has `words(channels)` words per position.
        quantized: whether the bits are made from floats of a layer with 8-bit activations.
        bits: uint32 [N, spatial..., planes * words]; one plane of 40 channels of a 7x7 map is [N, 7, 7, 2].
        near: uint32, as `bits`: 1 where another machine's rounding may flip the bit; None if made from integers.
    """

    tensor: str
    fed: str
    layer: str
    channels: int
    planes: int
    quantized: bool
    bits: NDArray[np.uint32]
    near: NDArray[np.uint32] | None


@dataclass(frozen=True)
class GoldenFloats:
    """Golden checksums of the floats that a binary layer computes from golden bits alone.

    Attributes:
        tensor: the name of the float tensor in the probed model.
        layer: the layer's name in reports.
        shape: one sample's shape.
        zeros: the input of the probed model that takes zeros of that shape for the layer's residual path; "" if it has
            none.
        checksums: uint32 [N], the CRC-32 of each sample's float32 values.
    """

    tensor: str
    layer: str
    shape: tuple[int, ...]
    zeros: str
    checksums: NDArray[np.uint32]


@dataclass(frozen=True)
class Golden:
    """A golden file's content.

    Attributes:
        model_sha256: SHA-256 of the model's file.
        input_name: the model's input.
        output_name: the model's output.
        fed_output: name of the output's counterpart in the probed model, with every layer fed with golden bits.
        input: float32 [N, ...].
        output: float32 [N, ...].
        tensors: all bit tensors of the model, in the order of the graph.
        floats: the floats of binary layers, in the order of the graph.
        float_relative: the largest relative error of an output, see results.Tolerances.
        made_with: "onnxruntime" and "numpy": versions; "cpu"; "isa": the instruction set of the kernels.
        probe: serialised ModelProto, see `proof.golden`.
    """

    model_sha256: str
    input_name: str
    output_name: str
    fed_output: str
    input: NDArray[np.float32]
    output: NDArray[np.float32]
    tensors: tuple[GoldenTensor, ...]
    floats: tuple[GoldenFloats, ...]
    float_relative: float
    made_with: dict[str, str]
    probe: bytes


def feed(golden: Golden, start: int, stop: int) -> dict[str, NDArray[Any]]:
    """All inputs that the probed model may have, by name, for the samples from `start` to `stop`."""
    feed: dict[str, NDArray[Any]] = {golden.input_name: golden.input[start:stop]}
    feed |= {GOLDEN_PREFIX + tensor.tensor: tensor.bits[start:stop] for tensor in golden.tensors}
    feed |= {f.zeros: np.zeros((stop - start, *f.shape), np.float32) for f in golden.floats if f.zeros}
    return feed


def checksums(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The CRC-32 of each sample of [N, ...]: uint32 [N]. Adding 0 makes -0 and 0 the same."""
    return np.array([zlib.crc32((sample + np.float32(0)).astype("<f4").tobytes()) for sample in values], np.uint32)


def write_golden(golden: Golden, path: str | os.PathLike[str]) -> None:
    """Write a golden file (.npz), or nothing; the same content gives the same bytes."""
    meta = {
        "format": GOLDEN_FORMAT,
        "model_sha256": golden.model_sha256,
        "input": golden.input_name,
        "output": golden.output_name,
        "fed_output": golden.fed_output,
        "float_relative": golden.float_relative,
        "made_with": golden.made_with,
        "tensors": [
            {
                "tensor": tensor.tensor,
                "fed": tensor.fed,
                "layer": tensor.layer,
                "channels": tensor.channels,
                "planes": tensor.planes,
                "quantized": tensor.quantized,
            }
            for tensor in golden.tensors
        ],
        "floats": [
            {"tensor": floats.tensor, "layer": floats.layer, "shape": floats.shape, "zeros": floats.zeros}
            for floats in golden.floats
        ],
    }
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "probe": np.frombuffer(golden.probe, np.uint8),
        "input": golden.input,
        "output": golden.output,
    }
    for i, tensor in enumerate(golden.tensors):
        arrays[f"bits/{i}"] = tensor.bits
        if tensor.near is not None:
            arrays[f"near/{i}"] = tensor.near
    arrays |= {f"floats/{i}": floats.checksums for i, floats in enumerate(golden.floats)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_files({path: buffer.getvalue()})


def read_golden(path: str | os.PathLike[str]) -> Golden:
    """Read a golden file.

    Raises:
        InputError: no such file, not a golden file, damaged, or of another format.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = json.loads(arrays["meta"].tobytes())
            if meta["format"] != GOLDEN_FORMAT:
                raise InputError(
                    f"{path}: golden results of format {meta['format']}; this bnn-deploy knows format {GOLDEN_FORMAT}"
                )
            tensors = tuple(
                GoldenTensor(
                    str(entry["tensor"]),
                    str(entry["fed"]),
                    str(entry["layer"]),
                    int(entry["channels"]),
                    int(entry.get("planes", 1)),
                    bool(entry["quantized"]),
                    arrays[f"bits/{i}"],
                    arrays.get(f"near/{i}"),
                )
                for i, entry in enumerate(meta["tensors"])
            )
            floats = tuple(
                GoldenFloats(
                    str(entry["tensor"]),
                    str(entry["layer"]),
                    tuple(int(size) for size in entry["shape"]),
                    str(entry["zeros"]),
                    arrays[f"floats/{i}"],
                )
                for i, entry in enumerate(meta["floats"])
            )
            golden = Golden(
                str(meta["model_sha256"]),
                str(meta["input"]),
                str(meta["output"]),
                str(meta["fed_output"]),
                arrays["input"],
                arrays["output"],
                tensors,
                floats,
                float(meta["float_relative"]),
                {key: str(meta["made_with"][key]) for key in MADE_WITH},
                arrays["probe"].tobytes(),
            )
        _check_form(golden)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: not a golden file, or a damaged one ({one_line(error, 120)})") from error
    return golden


def _check_form(golden: Golden) -> None:
    """Check the dtypes and shapes of a golden file's arrays.

    Raises:
        ValueError: one has another dtype, number of samples or words than it must have.
    """
    samples = len(golden.input)
    if samples == 0 or golden.input.dtype != np.float32 or golden.output.dtype != np.float32:
        raise ValueError("no float32 inputs and outputs")
    if len(golden.output) != samples:
        raise ValueError(f"{samples} inputs, but {len(golden.output)} outputs")
    for tensor in golden.tensors:
        for array in (tensor.bits, tensor.bits if tensor.near is None else tensor.near):
            if array.dtype != np.uint32 or array.shape != tensor.bits.shape or array.ndim < 2:
                raise ValueError(f"the bits of '{tensor.tensor}' are {array.dtype} {list(array.shape)}")
        if len(tensor.bits) != samples or tensor.bits.shape[-1] != tensor.planes * words(tensor.channels):
            raise ValueError(f"the bits of '{tensor.tensor}' are {list(tensor.bits.shape)}")
    for floats in golden.floats:
        if floats.checksums.dtype != np.uint32 or floats.checksums.shape != (samples,):
            raise ValueError(f"the checksums of '{floats.tensor}' are {list(floats.checksums.shape)}")
