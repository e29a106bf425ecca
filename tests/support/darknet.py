"""Darknet networks in plain numpy: the files, and what Darknet computes, written from its sources and not from ours.

A network is its sections, in order: ("convolutional", {"filters": 8, "size": 3, ...}). All arithmetic is float64.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Sections = Sequence[tuple[str, dict[str, Any]]]


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "linear": lambda x: x,
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu": lambda x: np.maximum(x, 0),
    "logistic": logistic,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "swish": lambda x: x * logistic(x),
}


def windows(x: Array, size: int, strides: tuple[int, int], counts: tuple[int, int], dilation: int = 1) -> Array:
    """[size, size, N, C, *counts]: the windows of an image that is padded already."""
    (down, right), (rows, columns) = strides, counts
    found = np.empty((size, size, *x.shape[:2], rows, columns))
    for i in range(size):
        for j in range(size):
            from_row, from_column = x[:, :, i * dilation :: down], j * dilation
            found[i, j] = from_row[:, :, :rows, from_column::right][..., :columns]
    return found


def convolve(
    x: Array, w: Array, strides: tuple[int, int], pad: int, dilation: int, groups: int, border: float
) -> Array:
    """A convolution whose input is padded with `border`."""
    size = w.shape[-1]
    counts = [(extent + 2 * pad - size) // step + 1 for extent, step in zip(x.shape[2:], strides, strict=True)]
    edge = pad * dilation
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)), constant_values=border)
    taken = windows(padded, size, strides, (counts[0], counts[1]), dilation)
    each, out = x.shape[1] // groups, len(w) // groups
    parts = [
        np.einsum("ijncrs,ocij->nors", taken[:, :, :, g * each : (g + 1) * each], w[g * out : (g + 1) * out])
        for g in range(groups)
    ]
    return np.concatenate(parts, 1)


class DarknetNetwork:
    """A network with random parameters, whose BatchNorms have the statistics of the inputs it is made with.

    Attributes:
        net: [net]'s keys; the input's size at least.
        sections: the layers.
        parameters: per layer, name -> float32 array, in the order of the file.
    """

    def __init__(self, net: dict[str, Any], sections: Sections, x: Array, padding: int = -1, seed: int = 0) -> None:
        self.net, self.sections = net, sections
        self.parameters: list[dict[str, NDArray[np.float32]]] = [{} for _ in sections]
        self._random: np.random.Generator | None = np.random.default_rng(seed)
        self.run(x, padding)
        self._random = None

    def altered(self, index: int, **keys: Any) -> DarknetNetwork:
        """The same network, parameters included, but for some keys of one layer."""
        other = copy.copy(self)
        other.sections = list(self.sections)
        kind, old = other.sections[index]
        other.sections[index] = kind, {**old, **keys}
        return other

    def cfg(self) -> str:
        lines = []
        for kind, keys in (("net", self.net), *self.sections):
            lines += [f"[{kind}]", *(f"{key}={value}" for key, value in keys.items()), ""]
        return "\n".join(lines)

    def weights(self, version: tuple[int, int, int] = (0, 2, 5), seen: str = "Q") -> bytes:
        """The .weights file; "Q" is a `seen` of 64 bits, "I" of 32."""
        transposed = max(version[:2]) > 1000
        content = struct.pack("<3i" + seen, *version, 12345)
        for (kind, _), parameters in zip(self.sections, self.parameters, strict=True):
            for name, value in parameters.items():
                stored = value.T if kind == "connected" and name == "weights" and transposed else value
                content += np.ascontiguousarray(stored, "<f4").tobytes()
        return content

    def write(self, folder: Path, name: str = "net") -> tuple[Path, Path]:
        paths = folder / f"{name}.cfg", folder / f"{name}.weights"
        paths[0].write_text(self.cfg())
        paths[1].write_bytes(self.weights())
        return paths

    def run(self, x: Array, padding: int = -1) -> list[Array]:
        """The output of each layer for inputs [N, C, H, W]."""
        x = np.asarray(x, np.float64)
        outputs: list[Array] = []
        for index, (kind, keys) in enumerate(self.sections):
            before = outputs[-1] if outputs else x
            earlier = [outputs[int(i) if int(i) >= 0 else index + int(i)] for i in _list(keys, "layers", "from")]
            if kind in ("convolutional", "route"):
                before, *earlier = (_image(one) for one in (before, *earlier))
            outputs.append(getattr(self, f"_{kind}")(before, keys, index=index, earlier=earlier, padding=padding))
        return outputs

    def _own(self, index: int, name: str, draw: Any) -> Array:
        """A parameter of a layer; drawn while the network is made."""
        if self._random is not None:
            self.parameters[index][name] = np.asarray(draw(self._random), np.float32)
        return self.parameters[index][name].astype(np.float64)

    def _affine(self, index: int, keys: dict[str, Any], number: int, sums: Any, order: Sequence[str]) -> Array:
        """Sums of products with the weights, then BatchNorm or a bias; `order` is that of the file."""
        own = self._own
        norm = bool(keys.get("batch_normalize"))
        if self._random is not None:  # the file's order, with statistics that are known only after the sums
            self.parameters[index] = dict.fromkeys(name for name in order if norm or name in ("biases", "weights"))
        y = sums(lambda draw: own(index, "weights", draw))
        axes = tuple(i for i in range(y.ndim) if i != 1)
        shape = (1, -1, *[1] * (y.ndim - 2))
        bias = own(index, "biases", lambda r: r.normal(0, 0.3, number)).reshape(shape)
        if not norm:
            return y + bias
        scales = own(index, "scales", lambda r: r.uniform(0.5, 1.5, number) * np.where(r.random(number) < 0.2, -1, 1))
        mean = own(index, "mean", lambda r: y.mean(axes))
        variance = own(index, "variance", lambda r: y.var(axes))
        y = (y - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
        return y * scales.reshape(shape) + bias

    def _convolutional(self, x: Array, keys: dict[str, Any], index: int, padding: int, **_: Any) -> Array:
        size, filters = keys.get("size", 1), keys.get("filters", 1)
        stride = keys.get("stride", 1)
        strides = keys.get("stride_y", stride), keys.get("stride_x", stride)
        pad = size // 2 if keys.get("pad") else keys.get("padding", 0)
        xnor = keys.get("xnor", 0)
        groups = 1 if xnor else keys.get("groups", 1)

        def sums(weights: Any) -> Array:
            shape = (filters, x.shape[1] // groups, size, size)
            w = weights(lambda r: r.normal(0, 1, shape) * r.uniform(0.02, 0.2, (filters, 1, 1, 1)))
            if xnor or keys.get("binary"):
                w = np.where(w > 0, 1, -1) * np.abs(w).mean((1, 2, 3), keepdims=True)
            data = np.where(x > 0, 1.0, -1.0) if xnor else x
            return convolve(data, w, strides, pad, keys.get("dilation", 1), groups, padding if xnor else 0)

        y = self._affine(index, keys, filters, sums, ("biases", "scales", "mean", "variance", "weights"))
        activation = keys.get("activation", "logistic")
        if xnor and keys.get("bin_output") and not self._is_read(index):
            activation = "linear"
        return ACTIVATIONS[activation](y)

    def _is_read(self, index: int) -> bool:
        """Whether a route or shortcut reads a layer."""
        for own, (kind, keys) in enumerate(self.sections):
            named = [int(i) if int(i) >= 0 else own + int(i) for i in _list(keys, "layers", "from")]
            if (kind == "route" and index in named) or (kind == "shortcut" and index in (own - 1, named[0])):
                return True
        return False

    def _connected(self, x: Array, keys: dict[str, Any], index: int, **_: Any) -> Array:
        flat, number = x.reshape(len(x), -1), keys.get("output", 1)
        shape = (number, flat.shape[1])

        def sums(weights: Any) -> Array:
            return flat @ weights(lambda r: r.normal(0, flat.shape[1] ** -0.5, shape)).T

        y = self._affine(index, keys, number, sums, ("biases", "weights", "scales", "mean", "variance"))
        return ACTIVATIONS[keys.get("activation", "logistic")](y)

    def _maxpool(self, x: Array, keys: dict[str, Any], **_: Any) -> Array:
        stride = keys.get("stride", 1)
        size = keys.get("size", stride)
        strides = keys.get("stride_y", stride), keys.get("stride_x", stride)
        padding = keys.get("padding", size - 1)
        rows, columns = ((n + padding - size) // step + 1 for n, step in zip(x.shape[2:], strides, strict=True))
        edges = (padding // 2, padding + size)  # enough behind for every window
        padded = np.pad(x, ((0, 0), (0, 0), edges, edges), constant_values=-np.inf)
        return windows(padded, size, strides, (rows, columns)).max((0, 1))

    def _avgpool(self, x: Array, keys: dict[str, Any], **_: Any) -> Array:
        return x.mean((2, 3), keepdims=True)

    def _route(self, x: Array, keys: dict[str, Any], earlier: list[Array], **_: Any) -> Array:
        groups, group = keys.get("groups", 1), keys.get("group_id", 0)
        return np.concatenate([np.split(one, groups, 1)[group] for one in earlier], 1)

    def _shortcut(self, x: Array, keys: dict[str, Any], earlier: list[Array], **_: Any) -> Array:
        return ACTIVATIONS[keys.get("activation", "linear")](x + sum(earlier))

    def _upsample(self, x: Array, keys: dict[str, Any], **_: Any) -> Array:
        stride = keys.get("stride", 2)
        return x.repeat(stride, 2).repeat(stride, 3) * keys.get("scale", 1)

    def _softmax(self, x: Array, keys: dict[str, Any], **_: Any) -> Array:
        groups = x.reshape(len(x), keys.get("groups", 1), -1) / keys.get("temperature", 1)
        return softmax(groups).reshape(len(x), -1)

    def _dropout(self, x: Array, keys: dict[str, Any], **_: Any) -> Array:
        return x

    _cost = _dropout

    def _yolo(self, x: Array, keys: dict[str, Any], **_: Any) -> Array:
        """Planes of each anchor: x, y, w, h, objectness, classes."""
        y = x.copy()
        each = 5 + keys["classes"]
        scale = keys.get("scale_x_y", 1)
        for start in range(0, x.shape[1], each):
            y[:, start : start + 2] = logistic(x[:, start : start + 2]) * scale - 0.5 * (scale - 1)
            y[:, start + 4 : start + each] = logistic(x[:, start + 4 : start + each])
        return y

    def _region(self, x: Array, keys: dict[str, Any], **_: Any) -> Array:
        """[N, H, W, anchors, 5 + classes]."""
        batch, _channels, rows, columns = x.shape
        y = x.transpose(0, 2, 3, 1).reshape(batch, rows, columns, keys["num"], 5 + keys["classes"]).copy()
        y[..., 4] = logistic(y[..., 4])
        if keys.get("softmax"):
            y[..., 5:] = softmax(y[..., 5:])
        return y

    def boxes(self, outputs: list[Array]) -> set[tuple[float, ...]]:
        """Centre, width, height and the class scores of each box of the first image, one by one, as Darknet does."""
        found = set()
        for (kind, keys), y in zip(self.sections, outputs, strict=True):
            if kind not in ("yolo", "region"):
                continue
            anchors = np.array(_list(keys, "anchors"), float).reshape(-1, 2)
            mask = [int(i) for i in _list(keys, "mask")] if "mask" in keys else range(keys["num"])
            each = 5 + keys["classes"]
            rows, columns = y.shape[2:] if kind == "yolo" else y.shape[1:3]
            for row in range(rows):
                for column in range(columns):
                    for place, anchor in enumerate(mask):
                        if kind == "yolo":
                            box = y[0, place * each : (place + 1) * each, row, column]
                            size = np.exp(box[2:4]) * anchors[anchor] / (self.net["width"], self.net["height"])
                        else:
                            box = y[0, row, column, place].copy()
                            box[:2] = logistic(box[:2])
                            size = np.exp(box[2:4]) * anchors[anchor] / (columns, rows)
                        centre = (column + box[0]) / columns, (row + box[1]) / rows
                        found.add((*centre, *size, *(box[4] * box[5:])))
        return found


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _list(keys: dict[str, Any], *names: str) -> list[str]:
    """The comma-separated values of the first of these keys that there is."""
    return next((str(keys[name]).split(",") for name in names if name in keys), [])


def _image(x: Array) -> Array:
    """A linear layer's output as an image of one pixel."""
    return x.reshape(*x.shape, 1, 1) if x.ndim == 2 else x
