"""Small Darknet networks that have every type of layer; those of tests/exports were run by Darknet itself."""

from __future__ import annotations

from typing import Any

from support.darknet import Sections

Section = tuple[str, dict[str, Any]]

ANCHORS = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"


def conv(filters: int, size: int = 3, activation: str = "leaky", norm: int = 1, **keys: Any) -> Section:
    own = {"batch_normalize": norm, "filters": filters, "size": size, "stride": 1, "pad": 1, "activation": activation}
    return "convolutional", own | keys


def xnor(filters: int, size: int = 3, activation: str = "leaky", norm: int = 1, **keys: Any) -> Section:
    return conv(filters, size, activation, norm, xnor=1, **keys)


def pool(size: int = 2, stride: int = 2, **keys: Any) -> Section:
    return "maxpool", {"size": size, "stride": stride, **keys}


def yolo(mask: str, **keys: Any) -> Section:
    return "yolo", {"mask": mask, "anchors": ANCHORS, "classes": 2, "num": 6, "jitter": 0.3, **keys}


YOLO: Sections = [
    conv(16),
    pool(),
    xnor(32, bin_output=1),
    pool(),
    xnor(32, bin_output=1),
    pool(2, 1),
    xnor(32),
    pool(),
    xnor(32, 1, activation="swish"),
    conv(21, 1, "linear", 0),
    yolo("3,4,5", scale_x_y=1.1),  # 10
    ("route", {"layers": -3}),
    xnor(32, 1, bin_output=1),
    ("upsample", {"stride": 2}),
    ("route", {"layers": "-1, 4"}),
    ("route", {"layers": -1, "groups": 2, "group_id": 1}),
    xnor(32, activation="mish"),
    ("shortcut", {"from": -2, "activation": "linear"}),
    conv(14, 1, "linear", 0),
    yolo("0,1"),  # 19
]
"""As yolov3-tiny_xnor: two heads. [3, 32, 32]."""

REGION: Sections = [
    conv(16),
    pool(),
    xnor(32),
    pool(3, 2, padding=1),
    xnor(32, size=3, stride=2),
    conv(21, 1, "linear", 0),
    ("region", {"anchors": "1,1.2, 3,4, 5,6", "classes": 2, "coords": 4, "num": 3, "softmax": 1}),
]
"""As tiny-yolo_xnor. [3, 24, 32]."""

CLASSIFIER: Sections = [
    conv(32, stride=2),
    pool(3, 2),
    xnor(32, 1),
    xnor(32, 3, "mish"),
    ("shortcut", {"from": -3, "activation": "leaky"}),
    conv(32, 3, "swish", groups=4, dilation=2),
    conv(32, 3, "relu", stride_x=1, stride_y=2),
    ("maxpool", {"size": 2, "stride_x": 1, "stride_y": 2}),
    xnor(32, 3, "linear", 0),
    ("avgpool", {}),
    ("dropout", {"probability": 0.5}),
    ("connected", {"output": 24, "batch_normalize": 1, "activation": "leaky"}),
    ("connected", {"output": 12, "activation": "logistic"}),
    ("softmax", {"groups": 2, "temperature": 0.5}),
    ("cost", {"type": "sse"}),
]
"""Convolutions of all kinds, and linear layers. [3, 32, 32]."""

NETWORKS = {"yolo": (YOLO, (32, 32)), "region": (REGION, (24, 32)), "classifier": (CLASSIFIER, (32, 32))}
"""Name -> layers, and height and width."""
