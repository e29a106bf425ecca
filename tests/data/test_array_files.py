"""Arrays in files, read in parts."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bnn_deploy.data.array_files import open_arrays
from bnn_deploy.data.dataset import open_data
from bnn_deploy.data.rows import chosen
from bnn_deploy.errors import InputError

X = np.arange(7 * 3 * 2, dtype=np.float32).reshape(7, 3, 2)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [X, X.astype(">f4"), np.asfortranarray(X), X[:, 0, 0].copy(), np.float32(3)])
def test_parts_are_those_of_the_whole_array(save: object, array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    save(tmp_path / "x.npz", x=array, y=array)  # type: ignore[operator]
    for path, name in ((tmp_path / "x.npy", ""), (tmp_path / "x.npz", "x"), (tmp_path / "x.npz", "y")):
        rows = open_arrays(path)[name]
        assert (rows.shape, rows.dtype) == (array.shape, array.dtype)
        # Forward, back, and beyond the end.
        for part in (slice(0, 2), slice(2, 5), slice(1, 3), slice(5, 99), slice(3, 3)) if array.shape else ():
            np.testing.assert_array_equal(rows[part], array[part])
        if not array.shape:
            np.testing.assert_array_equal(np.asarray(rows), array)


def test_a_file_is_not_read_before_its_parts_are(tmp_path: Path) -> None:
    """4 TB of which the file system has nothing but the header and the last sample."""
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    with (tmp_path / "x.npy").open("wb") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + 4 * 10**12)
        file.seek(-4, io.SEEK_END)
        file.write(np.float32(5).tobytes())
    rows = open_arrays(tmp_path / "x.npy")[""]
    assert rows.shape == (10**6, 10**6) and float(rows[10**6 - 1 : 10**6][0, -1]) == 5


def test_chosen_rows() -> None:
    indices = np.array([0, 1, 4, 6])
    np.testing.assert_array_equal(chosen(X, indices), X[indices])


def test_chosen_rows_of_a_file(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=X)
    indices = np.array([0, 1, 4, 6])
    rows = chosen(open_arrays(tmp_path / "x.npz")["x"], indices)
    for start, stop in ((0, 4), (1, 3), (2, 2), (3, 9)):
        np.testing.assert_array_equal(rows[start:stop], X[indices[start:stop]])


def test_damage_behind_the_header_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal((100, 100)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[20_000] ^= 255
    path.write_bytes(content)
    rows = open_arrays(path)["x"]
    with pytest.raises(InputError, match=r"x\.npz: not a \.npy or \.npz file of plain arrays \(\w+"):
        rows[0:100]


def test_a_size_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"it has 164 bytes of data, the shape \(7, 3, 2\) needs 168"):
        open_arrays(path)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(path, "x.npy")
    with pytest.raises(InputError, match="it has 164 bytes"):
        open_arrays(tmp_path / "x.npz")


def test_an_input_may_be_called_labels(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((2, 3)), "y": np.ones((2, 4)), "labels": np.arange(2)}
    np.savez(tmp_path / "x.npz", **arrays)
    found = open_data(tmp_path / "x.npz", frozenset({"x", "y"}))
    assert found.labels is not None and found.labels.tolist() == [0, 1] and set(found.arrays) == {"x", "y"}
    del arrays["labels"]
    np.savez(tmp_path / "x.npz", **arrays)
    assert open_data(tmp_path / "x.npz", frozenset({"x", "y"})).labels is None
    labels = open_data(tmp_path / "x.npz").labels
    assert labels is not None and labels.tolist() == np.ones((2, 4)).tolist()
