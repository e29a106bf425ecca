"""Inputs in .npy and .npz files, and golden files, through the commands that read them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from fuzz.doors import absurd, change_bytes, change_json, pick, run

DTYPES = ("float32", "float64", "float16", ">f4", "int8", "uint8", "bool", "U3", "S2", "complex64", "M8[s]", "object")
NAMES = ("x", "images", "labels", "y", "", "../x", "/etc/x", "x.npy", "x" * 300, "meta")


def arrays(seed: int, folder: Path, shared: Path) -> None:
    """Inputs of other types, shapes, headers and archives."""
    rng = np.random.default_rng(seed)
    path = folder / pick(rng, ("x.npz", "x.npy", "x.txt"))
    content = npz(rng) if rng.random() < 0.6 else npy(rng)
    path.write_bytes(change_bytes(rng, content) if rng.random() < 0.4 else content)
    model = shared / "small.onnx"
    match int(rng.integers(0, 3)):
        case 0:
            run(["profile", model, "--data", path, "--runs", "1"], folder)
        case 1:
            run(["verify", model, "--golden", path], folder)
        case _:
            run(["verify", model, "--against", model, "--data", path], folder)


def npy(rng: Generator) -> bytes:
    """A .npy file; its header may say something else than its content."""
    shape = pick(rng, ((2, 1, 28, 28), (1, 28, 28), (2, 28, 28, 1), (0, 1, 28, 28), (), (784,), (1,) * 32))
    dtype = np.dtype(pick(rng, DTYPES))
    array = np.full(shape, pick(rng, (0, 1, -1, 300)), np.float64)
    with np.errstate(all="ignore"):
        array = array.astype(dtype)
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(array) if rng.random() < 0.2 else array, allow_pickle=True)
    if rng.random() < 0.5:
        return buffer.getvalue()
    header: dict[str, Any] = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    match int(rng.integers(0, 4)):
        case 0:
            header["shape"] = tuple(absurd(rng) for _ in range(int(rng.integers(1, 4))))
        case 1:
            header["descr"] = pick(rng, ("<f4", "|V0", "<U1000000000", "<f99", "", [("a", "<f4")], "|O", 7))
        case 2:
            header[pick(rng, list(header))] = pick(rng, (None, "x", 1.5, [], {}))
        case _:
            del header[pick(rng, list(header))]
    text = repr(header).encode() + b"\n"
    version = pick(rng, (b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + array.tobytes() if not dtype.hasobject else text


def npz(rng: Generator) -> bytes:
    """An archive of such files, of odd names, compressions and sizes."""
    buffer = io.BytesIO()
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(buffer, "w", pick(rng, kinds)) as archive:
        for _ in range(int(rng.integers(0, 4))):
            name = pick(rng, NAMES) + pick(rng, (".npy", ".npy", ""))
            if name and name not in archive.namelist():
                archive.writestr(name, pick(rng, (npy(rng), b"", bytes(10**7), b"text")))
    content = bytearray(buffer.getvalue())
    if rng.random() < 0.3 and b"PK\x01\x02" in content:  # the directory says something else
        at = content.index(b"PK\x01\x02") + int(rng.integers(4, 46))
        content[at : at + 4] = struct.pack("<I", absurd(rng) & 0xFFFFFFFF)
    return bytes(content)


def golden(seed: int, folder: Path, shared: Path) -> None:
    """A golden file with other arrays, names and numbers in it, or other bytes."""
    rng = np.random.default_rng(seed)
    path = folder / "golden.npz"
    with np.load(shared / "golden.npz") as loaded:
        found = {name: loaded[name] for name in loaded.files}
    if rng.random() < 0.6:
        meta = change_json(rng, json.loads(found["meta"].tobytes()))
        found["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    if rng.random() < 0.5:
        name = pick(rng, list(found))
        array = found[name]
        match int(rng.integers(0, 7)):
            case 0:
                del found[name]
            case 1:
                found[name] = array.astype(pick(rng, ("float32", "uint8", "int64", "uint32", "complex64")))
            case 2:
                found[name] = array[:1] if array.ndim else array[np.newaxis]
            case 3:
                found[name] = array[..., np.newaxis]
            case 4:
                found[name] = np.zeros((2, 0), array.dtype)
            case 5:
                found[name] = np.frombuffer(change_bytes(rng, array.tobytes()), np.uint8)
            case _:
                found[name] = np.full_like(array, pick(rng, (0, 1, 255))) if name != "probe" else array[::-1]
    buffer = io.BytesIO()
    np.savez(buffer, **found)
    content = buffer.getvalue()
    path.write_bytes(change_bytes(rng, content) if rng.random() < 0.2 else content)
    run(["verify", shared / "small.onnx", "--golden", path], folder)
