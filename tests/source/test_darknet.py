"""Darknet's layers: our float graph against what Darknet computed, and against plain numpy, layer by layer."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.source.darknet.network import Darknet, XnorPadding, read_darknet
from support.darknet import DarknetNetwork, Sections
from support.darknet_networks import NETWORKS, conv, pool, xnor, yolo

EXPORTS = Path(__file__).parents[1] / "exports"

Array = NDArray[Any]


def outputs(network: Darknet, x: Array) -> dict[str, Array]:
    """The float graph's outputs in plain onnxruntime."""
    session = ort.InferenceSession(read_darknet(network).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": x.astype(np.float32)}), strict=True))


def close(got: Array, expected: Array) -> bool:
    return got.shape == expected.shape and np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


# What Darknet itself computed.


@functools.cache
def recorded(name: str) -> dict[str, Array]:
    with np.load(EXPORTS / f"darknet_{name}.npz") as data:
        return dict(data)


def of_darknet(name: str, padding: XnorPadding = -1) -> Darknet:
    return Darknet(EXPORTS / f"darknet_{name}.cfg", EXPORTS / f"darknet_{name}.weights", padding)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_darknet_computed(name: str) -> None:
    expected = dict(recorded(name))
    x = expected.pop("x")
    got = outputs(of_darknet(name), x)
    assert got.keys() == expected.keys()
    assert all(close(got[head], expected[head]) for head in got)
    # Darknet's inference pads with -1.
    padded = outputs(of_darknet(name, 0), x)
    assert not any(close(padded[head], expected[head]) for head in padded)


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_numpy_computes_what_darknet_computed(name: str, tmp_path: Path) -> None:
    sections, (height, width) = NETWORKS[name]
    x = np.random.default_rng(1).random((4, 3, height, width), np.float32)
    network = DarknetNetwork({"width": width, "height": height, "channels": 3}, sections, x)
    assert network.weights() == (EXPORTS / f"darknet_{name}.weights").read_bytes()
    expected = recorded(name)
    for index, output in enumerate(network.run(expected["x"])):
        if (key := f"{sections[index][0]}{index}") in expected:
            assert close(output.reshape(expected[key].shape), expected[key])


# Every type of layer with every option, against plain numpy.

X = np.random.default_rng(0).standard_normal((2, 4, 9, 12))

NET = {"width": 12, "height": 9, "channels": 4}

DOUBLE = {"from": "-2", "activation": "linear"}

CASES: dict[str, tuple[Sections, int, dict[str, Any]]] = {
    "a stride of each direction": ([conv(6, stride_x=1, stride_y=3)], 0, {"activation": "relu"}),
    "strides that differ, xnor": ([xnor(6, stride_x=2, stride_y=1)], 0, {"xnor": 0, "groups": 1}),
    "padding": ([conv(6, 5, padding=1, pad=0)], 0, {"activation": "linear"}),
    "no padding": ([conv(6, 3, "linear", pad=0)], 0, {"activation": "leaky"}),
    "a bias and no BatchNorm": ([conv(6, 3, "relu", 0)], 0, {"activation": "linear"}),
    "logistic is the default": ([("convolutional", {"filters": 3})], 0, {"activation": "relu"}),
    "mish": ([conv(6, activation="mish")], 0, {"activation": "swish"}),
    "swish": ([conv(6, activation="swish")], 0, {"activation": "mish"}),
    "groups": ([conv(6, groups=2)], 0, {"activation": "linear"}),
    "dilation": ([conv(6, dilation=2)], 0, {"dilation": 1}),
    "binary weights alone": ([conv(6, binary=1)], 0, {"binary": 0}),
    "xnor of real inputs": ([xnor(6)], 0, {"xnor": 0, "binary": 1}),
    "xnor has no groups": ([xnor(6, groups=2)], 0, {"xnor": 0, "binary": 1, "groups": 1}),
    "xnor, dilated": ([xnor(6, dilation=2)], 0, {"dilation": 1}),
    "xnor without padding": ([xnor(6, pad=0)], 0, {"xnor": 0, "binary": 1}),
    "xnor with a bias": ([xnor(6, 3, "linear", 0)], 0, {"xnor": 0, "binary": 1}),
    "bin_output leaves the activation out": ([xnor(6, bin_output=1)], 0, {"bin_output": 0}),
    "not before a shortcut": (
        [xnor(4, bin_output=1), xnor(4, bin_output=1), ("shortcut", DOUBLE)],
        0,
        {"activation": "linear"},
    ),
    "nor where a route reads it": (
        [xnor(4, bin_output=1), conv(4), ("route", {"layers": "0,-1"})],
        0,
        {"activation": "linear"},
    ),
    "bin_output of a real layer": ([conv(6, bin_output=1)], 0, {"activation": "linear"}),
    "pool: default padding": ([pool(2, 2)], 0, {"padding": 0, "size": 1}),
    "pool: size is the stride": ([("maxpool", {"stride": 3})], 0, {"padding": 1}),
    "pool: size 3, stride 1": ([pool(3, 1)], 0, {"size": 2, "padding": 1}),
    "pool: padding of 1 is behind": ([pool(3, 2, padding=1)], 0, {"padding": 2}),
    "pool: no padding": ([pool(3, 3, padding=0)], 0, {"size": 2}),
    "pool: a stride of each direction": ([("maxpool", {"size": 2, "stride_x": 1, "stride_y": 2})], 0, {"size": 3}),
    "avgpool": ([conv(6), ("avgpool", {})], 0, {"activation": "linear"}),
    "upsample": ([("upsample", {"stride": 3, "scale": 0.5})], 0, {"scale": 1}),
    "route: a group of one": ([conv(6), ("route", {"layers": -1, "groups": 3, "group_id": 1})], 1, {"group_id": 2}),
    "route: a group of several": (
        [conv(6), conv(4), ("route", {"layers": "0, 1", "groups": 2, "group_id": 1})],
        2,
        {"group_id": 0},
    ),
    "shortcut of several": (
        [conv(4), conv(4), conv(4), ("shortcut", {"from": "-2,-3", "activation": "leaky"})],
        3,
        {"from": "-2"},
    ),
    "shortcut, leaky": (
        [conv(4), conv(4), ("shortcut", {"from": 0, "activation": "leaky"})],
        2,
        {"activation": "relu"},
    ),
    "connected": ([("connected", {"output": 5})], 0, {"activation": "linear"}),
    "connected, BatchNorm": (
        [("connected", {"output": 5, "batch_normalize": 1, "activation": "leaky"})],
        0,
        {"activation": "linear"},
    ),
    "an image of a linear layer's output": (
        [("connected", {"output": 8, "activation": "relu"}), conv(6, 3), ("route", {"layers": "0,1"})],
        1,
        {"activation": "relu"},
    ),
    "softmax": ([("softmax", {})], 0, {"temperature": 2}),
    "softmax of groups": ([("softmax", {"groups": 4, "temperature": 2})], 0, {"groups": 2}),
    "dropout and cost": (
        [conv(4, activation="linear"), ("dropout", {"probability": 0.9}), ("cost", {"type": "sse"})],
        0,
        {"activation": "leaky"},
    ),
    "yolo": ([conv(14, 1, "linear", 0), yolo("0,1")], 1, {"classes": 9}),
    "yolo, scale_x_y": ([conv(14, 1, "linear", 0), yolo("0,1", scale_x_y=1.2)], 1, {"scale_x_y": 1}),
    "yolo, all anchors": (
        [conv(14, 1, "linear", 0), ("yolo", {"num": 2, "classes": 2})],
        1,
        {"classes": 9},
    ),
    "region": ([conv(14, 1, "linear", 0), ("region", {"num": 2, "classes": 2, "softmax": 1})], 1, {"softmax": 0}),
    "region, no softmax": ([conv(14, 1, "linear", 0), ("region", {"num": 2, "classes": 2})], 1, {"softmax": 1}),
}
"""Name -> the layers; and which layer's keys to change, and how, so that the output must be another."""


@pytest.mark.parametrize("padding", [-1, 0])
@pytest.mark.parametrize("name", CASES)
def test_each_layer_computes_what_plain_numpy_computes(name: str, padding: XnorPadding, tmp_path: Path) -> None:
    sections, index, wrong = CASES[name]
    if padding == 0 and not any(keys.get("xnor") for _, keys in sections):
        padding = -1  # it is the same
    network = DarknetNetwork(NET, sections, X, padding)
    files = network.write(tmp_path)
    (got,) = outputs(Darknet(*files, padding), X).values()
    assert close(got, network.run(X, padding)[-1])
    assert not close(got, network.altered(index, **wrong).run(X, padding)[-1]), "the option does nothing"
    if any(keys.get("xnor") and keys.get("pad") for _, keys in sections):
        assert not close(got, network.run(X, -1 - padding)[-1]), "the padding does nothing"


# The boxes.


@pytest.mark.parametrize("name", ["yolo", "region"])
def test_the_boxes_are_those_of_darknet(name: str, tmp_path: Path) -> None:
    sections, (height, width) = NETWORKS[name]
    x = np.random.default_rng(2).random((2, 3, height, width))
    network = DarknetNetwork({"width": width, "height": height, "channels": 3}, sections, x)
    files = network.write(tmp_path)
    found = outputs(Darknet(*files, decode=True), x)
    heads = outputs(Darknet(*files), x)
    assert list(found) == [*heads, "boxes", "scores"]
    assert all(np.array_equal(found[head], heads[head]) for head in heads)

    def same(boxes: Array) -> bool:
        got = np.concatenate([boxes[0], found["scores"][0]], axis=1)
        return close(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])

    expected = np.array(list(network.boxes(network.run(x))))
    assert same(found["boxes"])
    assert not same(found["boxes"][:, :, [1, 0, 2, 3]]), "x and y"
    assert not same(found["boxes"][:, :, [0, 1, 3, 2]]), "width and height"


def test_heads_of_different_classes_cannot_be_decoded(tmp_path: Path) -> None:
    sections = [conv(14, 1), yolo("0,1"), ("route", {"layers": 0}), yolo("0", classes=9)]
    files = DarknetNetwork(NET, sections, X).write(tmp_path)
    with pytest.raises(InputError, match=r"net.cfg:1: \[net\]: .* different numbers of classes, \[2, 9\]"):
        read_darknet(Darknet(*files, decode=True))


# The files.


def linear(folder: Path, version: tuple[int, int, int], seen: str) -> tuple[Darknet, Array]:
    """A network with a linear layer and BatchNorm, and its output."""
    sections = [("connected", {"output": 5, "batch_normalize": 1, "activation": "linear"})]
    network = DarknetNetwork(NET, sections, X)
    cfg, weights = network.write(folder)
    weights.write_bytes(network.weights(version, seen))
    return Darknet(cfg, weights), network.run(X)[-1]


@pytest.mark.parametrize(
    ("version", "seen"), [((0, 1, 0), "I"), ((0, 2, 5), "Q"), ((1, 0, 0), "Q"), ((0, 1001, 0), "Q")]
)
def test_each_header(version: tuple[int, int, int], seen: str, tmp_path: Path) -> None:
    network, expected = linear(tmp_path, version, seen)
    (got,) = outputs(network, X).values()
    assert close(got, expected)
    with pytest.raises(InputError, match=r"net.weights: it (ends in|has 4 bytes more)"):
        outputs(linear(tmp_path, version, "Q" if seen == "I" else "I")[0], X)


def test_old_versions_transpose_linear_layers(tmp_path: Path) -> None:
    network, expected = linear(tmp_path, (0, 1001, 0), "Q")
    content = Path(network.weights).read_bytes()
    Path(network.weights).write_bytes(content[:4] + (2).to_bytes(4, "little") + content[8:])
    (got,) = outputs(network, X).values()
    assert not close(got, expected)


def test_spaces_comments_short_names_and_repeated_keys(tmp_path: Path) -> None:
    network = DarknetNetwork(NET, [conv(6), pool()], X)
    cfg, weights = network.write(tmp_path)
    cfg.write_text(
        "# a comment\n\n [network]\nheight = 9 # rows\r\nwidth\t= 12\nchannels=4\nchannels=3\nbatch=64\n\n"
        "[conv]\n; another\nbatch_normalize=1\nfilters = 6\nsize=3\nstride=1\npad=1\nactivation = leaky\n"
        "learning_rate=0.1\n[max]\nsize=2\nstride=2\nantialiasing=0"
    )
    (got,) = outputs(Darknet(cfg, weights), X).values()
    assert close(got, network.run(X)[-1])


# What is refused.

BROKEN: dict[str, tuple[Sections, str]] = {
    "another type of layer": (
        [conv(6), ("reorg", {"stride": 2})],
        r"CFG:14: \[reorg\], layer 1: this type of layer is not converted; convolutional, connected, .* are",
    ),
    "an unknown key": (
        [conv(6, filter=3)],
        r"CFG:13: filter=3 in \[convolutional\], layer 0: this key is not known; .* activation.*; and keys of training",
    ),
    "a key that must be off": (
        [pool(antialiasing=1)],
        r"CFG:9: antialiasing=1 in \[maxpool\], layer 0: it is not converted; only 0, .*",
    ),
    "an activation": (
        [conv(6, activation="selu")],
        r"CFG:12: activation=selu in \[convolutional\], layer 0: the activation selu is not converted; linear, .* are",
    ),
    "a value": ([conv(6, stride="two")], r"CFG:10: stride=two in \[convolutional\], layer 0: it takes numbers"),
    "a fraction": ([conv(6, stride=1.5)], r"CFG:10: stride=1.5 .*: it takes integers"),
    "two values": ([conv(6, stride="1,2")], r"CFG:10: stride=1,2 .*: it takes one integer from 1 up"),
    "too low a value": ([conv(0)], r"CFG:8: filters=0 .*: it takes one integer from 1 up"),
    "two numbers": ([("softmax", {"temperature": "1,2"})], r"CFG:7: temperature=1,2 .*: it takes one number"),
    "no divisor": ([conv(6, groups=3)], r"CFG:13: groups=3 .*: it does not divide 4 channels and 6 filters"),
    "a large window": ([conv(6, 15, pad=0)], r"CFG:9: size=15 .*: its window is larger than its input, 9 .*"),
    "a pool of padding": (
        [pool(2, 2, padding=4)],
        r"CFG:9: padding=4 .*: windows of size 2 would lie in the padding.*",
    ),
    "a dilated even size": ([conv(6, 4, dilation=2)], r"CFG:13: dilation=2 .*: with size=4 and padding 2, Darknet .*"),
    "a padded 1x1": ([conv(6, 1, pad=0, padding=2)], r"CFG:13: padding=2 .*: Darknet itself does not pad a 1x1 .*"),
    "a layer behind": ([("route", {"layers": "-1,0"})], r"CFG:7: layers=-1,0 .*: -1 is none of the 0 layers before"),
    "no layer": ([("shortcut", {})], r"CFG:6: \[shortcut\], layer 0: it needs from=, the layers that it reads"),
    "another size": (
        [pool(), conv(4), pool(), ("route", {"layers": "-1,-2"})],
        r"CFG:23: layers=-1,-2 in \[route\], layer 3: the layers have different sizes, 4x3x3 and 4x5x6",
    ),
    "another shape": (
        [conv(4), conv(6), ("shortcut", {"from": -2})],
        r"CFG:23: from=-2 in \[shortcut\], layer 2: that layer's output is 4x9x12, the layer before has 6x9x12",
    ),
    "a weighted shortcut": (
        [conv(4), ("shortcut", {"from": 0, "weights_type": "per_feature"})],
        r"CFG:16: weights_type=per_feature .*: weighted shortcuts are not converted",
    ),
    "a group of a route": (
        [conv(4), ("route", {"layers": 0, "group_id": 1})],
        r"CFG:16: group_id=1 .*: there are 1 .*",
    ),
    "groups of a route": (
        [conv(5), ("route", {"layers": 0, "groups": 2})],
        r"CFG:16: groups=2 .*: .* divide 5 channels",
    ),
    "groups of a softmax": ([("softmax", {"groups": 5})], r"CFG:7: groups=5 .*: it does not divide 432 features"),
    "no temperature": ([("softmax", {"temperature": 0})], r"CFG:7: temperature=0 .*: it has to be above 0"),
    "channels of a head": (
        [conv(6), yolo("0,1")],
        r"CFG:14: \[yolo\], .*: 2 anchors of 5 \+ 2 numbers take 14 channels; .* 6",
    ),
    "an anchor": ([conv(14), yolo("1,6")], r"CFG:15: mask=1,6 .*: there are 6 anchors, by num=; the first is 0"),
    "too few anchors": (
        [conv(14), yolo("0,1", anchors="1,2")],
        r"CFG:16: anchors=1,2 .*: 6 anchors need 12 numbers, .*",
    ),
    "coordinates": (
        [conv(14), ("region", {"num": 2, "classes": 2, "coords": 5})],
        r"CFG:17: coords=5 .*: only boxes of 4 coordinates are converted",
    ),
    "nothing to compute": ([("dropout", {})], r"CFG:1: \[net\]: no layer behind it computes anything"),
    "no boxes": ([conv(4)], r"CFG:1: \[net\]: there are no boxes to decode: .*"),
    "no layers": ([], r"CFG:1: \[net\]: there are no layers behind it"),
}
"""Name -> the layers, and the whole message; CFG is the file's name."""


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    sections, message = BROKEN[name]
    network = DarknetNetwork.__new__(DarknetNetwork)
    network.net, network.sections = NET, sections
    (tmp_path / "net.cfg").write_text(network.cfg())
    (tmp_path / "net.weights").write_bytes(bytes(20 + 4 * 2000))
    with pytest.raises(InputError) as error:
        read_darknet(
            Darknet(tmp_path / "net.cfg", tmp_path / "net.weights", decode=name in ("no boxes", "too few anchors"))
        )
    pattern = message.replace("CFG", re.escape(str(tmp_path / "net.cfg")))
    assert re.fullmatch(pattern, str(error.value)), error.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "net.cfg: a Darknet .cfg file begins with [net]"),
        (b"[convolutional]\n", "net.cfg:1: [convolutional]: a Darknet .cfg file begins with [net]"),
        (b"\xff\xfe", "net.cfg: not a Darknet .cfg file ("),
        (b"width=3\n[net]\n", "net.cfg:1: 'width=3' is neither [section] nor key=value behind one"),
        (b"[net]\nwidth 3\n", "net.cfg:2: 'width 3' is neither"),
        (b"[net]\nwidth=\n", "net.cfg:2: 'width=' is neither"),
        (b"[net]\nwidth=3\nheight=3\n[avgpool]\n", "net.cfg:1: [net]: it needs channels=, height= and width="),
        (None, "net.cfg: no such file"),
    ],
)
def test_what_is_no_cfg_file(text: bytes | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "net.cfg").write_bytes(text)
    with pytest.raises(InputError) as error:
        read_darknet(Darknet(tmp_path / "net.cfg", tmp_path / "net.weights"))
    assert message in str(error.value)


def changed(content: bytes, place: int, number: float) -> bytes:
    """The file with another number at a place, counted from the end if negative."""
    numbers = np.frombuffer(content, "<f4", offset=20).copy()
    numbers[place] = number
    return content[:20] + numbers.tobytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda w: w[:-4],
            r"it ends in layer 1 \(\[connected\], .*net.cfg:14\), with 3239 of the 3240 numbers of its weights",
        ),
        (lambda w: w[:-1], r"it ends in layer 1 .* with 3239 of the 3240 numbers"),
        (
            lambda w: w[: 20 + 4 * 3],
            r"it ends in layer 0 \(\[convolutional\], .*net.cfg:6\), with 3 of the 6 numbers of its b",
        ),
        (
            lambda w: w + b"\0",
            r"it has 1 bytes more than .*net.cfg needs: layer 1 \(\[connected\], line 14\), the last one",
        ),
        (lambda w: w + bytes(8), r"it has 8 bytes more than .*; it belongs to another .cfg"),
        (lambda w: w[:19], r"it has 19 bytes, less than the header"),
        (lambda w: w[:5], r"it has 5 bytes, less than the header"),
        (
            lambda w: changed(w, -1, np.nan),
            r"the weights of layer 1 \(\[connected\], .*:14\) hold NaN or infinity: the ",
        ),
        (
            lambda w: changed(w, 18, -1),
            r"the rolling variance of layer 0 \(\[convolutional\], .*:6\) hold a number below 0",
        ),
    ],
)
def test_weights_that_do_not_fit(damage: Any, message: str, tmp_path: Path) -> None:
    sections = [conv(6), ("connected", {"output": 5, "activation": "linear"}), ("softmax", {})]
    network = DarknetNetwork(NET, sections, X)
    cfg, weights = network.write(tmp_path)
    read_darknet(Darknet(cfg, weights))
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(InputError, match=f"net.weights: {message}"):
        read_darknet(Darknet(cfg, weights))


def test_weights_that_are_missing(tmp_path: Path) -> None:
    cfg, weights = DarknetNetwork(NET, [pool()], X).write(tmp_path)
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"net.weights: it has 1 bytes more than .*: none of its layers has weights"):
        read_darknet(Darknet(cfg, weights))
    with pytest.raises(InputError, match=r"no.weights: no such file"):
        read_darknet(Darknet(cfg, tmp_path / "no.weights"))
