"""A path of data, whatever it holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.data.array_files import open_arrays
from bnn_deploy.data.idx import is_idx, labels_beside, open_idx
from bnn_deploy.data.pictures import EXTENSIONS, FilePictures, open_folder
from bnn_deploy.data.rows import Rows
from bnn_deploy.files import require_file

LABELS = ("labels", "y")
"""The names of the array of labels in an .npz file."""


@dataclass(frozen=True)
class Dataset:
    """What a path holds, opened and not read.

    Attributes:
        arrays: by name, as in an .npz file; of another file, its only array has the name ''; none of a folder.
        labels: the class of each sample; None if it does not say.
        files: the images of a folder, or the file that is an image; None of another file.
        class_names: the names of the classes; empty if it does not say.
    """

    arrays: Mapping[str, Rows] = field(default_factory=dict)
    labels: NDArray[Any] | None = None
    files: FilePictures | None = None
    class_names: tuple[str, ...] = ()


def open_data(path: str | os.PathLike[str], inputs: frozenset[str] = frozenset()) -> Dataset:
    """Open a .npy, .npz or IDX file, a folder of images, or an image.

    Args:
        path: it.
        inputs: the names of the model's inputs: arrays of these names are no labels.

    Raises:
        InputError: no such path, or none of these.
    """
    path = Path(path)
    if path.is_dir():
        files, classes, names = open_folder(path)
        return Dataset({}, classes, files, names)
    require_file(path)
    if path.name.lower().endswith(EXTENSIONS):
        return Dataset(files=FilePictures(path.parent, [path.name]))
    if is_idx(path):
        beside = labels_beside(path)
        return Dataset({"": open_idx(path)}, None if beside is None else np.asarray(open_idx(beside)[:]))
    arrays = open_arrays(path)
    own = next((arrays.pop(key) for key in LABELS if key in arrays and key not in inputs), None)
    return Dataset(arrays, None if own is None else np.asarray(own[:] if own.shape else own))
