"""A Darknet network as a float ONNX model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from onnx import ModelProto

from bnn_deploy.errors import InputError, option
from bnn_deploy.source.darknet import heads, layers
from bnn_deploy.source.darknet.builder import Builder, FeatureMap
from bnn_deploy.source.darknet.cfg import Section, read_cfg
from bnn_deploy.source.darknet.weights import WeightsFile

XnorPadding = Literal[-1, 0]
"""What an xnor layer is padded with: -1, as Darknet's packed inference does, or 0, as its training on a GPU does."""


@dataclass(frozen=True)
class Darknet:
    """A Darknet network.

    Attributes:
        cfg: the .cfg file.
        weights: the .weights file.
        xnor_padding: what xnor layers are padded with.
        decode: whether the boxes of the detection layers are outputs, too.
    """

    cfg: str | os.PathLike[str]
    weights: str | os.PathLike[str]
    xnor_padding: XnorPadding = -1
    decode: bool = False

    @property
    def note(self) -> str:
        """What was taken for the padding, for reports."""
        said = {-1: "as Darknet's inference on a CPU does", 0: "as Darknet's training on a GPU does"}
        other = 0 if self.xnor_padding else -1
        return (
            f"xnor layers are padded with {self.xnor_padding}, {said[self.xnor_padding]}; "
            f"{option('xnor_padding', other)} pads them with {other}, {said[other]}"
        )


@dataclass(frozen=True)
class _Kind:
    """A type of layer.

    Attributes:
        add: adds it to the graph and returns its output.
        read: the keys of its section that `add` reads.
        ignored: the keys that do not change what it computes: of training, and of Darknet's memory and speed.
        off: the keys that must be 0: what they switch on is not converted.
        short: how its layers are named, with their index behind.
    """

    add: Callable[[Section, Builder], FeatureMap]
    read: str = ""
    ignored: str = ""
    off: str = ""
    short: str = ""


def is_cfg(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether `source` is the path of a Darknet network's .cfg file."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix == ".cfg"


def darknet_network(
    source: object,
    weights: str | os.PathLike[str] | None,
    xnor_padding: XnorPadding | None,
    decode: bool,
) -> Darknet | None:
    """The network that the arguments of `convert` mean; None if `source` is no .cfg file.

    Args:
        source: any source of a conversion.
        weights: the .weights file.
        xnor_padding: see `Darknet`; None for -1.
        decode: see `Darknet`.

    Raises:
        InputError: a .cfg file without weights, the arguments of one for another source, or a padding that is none.
    """
    if not is_cfg(source):
        if weights is not None or xnor_padding is not None or decode:
            raise InputError(
                f"{option('darknet_weights')}, {option('xnor_padding')} and {option('decode')} belong to a Darknet "
                "network: give its .cfg file"
            )
        return None
    if weights is None:
        raise InputError(
            f"{os.fspath(source)}: a Darknet network needs its weights: give "
            f"{option('darknet_weights', example='FILE.weights')}"
        )
    if xnor_padding not in (None, -1, 0):
        raise InputError(f"{option('xnor_padding', xnor_padding)}: xnor layers are padded with -1 or 0")
    return Darknet(source, weights, -1 if xnor_padding is None else xnor_padding, decode)


_TRAINING = "learning_rate clip onlyforward dont_update burnin_update stopbackward train_only_bn stream wait_stream"

_OFF = "dontload dontloadscales"

_KINDS = {
    "convolutional": _Kind(
        layers.convolutional,
        "filters size stride stride_x stride_y dilation pad padding groups activation batch_normalize cbn xnor binary "
        "bin_output",
        "dot grad_centr angle assisted_excitation",
        "antialiasing flipped reverse coordconv sway rotate stretch stretch_sway",
        "conv",
    ),
    "connected": _Kind(layers.connected, "output activation batch_normalize"),
    "maxpool": _Kind(
        layers.maxpool,
        "size stride stride_x stride_y padding",
        "out_channels",
        "maxpool_depth antialiasing maxpool_zero_nonmax",
    ),
    "avgpool": _Kind(layers.avgpool),
    "route": _Kind(layers.route, "layers groups group_id"),
    "shortcut": _Kind(layers.shortcut, "from activation weights_type", "weights_normalization"),
    "upsample": _Kind(layers.upsample, "stride scale"),
    "softmax": _Kind(layers.softmax, "groups temperature", "noloss", "spatial"),
    "dropout": _Kind(layers.nothing, "", "probability dropblock dropblock_size_rel dropblock_size_abs"),
    "cost": _Kind(layers.nothing, "", "type scale ratio smooth noobj thresh"),
    "yolo": _Kind(
        heads.yolo,
        "classes num mask anchors scale_x_y",
        "ignore_thresh truth_thresh iou_thresh jitter resize random max max_delta counters_per_class label_smooth_eps "
        "objectness_smooth iou_normalizer obj_normalizer cls_normalizer delta_normalizer iou_loss iou_thresh_kind "
        "beta_nms nms_kind focal_loss show_details track_history_size sim_thresh dets_for_track dets_for_show "
        "track_ciou_norm",
        "new_coords",
    ),
    "region": _Kind(
        heads.region,
        "classes num coords softmax anchors",
        "log sqrt focal_loss jitter resize rescore thresh absolute random coord_scale object_scale noobject_scale "
        "mask_scale class_scale bias_match max",
        "classfix",
    ),
}
"""Section -> how its layer is converted; all other sections are refused."""


def read_darknet(network: Darknet) -> ModelProto:
    """Read a Darknet network as a float ONNX model.

    Its input is "input", [batch, channels, height, width] float32: RGB in [0, 1]. Its outputs are those of the [yolo]
    and [region] layers, named "yolo16" and the like, whose numbers are in Darknet's order; of a network without them,
    the last layer's. With `decode`, "boxes" [batch, B, 4] has the centre, width and height of each box as parts of the
    network's input, and "scores" [batch, B, classes] the objectness times the class's score, of all heads one after the
    other; thresholds and non-maximum suppression come after.

    Raises:
        InputError: a file is missing or damaged, the two do not belong together, or there is a layer, key or value that
            is not converted; with the line of the .cfg file.
    """
    net, *sections = read_cfg(network.cfg)
    if not sections:
        raise net.error("there are no layers behind it")
    channels, height, width = (net.integer(key, 0, 0) for key in ("channels", "height", "width"))
    if not (channels and height and width):
        raise net.error("it needs channels=, height= and width=, the size of the network's input")
    for section in sections:
        kind = _KINDS.get(section.kind)
        if kind is None:
            raise section.error(f"this type of layer is not converted; {', '.join(_KINDS)} are")
        ignored, off = (f"{kind.ignored} {_TRAINING}".split(), f"{kind.off} {_OFF}".split())
        section.require_keys(kind.read.split(), ignored, off)
    weights = WeightsFile(network.weights)
    image = FeatureMap("input", channels, height, width)
    builder = Builder(
        weights, network.xnor_padding, (width, height), network.decode, image, raw_sums=_raw_sums(sections)
    )
    for section in sections:
        kind = _KINDS[section.kind]
        builder.label = f"{kind.short or section.kind}{section.index}"
        builder.feature = kind.add(section, builder)
        builder.layers.append(builder.feature)
    outputs = dict(builder.heads)
    if network.decode:
        outputs |= _boxes(net, builder)
    if not outputs:
        last = builder.feature
        if last.tensor == "input":
            raise net.error("no layer behind it computes anything")
        outputs[last.tensor] = (last.channels,) if last.flat else (last.channels, last.height, last.width)
    weights.require_end(net)
    return builder.model(channels, outputs)


def _boxes(net: Section, builder: Builder) -> dict[str, tuple[int, ...]]:
    """Concatenate the boxes of all heads, and their scores."""
    if not builder.boxes:
        raise net.error("there are no boxes to decode: the network has no [yolo] or [region] layer")
    classes = {boxes.classes for boxes in builder.boxes}
    if len(classes) > 1:
        raise net.error(f"the boxes cannot be decoded: its heads have different numbers of classes, {sorted(classes)}")
    number = sum(boxes.number for boxes in builder.boxes)
    builder.label = "boxes"
    place = builder.add("Concat", [boxes.place for boxes in builder.boxes], axis=1)
    builder.label = "scores"
    scores = builder.add("Concat", [boxes.scores for boxes in builder.boxes], axis=1)
    return {place: (number, 4), scores: (number, builder.boxes[0].classes)}


def _raw_sums(sections: list[Section]) -> frozenset[int]:
    """The xnor layers whose activation Darknet leaves out: with bin_output=1, and read by no route or shortcut."""
    read: set[int] = set()
    for section in sections:
        if section.kind == "route":
            read |= set(layers.earlier(section, "layers"))
        if section.kind == "shortcut":
            read |= {section.index - 1, layers.earlier(section, "from")[0]}
    return frozenset(
        section.index
        for section in sections
        if section.kind == "convolutional"
        and section.integer("xnor", 0, 0)
        and section.integer("bin_output", 0, 0)
        and section.index not in read
    )
