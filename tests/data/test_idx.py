"""MNIST's IDX files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from bnn_deploy.data.dataset import open_data
from bnn_deploy.errors import InputError
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.runtime.inputs import InputSpec, load_data

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6)).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)
WANTED = [InputSpec("input", "float32", ("batch", 1, 4, 6))]


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "names",
    [("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte")],
)
def test_images_and_their_labels(names: tuple[str, str], compressed: bool, tmp_path: Path) -> None:
    paths = [tmp_path / (name + ".gz" * compressed) for name in names]
    for path, array in zip(paths, (IMAGES, LABELS), strict=True):
        path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    found = load_data(paths[0], None, None, WANTED, preprocessing=Preprocessing(mean=(0.1307,), std=(0.3081,)))
    assert found.labels is not None and found.labels.tolist() == LABELS.tolist()
    wanted = (IMAGES[:, None].astype(np.float32) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
    for start, stop in ((0, 2), (2, 5), (1, 3)):
        np.testing.assert_array_equal(found.part(start, stop)["input"], wanted[start:stop])
    assert not np.array_equal(found.part(0, 2)["input"], wanted[1:3])
    paths[1].unlink()
    assert open_data(paths[0]).labels is None


@pytest.mark.parametrize(("kind", "dtype"), [(9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
def test_other_types(kind: int, dtype: str, tmp_path: Path) -> None:
    """Their codes, and the most significant byte first, as the description of MNIST's files says."""
    numbers = np.linspace(-100, 100, 12).reshape(3, 4).astype(dtype)
    (tmp_path / "x").write_bytes(idx(numbers, kind))
    (rows,) = open_data(tmp_path / "x").arrays.values()
    np.testing.assert_array_equal(rows[:], numbers)


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx(IMAGES)[:-30])
    (rows,) = open_data(path).arrays.values()
    with pytest.raises(InputError, match=r"images: a damaged IDX file \(EOFError: it ends in sample 3 of 5\)"):
        rows[:]
    path.write_bytes(idx(IMAGES)[:10])
    with pytest.raises(InputError, match=r"images: a damaged IDX file \(EOFError: it ends in its header\)"):
        open_data(path)
    path.write_bytes(b"\x1f\x8b\x08" + bytes(7) + b"no deflate stream at all")
    with pytest.raises(InputError, match=r"images: not a \.npy or \.npz file of plain arrays"):
        open_data(path)
    path.write_bytes(gzip.compress(idx(IMAGES))[:-20])
    with pytest.raises(InputError, match="images: a damaged IDX file"):
        next(iter(open_data(path).arrays.values()))[:]
