"""Models of one BinaryConvBases, and what they compute by plain numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bnn_deploy.operators.bits import pack_bits
from support.levels import Conv, one_node


@dataclass
class Bases:
    """Random planes and bases of ±1 with random scales, in the geometry of a convolution of levels.

    Attributes:
        conv: the geometry; its own levels and weights are not used.
        count: how many planes and bases.
        signs: [planes + 1, N, C, spatial...], the first 1.
        weights: [bases + 1, O, C/group, kernel...], the first 1.
        scale: [planes + 1, bases + 1, O] float32.
    """

    conv: Conv
    count: tuple[int, int] = (2, 2)
    signs: NDArray[np.int64] = field(init=False, repr=False)
    weights: NDArray[np.int64] = field(init=False, repr=False)
    scale: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(2)
        planes, bases = self.count
        self.signs = rng.choice([-1, 1], (planes + 1, *self.conv.levels.shape))
        self.weights = rng.choice([-1, 1], (bases + 1, *self.conv.w.shape))
        self.signs[0] = self.weights[0] = 1
        self.scale = rng.standard_normal((planes + 1, bases + 1, self.conv.outputs)).astype(np.float32)

    def x(self) -> NDArray[np.uint32]:
        return np.concatenate([pack_bits(np.moveaxis(plane > 0, 1, -1)) for plane in self.signs[1:]], axis=-1)

    def constants(self) -> dict[str, NDArray[np.generic]]:
        words = [pack_bits(np.moveaxis(basis > 0, 1, -1)) for basis in self.weights[1:]]
        return {"W": np.concatenate(words, axis=-1), "scale": self.scale, "bias": self.conv.bias}

    def attributes(self) -> dict[str, object]:
        window = {key: value for key, value in self.conv.attributes().items() if key != "bits"}
        return window | {"planes": self.count[0], "bases": self.count[1]}

    def model(self) -> bytes:
        output = (TensorProto.FLOAT, self.conv.levels.ndim)
        return one_node("BinaryConvBases", self.x(), self.constants(), output, **self.attributes())

    def expected(self) -> NDArray[np.float32]:
        planes, bases = self.count
        order = [(0, q) for q in range(bases + 1)] + [(p, 0) for p in range(1, planes + 1)]
        order += [(p, q) for q in range(1, bases + 1) for p in range(1, planes + 1)]
        column = (-1, *[1] * len(self.conv.kernel))
        y = self.conv.bias.reshape(column) + np.float32(0)
        for p, q in order:
            self.conv.levels, self.conv.w = self.signs[p], self.weights[q]
            y = y + self.scale[p, q].reshape(column) * self.conv.sums().astype(np.float32)
        return y
