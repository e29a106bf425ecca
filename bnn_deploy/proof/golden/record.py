"""The content of a golden file, and reading and writing it."""

from __future__ import annotations

import io
import json
import os
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, reading
from bnn_deploy.files import require_file, write_files
from bnn_deploy.operators.bits import words
from bnn_deploy.runtime.inputs import Inputs

GOLDEN_FORMAT = 2
"""Version of the golden file's format."""

GOLDEN_BATCH = 4
"""Samples that are checked at a time: boards have little memory."""

ORIGIN = "golden file"
"""Where the inputs of a golden file come from."""

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
class GoldenValues:
    """The golden values of one output of the model.

    Attributes:
        name: its name.
        fed: name of its counterpart in the probed model, with every layer fed with golden bits.
        relative: the largest relative error of its floats, see results.Tolerances; other values must be equal.
        values: [N, ...].
    """

    name: str
    fed: str
    relative: float
    values: NDArray[Any]


@dataclass(frozen=True)
class Golden:
    """A golden file's content.

    Attributes:
        model_sha256: SHA-256 of the model's file.
        inputs: the model's inputs.
        outputs: its outputs.
        tensors: all bit tensors of the model, in the order of the graph.
        floats: the floats of binary layers, in the order of the graph.
        made_with: "onnxruntime" and "numpy": versions; "cpu"; "isa": the instruction set of the kernels.
        probe: serialised ModelProto, see `proof.golden`.
    """

    model_sha256: str
    inputs: Inputs
    outputs: tuple[GoldenValues, ...]
    tensors: tuple[GoldenTensor, ...]
    floats: tuple[GoldenFloats, ...]
    made_with: dict[str, str]
    probe: bytes


def feed(golden: Golden, start: int, stop: int) -> dict[str, NDArray[Any]]:
    """All inputs that the probed model may have, by name, for the samples from `start` to `stop`."""
    feed = golden.inputs.part(start, stop)
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
        "inputs": [{"name": name, "whole": name in golden.inputs.whole} for name in golden.inputs.arrays],
        "outputs": [{"name": output.name, "fed": output.fed, "relative": output.relative} for output in golden.outputs],
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
    }
    arrays |= {f"input/{i}": array for i, array in enumerate(golden.inputs.part(0, None).values())}
    arrays |= {f"output/{i}": output.values for i, output in enumerate(golden.outputs)}
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
    require_file(path)
    with reading(path, "not a golden file, or a damaged one"):
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
            inputs = {str(entry["name"]): arrays[f"input/{i}"] for i, entry in enumerate(meta["inputs"])}
            whole = frozenset(str(entry["name"]) for entry in meta["inputs"] if entry["whole"])
            outputs = tuple(
                GoldenValues(str(entry["name"]), str(entry["fed"]), float(entry["relative"]), arrays[f"output/{i}"])
                for i, entry in enumerate(meta["outputs"])
            )
            golden = Golden(
                str(meta["model_sha256"]),
                Inputs(inputs, whole, None, ORIGIN),
                outputs,
                tensors,
                floats,
                {key: str(meta["made_with"][key]) for key in MADE_WITH},
                arrays["probe"].tobytes(),
            )
        _check_form(golden)
    return golden


def _check_form(golden: Golden) -> None:
    """Check the dtypes and shapes of a golden file's arrays.

    Raises:
        ValueError: one has another dtype, number of samples or words than it must have.
    """
    samples = len(golden.inputs)
    given = {name: array for name, array in golden.inputs.arrays.items() if name not in golden.inputs.whole}
    given |= {output.name: output.values for output in golden.outputs}
    if samples == 0 or not golden.outputs:
        raise ValueError("no inputs or no outputs")
    for name, array in given.items():
        if array.dtype.kind not in "fiub" or array.shape[:1] != (samples,):
            raise ValueError(f"{samples} samples, but '{name}' is {array.dtype} {list(array.shape)}")
    for tensor in golden.tensors:
        for array in (tensor.bits, tensor.bits if tensor.near is None else tensor.near):
            if array.dtype != np.uint32 or array.shape != tensor.bits.shape or array.ndim < 2:
                raise ValueError(f"the bits of '{tensor.tensor}' are {array.dtype} {list(array.shape)}")
        if len(tensor.bits) != samples or tensor.bits.shape[-1] != tensor.planes * words(tensor.channels):
            raise ValueError(f"the bits of '{tensor.tensor}' are {list(tensor.bits.shape)}")
    for floats in golden.floats:
        if floats.checksums.dtype != np.uint32 or floats.checksums.shape != (samples,):
            raise ValueError(f"the checksums of '{floats.tensor}' are {list(floats.checksums.shape)}")
