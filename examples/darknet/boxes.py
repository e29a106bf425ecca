"""What boxes of a detection layer stand for an object: non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = ("circle", "square", "triangle")
"""What the network of shapes_xnor.cfg finds."""

Box = NDArray[np.float32]
"""Centre x and y, width and height, as parts of the picture."""


def overlap(first: Box, others: Box) -> NDArray[np.float32]:
    """The intersection over union of a box with each of others [B, 4]: [B]."""
    low = np.maximum(first[:2] - first[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = np.minimum(first[:2] + first[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    shared = np.maximum(high - low, 0).prod(1)
    union: NDArray[np.float32] = first[2:].prod() + others[:, 2:].prod(1) - shared
    return shared / union


def pick(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], least: float = 0.4, same: float = 0.45
) -> list[tuple[int, float, Box]]:
    """Choose the boxes that stand for an object: non-maximum suppression.

    Args:
        boxes: [B, 4], centre, width and height.
        scores: [B, classes].
        least: the lowest score of an object.
        same: boxes that overlap by more stand for the same object.

    Returns:
        Class, score and box of each object, the surest first.
    """
    best, kinds = scores.max(1), scores.argmax(1)
    left = np.argsort(-best)
    left = left[best[left] >= least]
    chosen = []
    while left.size:
        surest = left[0]
        chosen.append((int(kinds[surest]), float(best[surest]), boxes[surest]))
        left = left[overlap(boxes[surest], boxes[left]) <= same]
    return chosen
