"""Samples from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnn_deploy.errors import InputError
from bnn_deploy.runtime.inputs import InputSpec, load_data

WANTED = [InputSpec("input", "float32", ("batch", 2))]


def test_load_data(tmp_path: Path) -> None:
    x = np.zeros((3, 2), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "named.npz", other=x + 1, input=x, labels=np.arange(3))
    np.savez(tmp_path / "only.npz", whatever=x, y=np.arange(3))
    for name, labelled in (("x.npy", False), ("named.npz", True), ("only.npz", True)):
        loaded = load_data(tmp_path / name, None, 2, WANTED)
        assert loaded.arrays["input"].shape == (2, 2) and not loaded.part(0, None)["input"].any()
        assert (loaded.labels is not None and loaded.labels.tolist() == [0, 1]) == labelled
    given = load_data(tmp_path / "named.npz", np.array([7, 8, 9]), None, WANTED)
    assert given.labels is not None and given.labels.tolist() == [7, 8, 9]


BAD_DATA: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "no array": ({}, "which array holds the inputs? It has none; call it 'input'"),
    "two arrays": ({"a": np.zeros(1), "b": np.zeros(1)}, "which array holds the inputs? It has a, b; call it 'input'"),
    "wrong dtype": ({"input": np.zeros((3, 2), np.int64)}, "the inputs are int64; the network needs float32"),
    "wrong shape": (
        {"input": np.zeros((3, 3), np.float32)},
        "the inputs have shape [3, 3]; the model needs ['N', 2], N >= 1",
    ),
    "a scalar": ({"input": np.float32(1)}, "the inputs have shape []"),
    "no samples": ({"input": np.zeros((0, 2), np.float32)}, "the inputs have shape [0, 2]"),
    "too few labels": (
        {"input": np.zeros((3, 2), np.float32), "labels": np.zeros(2)},
        "the labels have shape [2]; 3 inputs need [3]",
    ),
    "objects": ({"input": np.array([None])}, "not a .npy or .npz file of plain arrays"),
    "text": (b"hello, world", "not a .npy or .npz file of plain arrays"),
    "empty": (b"", "not a .npy or .npz file of plain arrays"),
    "broken zip": (b"PK\x03\x04 and no more", "not a .npy or .npz file of plain arrays"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(tmp_path: Path, case: str) -> None:
    content, message = BAD_DATA[case]
    path = tmp_path / "data.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(InputError) as caught:
        load_data(path, None, None, WANTED)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
