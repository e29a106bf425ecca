"""Darknet's detection layers, [yolo] and [region], and the boxes that they mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.source.darknet.builder import Boxes, Builder, FeatureMap
from bnn_deploy.source.darknet.cfg import Section

_OWN = 5
"""What a box has besides its classes: x, y, width, height and objectness."""


def yolo(section: Section, to: Builder) -> FeatureMap:
    """x, y, objectness and classes of each anchor through a logistic, its w and h as they are.

    The output is [N, anchors * (5 + classes), H, W], as Darknet's.
    """
    image, classes = to.image(section), section.integer("classes", 20, 1)
    total = section.integer("num", 1, 1)
    mask = section.integers("mask") or list(range(total))
    if not all(0 <= anchor < total for anchor in mask):
        raise section.error(f"there are {total} anchors, by num=; the first is 0", "mask")
    _require_channels(section, image, len(mask), classes)
    stretch = section.number("scale_x_y", 1)

    planes = to.reshape(image.tensor, [len(mask), _OWN + classes, image.height, image.width], "planes")
    centres, sizes, rest = _split(to, planes, [2, 2, 1 + classes], ["raw_centres", "sizes", "logits"], 2)
    centres = to.add("Sigmoid", [centres], "centres")
    if stretch != 1:
        factor = to.constant("scale_x_y", np.array(stretch, np.float32))
        offset = to.constant("offset", np.array(0.5 * (stretch - 1), np.float32))
        centres = to.add("Sub", [to.add("Mul", [centres, factor], "stretched"), offset], "moved")
    rest = to.add("Sigmoid", [rest], "scores")
    together = to.add("Concat", [centres, sizes, rest], "anchors", axis=2)
    tensor = to.reshape(together, [image.channels, image.height, image.width], "")
    to.heads[tensor] = (image.channels, image.height, image.width)
    if to.decode:
        last = to.add("Transpose", [together], "channels_last", perm=[0, 1, 3, 4, 2])
        parts = _split(to, last, [2, 2, 1, classes], ["xy", "wh", "objectness", "classes"], -1)
        columns, rows = np.meshgrid(np.arange(image.width), np.arange(image.height))
        anchors = np.array(_anchors(section, total))[mask] / to.network_size
        _decode(to, parts, np.stack([columns, rows], -1)[None], anchors[:, None, None], image, len(mask), classes)
    return FeatureMap(tensor, image.channels, image.height, image.width)


def region(section: Section, to: Builder) -> FeatureMap:
    """The objectness of each anchor through a logistic, and with softmax=1 its classes through a softmax; the rest raw.

    The output is [N, H, W, anchors, 5 + classes], as Darknet's.
    """
    image, classes = to.image(section), section.integer("classes", 20, 1)
    number = section.integer("num", 1, 1)
    if section.integer("coords", 4, 1) != 4:
        raise section.error("only boxes of 4 coordinates are converted", "coords")
    _require_channels(section, image, number, classes)

    last = to.add("Transpose", [image.tensor], "channels_last", perm=[0, 2, 3, 1])
    shape = [image.height, image.width, number, _OWN + classes]
    parts = ["raw_xy", "wh", "logit", "raw_classes"]
    xy, wh, objectness, scores = _split(to, to.reshape(last, shape, "anchors"), [2, 2, 1, classes], parts, -1)
    objectness = to.add("Sigmoid", [objectness], "objectness")
    if section.integer("softmax", 0, 0):
        scores = to.add("Softmax", [scores], "classes", axis=-1)
    tensor = to.add("Concat", [xy, wh, objectness, scores], axis=-1)
    to.heads[tensor] = tuple(shape)
    if to.decode:
        xy = to.add("Sigmoid", [xy], "xy")
        columns, rows = np.meshgrid(np.arange(image.width), np.arange(image.height))
        cells = np.stack([columns, rows], -1)[:, :, None]
        anchors = np.array(_anchors(section, number)) / (image.width, image.height)
        _decode(to, [xy, wh, objectness, scores], cells, anchors, image, number, classes)
    return FeatureMap(tensor, image.channels, image.height, image.width)


def _split(to: Builder, tensor: str, sizes: list[int], names: list[str], axis: int) -> list[str]:
    parts = to.shared(f"split_{'_'.join(map(str, sizes))}", np.array(sizes, np.int64))
    return to.add_split("Split", [tensor, parts], names, axis=axis)


def _decode(
    to: Builder,
    parts: list[str],
    cells: NDArray[np.int64],
    anchors: NDArray[np.float64],
    image: FeatureMap,
    number: int,
    classes: int,
) -> None:
    """Add the boxes of a detection layer.

    Args:
        to: where to.
        parts: four tensors [N, ...], numbers last: x and y in the cell, log of w and h, objectness, classes.
        cells: column and row of each box's cell, in the order of the parts.
        anchors: width and height of each box's anchor, as parts of the network's input, likewise.
        image: the layer's input.
        number: anchors per cell.
        classes: number of classes.
    """
    xy, wh, objectness, scores = parts
    shape = {"cells": cells, "grid": np.array([image.width, image.height]), "priors": anchors}
    cell, grid, anchor = (to.constant(name, value.astype(np.float32)) for name, value in shape.items())
    centre = to.add("Div", [to.add("Add", [xy, cell], "cell_xy"), grid], "box_xy")
    size = to.add("Mul", [to.add("Exp", [wh], "anchor_wh"), anchor], "box_wh")
    box = to.add("Concat", [centre, size], "box", axis=-1)
    score = to.add("Mul", [objectness, scores], "class_scores")
    count = number * image.height * image.width
    place = to.reshape(box, [count, 4], "boxes")
    to.boxes.append(Boxes(place, to.reshape(score, [count, classes], "box_scores"), count, classes))


def _require_channels(section: Section, image: FeatureMap, anchors: int, classes: int) -> None:
    wanted = anchors * (_OWN + classes)
    if image.channels != wanted:
        raise section.error(
            f"{anchors} anchors of 5 + {classes} numbers take {wanted} channels; the layer before has {image.channels}"
        )


def _anchors(section: Section, number: int) -> list[list[float]]:
    """Width and height of each anchor."""
    numbers = section.numbers("anchors")
    if len(numbers) < 2 * number:
        raise section.error(f"{number} anchors need {2 * number} numbers, width and height of each", "anchors")
    return [numbers[place : place + 2] for place in range(0, 2 * number, 2)]
