"""Draw pictures of circles, squares and triangles, to train on; as a command, one in an image file, or some in .npz.

Needs Pillow.

    python examples/darknet/pictures.py --seed 12 --out picture.jpg
    python examples/darknet/pictures.py --seed 100 --out pictures.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from boxes import CLASSES
from numpy.typing import NDArray

try:
    from PIL import Image, ImageDraw, ImageFilter
except ImportError:
    raise SystemExit("drawing needs Pillow: pip install pillow") from None


def draw(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw some bright shapes, which do not hide each other, on a dark background with lines and noise.

    Args:
        rng: where all chance comes from.
        size: width and height in pixels.

    Returns:
        The picture [size, size, 3], and [shapes, 5]: each one's class, centre x and y, width and height, as parts of
        the picture.
    """
    image = Image.new("RGB", (size, size), _colour(rng, 0, 110))
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 9)):
        ends = [tuple(point) for point in (rng.random((2, 2)) * size).tolist()]
        canvas.line(ends, fill=_colour(rng, 0, 255), width=int(rng.integers(1, max(2, size // 60))))
    found: list[tuple[float, ...]] = []
    for _ in range(rng.integers(1, 14)):
        width = np.exp(rng.uniform(np.log(0.09), np.log(0.5)))
        height = min(0.6, width * rng.uniform(0.8, 1.25))
        x, y = rng.uniform(width / 2, 1 - width / 2), rng.uniform(height / 2, 1 - height / 2)
        if any(abs(x - a) < (width + w) / 2 + 0.01 and abs(y - b) < (height + h) / 2 + 0.01 for _, a, b, w, h in found):
            continue
        kind = int(rng.integers(len(CLASSES)))
        left, top, right, bottom = (
            (x - width / 2) * size,
            (y - height / 2) * size,
            (x + width / 2) * size,
            (y + height / 2) * size,
        )
        fill = _colour(rng, 140, 256)
        if kind == 0:
            canvas.ellipse((left, top, right, bottom), fill=fill)
        elif kind == 1:
            canvas.rectangle((left, top, right, bottom), fill=fill)
        else:
            canvas.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)
        found.append((kind, x, y, width, height))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(size / 200)), np.float32)
    noisy = pixels + rng.normal(0, rng.uniform(0, 14), pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), np.array(found, np.float32).reshape(-1, 5)


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def main() -> None:
    """Draw one picture, or several for the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="width and height in pixels; by default 384, and 96 in an .npz file")
    parser.add_argument("--count", type=int, default=4, help="number of pictures in an .npz file")
    parser.add_argument(
        "--out", type=Path, required=True, help="an image file, or an .npz file for bnn-deploy verify --data"
    )
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    if args.out.suffix == ".npz":
        drawn = [draw(rng, args.size or 96) for _ in range(args.count)]
        pixels = np.stack([picture for picture, _ in drawn]).transpose(0, 3, 1, 2) / np.float32(255)
        rows = [(index, *shape) for index, (_, shapes) in enumerate(drawn) for shape in shapes]
        np.savez_compressed(args.out, input=pixels, shapes=np.array(rows, np.float32))
        print(f"wrote {args.out}: {args.count} pictures")
        return
    pixels, shapes = draw(rng, args.size or 384)
    Image.fromarray(pixels).save(args.out)
    print(f"wrote {args.out}: {', '.join(CLASSES[int(kind)] for kind in shapes[:, 0])}")


if __name__ == "__main__":
    main()
