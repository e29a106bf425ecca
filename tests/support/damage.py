"""Smallest damages to a converted model, and the node where `verify` and golden results must find each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from bnn_deploy.operators.bits import pack_bits, unpack_bits
from bnn_deploy.operators.contract import ALWAYS, NEVER
from support.converted import Converted


@dataclass
class Damage:
    """A converted model under change."""

    model: ModelProto

    def node(self, name: str) -> NodeProto:
        return next(node for node in self.model.graph.node if node.name == name)

    def first(self, op_type: str) -> NodeProto:
        return next(node for node in self.model.graph.node if node.op_type == op_type)

    def change(self, name: str, edit: Callable[[np.ndarray], np.ndarray | None]) -> None:
        """Apply `edit` to an initializer; `edit` changes the array in place or returns a new one."""
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor).copy()
        result = edit(array)
        tensor.CopyFrom(numpy_helper.from_array(array if result is None else result, name))

    def attribute(self, node: NodeProto, name: str) -> list[int]:
        return next(a for a in node.attribute if a.name == name).ints

    def channels(self, node: NodeProto) -> int:
        per_group = next(a for a in node.attribute if a.name == "channels").i
        return int(per_group // next(a for a in node.attribute if a.name == "group").i)


def flip_weight_bit(damage: Damage, layer: str) -> None:
    def edit(words: np.ndarray) -> None:
        words[(2, *[0] * (words.ndim - 1))] ^= 1 << 5

    damage.change(damage.node(layer).input[1], edit)


def swap_input_channels(damage: Damage, layer: str) -> None:
    """Swap two input channels of all filters."""
    node = damage.node(layer)
    channels = damage.channels(node)

    def edit(words: np.ndarray) -> np.ndarray:
        signs = unpack_bits(words, channels)
        signs[..., [3, 7]] = signs[..., [7, 3]]
        return pack_bits(signs)

    damage.change(node.input[1], edit)


def move_pad(damage: Damage, layer: str) -> None:
    pads = damage.attribute(damage.node(layer), "pads")
    pads[0] += 1
    pads[2] -= 1


def move_pool_pad(damage: Damage, layer: str) -> None:
    pads = damage.attribute(damage.first("BinaryMaxPool"), "pads")
    pads[0] += 1
    pads[2] -= 1


def move_threshold(step: int) -> Callable[[Damage, str], None]:
    """Move an integer threshold by one, in a channel in which the step changes the bit of a possible sum.

    The sum of n products of ±1 has the parity of n. If the threshold t has that parity, t is a possible sum, whose bit
    a step up clears. Otherwise t - 1 is a possible sum, whose bit a step down sets. The opposite step changes no bit:
    with n even, the thresholds 3 and 4 give the same bits.
    """

    def damage_it(damage: Damage, layer: str) -> None:
        node = damage.node(layer)
        terms = damage.channels(node) * int(np.prod(damage.attribute(node, "kernel_shape")))

        def edit(thresholds: np.ndarray) -> None:
            inner = (thresholds != ALWAYS) & (thresholds != NEVER)
            acts = (thresholds - terms) % 2 == (0 if step > 0 else 1)
            candidates = np.flatnonzero(inner & acts)
            # The channel whose threshold is nearest to 0, where sums are frequent: the step must change some sum's bit.
            channel = candidates[np.abs(thresholds[candidates]).argmin()]
            thresholds[channel] += step

        damage.change(node.input[2], edit)

    return damage_it


def shift_float_threshold(damage: Damage, layer: str) -> None:
    def edit(thresholds: np.ndarray) -> None:
        channel = int(np.flatnonzero(np.isfinite(thresholds))[0])
        thresholds[channel] += np.float32(0.05)

    damage.change(damage.node(layer).input[3], edit)


def change_float_weight(damage: Damage, layer: str) -> None:
    def edit(weights: np.ndarray) -> None:
        weights[3].flat[12] += np.float32(0.05)

    damage.change(damage.node(layer).input[1], edit)


def change_scale(damage: Damage, layer: str) -> None:
    def edit(scale: np.ndarray) -> None:
        scale[4] *= np.float32(1.01)

    damage.change(damage.node(layer).input[2], edit)


def change_bias(damage: Damage, layer: str) -> None:
    def edit(bias: np.ndarray) -> None:
        bias[4] += np.float32(0.05)

    damage.change(damage.node(layer).input[3], edit)


def shift_pads_out_of_shape(damage: Damage, layer: str) -> None:
    damage.attribute(damage.node(layer), "pads")[0] += 1


def with_flipped_bit(model: Path, wrong: Path) -> Path:
    """Write a copy of a converted model whose first binary layer has one weight bit flipped: of filter 0, channel 0."""
    damage = Damage(onnx.load(model))
    name = next(tensor.name for tensor in damage.model.graph.initializer if tensor.name.endswith("weight_bits"))

    def edit(words: np.ndarray) -> None:
        words.flat[0] ^= 1

    damage.change(name, edit)
    onnx.save(damage.model, wrong)
    return wrong


CASES: list[tuple[str, str, Callable[[Damage, str], None], str]] = [
    ("lenet5", "flipped weight bit", flip_weight_bit, "bin_conv2.conv"),
    ("lenet5", "flipped weight bit, linear layer", flip_weight_bit, "bin_ip1.linear"),
    ("lenet5", "threshold up by one", move_threshold(1), "bin_conv2.conv"),
    ("lenet5", "threshold down by one", move_threshold(-1), "bin_conv2.conv"),
    ("lenet5", "float threshold", shift_float_threshold, "conv1"),
    ("lenet5", "float weight", change_float_weight, "conv1"),
    ("lenet5", "swapped channels", swap_input_channels, "bin_conv2.conv"),
    ("lenet5", "swapped channels, linear layer", swap_input_channels, "bin_ip1.linear"),
    ("lenet5", "scale", change_scale, "bin_ip1.linear"),
    ("lenet5", "bias", change_bias, "bin_ip1.linear"),
    ("lenet5", "another output shape", shift_pads_out_of_shape, "bin_conv2.conv"),
    ("nin", "flipped weight bit", flip_weight_bit, "xnor.7.conv"),
    ("nin", "threshold up by one", move_threshold(1), "xnor.6.conv"),
    ("nin", "threshold down by one", move_threshold(-1), "xnor.6.conv"),
    ("nin", "pad", move_pad, "xnor.6.conv"),
    ("nin", "pad of a float layer", move_pad, "xnor.0"),
    ("nin", "pool's pad", move_pool_pad, "xnor.4.conv"),
    ("nin", "swapped channels", swap_input_channels, "xnor.7.conv"),
    ("nin", "scale", change_scale, "xnor.8.conv"),
    ("nin", "bias", change_bias, "xnor.8.conv"),
]


def damaged(converted: Converted, edit: Callable[[Damage, str], None], layer: str, path: Path) -> Path:
    model = onnx.load(converted.model)
    edit(Damage(model), layer)
    onnx.save(model, path)
    assert path.read_bytes() != converted.model.read_bytes()
    return path
