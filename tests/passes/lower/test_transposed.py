"""Transposed convolutions: which become binary convolutions, one per phase of the output, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from bnn_deploy.passes.graph import constant, is_binary_op
from bnn_deploy.passes.lower.each_layer import EachLayer
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.lower.lower_levels import LowerLevels
from bnn_deploy.passes.lower.phases import find_phases
from bnn_deploy.passes.outcome import display_name
from bnn_deploy.provenance import part_of
from support.graphs import Array, copy, eighths, equal, op_types, parse, run_binary, run_float, samples, weights

SIGN = "s = Sign(x)"
LEVELS = "c = Clip(x, zero, three)\ns = Round(c)"


def lower(
    text: str, x: Any = ("N", 4, 4, 5), by: type[EachLayer[Any]] = LowerBinaryConv, **constants: Array
) -> tuple[ir.Model, ir.Model, list[str]]:
    """The model, the lowered one, and why layers were declined."""
    before = parse(text, x, **constants)
    after = copy(before)
    result = by()(after)
    common.RemoveUnusedNodesPass()(after)
    return before, after, [decline.reason for decline in result.declined]


def check(before: ir.Model, after: ir.Model, x: Array | None = None) -> None:
    """Assert that bodies and kernels equal the float graph bit for bit, and do not with a weight bit flipped."""
    x = samples(before, 2) if x is None else x
    expected = run_float(before, x)
    for kernels in (False, True):
        assert equal(run_binary(after, x, kernels), expected), f"kernels: {kernels}"
    phases = [node for node in after.graph if is_binary_op(node, "BinaryConv", "BinaryConvLevels", "BinaryConvBases")]
    target = next(node for node in phases if np.asarray(constant(node.inputs[2])).any()).inputs[1]
    assert target is not None
    words = np.array(constant(target))
    words.flat[-1] ^= 1
    target.const_value = ir.tensor(words, name=target.name)
    assert not equal(run_binary(after, x, kernels=True), expected)


GEOMETRIES = {
    "the kernel is the stride": ("strides=[2, 2]", (2, 2)),
    "4 by 2": ("strides=[2, 2], pads=[1, 1, 1, 1]", (4, 4)),
    "output padding": ("strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]", (3, 3)),
    "sizes that are no multiple of the stride": ("strides=[2, 3], pads=[1, 1, 1, 1]", (3, 4)),
    "stride 1": ("pads=[1, 0, 1, 0]", (3, 2)),
    "unlike": ("strides=[3, 1], pads=[0, 2, 1, 1], output_padding=[2, 0], dilations=[1, 2]", (5, 3)),
    "phases without a tap": ("strides=[2, 2], dilations=[2, 1], pads=[1, 0, 1, 0]", (3, 1)),
    "pads that skip elements of the input": ("strides=[3, 2], pads=[1, 2, 1, 1]", (3, 2)),
    "groups": ("strides=[2, 2], pads=[1, 1, 1, 1], group=2", (4, 3)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_fires(name: str) -> None:
    attributes, kernel = GEOMETRIES[name]
    per_group = 3 if "group" in attributes else 6
    before, after, declined = lower(
        f"{SIGN}\ny = ConvTranspose<{attributes}>(s, w, b)", w=weights(4, per_group, *kernel), b=eighths(6)
    )
    assert declined == [] and "ConvTranspose" not in op_types(after)
    check(before, after)


def test_one_dimension() -> None:
    text = f"{SIGN}\ny = ConvTranspose<strides=[2], pads=[1, 1]>(s, w, b)"
    before, after, _ = lower(text, ("N", 4, 7), w=weights(4, 6, 4), b=eighths(6))
    assert op_types(after) == ["Binarize", "BinaryConv", "BinaryConv", "Unsqueeze", "Unsqueeze", "Concat", "Reshape"]
    check(before, after)


def test_sizes_that_are_not_known() -> None:
    text = f"{SIGN}\ny = ConvTranspose<strides=[2, 2], pads=[1, 1, 1, 1]>(s, w, b)"
    before, after, _ = lower(text, ("N", 4, "H", "W"), w=weights(4, 6, 3, 3), b=eighths(6))
    check(before, after, samples(parse("y = Relu(x)", ("N", 4, 4, 5))))


def test_levels() -> None:
    numbers = {"zero": np.float32(0), "three": np.float32(3)}
    text = f"{LEVELS}\ny = ConvTranspose<strides=[2, 2], pads=[1, 1, 0, 0]>(s, w, b)"
    before, after, _ = lower(text, by=LowerLevels, w=weights(4, 6, 3, 3, alpha=0.5), b=eighths(6), **numbers)
    assert op_types(after).count("BinaryConvLevels") == 4
    check(before, after)


def test_shared_weights_and_fan_out() -> None:
    text = (
        f"{SIGN}\na = ConvTranspose<strides=[2, 2]>(s, w)\nb = ConvTranspose<pads=[0, 0, 1, 1]>(s, w)\n"
        "c = ConvTranspose<strides=[2, 2]>(s, w)\nd = Add(a, c)\ne = ReduceMean<keepdims=0>(d, i)\n"
        "f = ReduceMean<keepdims=0>(b, i)\ny = Add(e, f)"
    )
    before, after, _ = lower(text, w=weights(4, 6, 2, 2), i=np.array([1, 2, 3]))
    assert op_types(after).count("Binarize") == 1
    check(before, after)


def test_the_phases_are_parts_of_one_layer() -> None:
    _, after, _ = lower(f"{SIGN}\ny = ConvTranspose<strides=[2, 2]>(s, w)", w=weights(4, 6, 2, 2))
    found = [(display_name(node), part_of(node)) for node in after.graph if node.op_type == "BinaryConv"]
    assert found == [("y", None), ("y_phase_1", "y"), ("y_phase_2", "y"), ("y_phase_3", "y")]


@pytest.mark.usefixtures("small_sums_pay")
def test_one_alpha_per_input_channel() -> None:
    """As by a rule for Conv that is applied to [C, O, kernel...]: two bases."""
    per_input = np.float32([1, 2, 1, 2]).reshape(4, 1, 1, 1)
    before, after, _ = lower(f"{SIGN}\ny = ConvTranspose<strides=[2, 2]>(s, w)", w=weights(4, 6, 2, 2) * per_input)
    assert op_types(after).count("BinaryConvBases") == 4
    check(before, after)


@pytest.mark.parametrize(
    ("attributes", "weight", "reason"),
    [
        ("output_shape=[8, 8]", weights(4, 6, 3, 3), "output_shape gives its pads"),
        ('auto_pad="SAME_UPPER"', weights(4, 6, 3, 3), "auto_pad = SAME_UPPER"),
        ("strides=[2, 2]", np.random.default_rng(0).standard_normal((4, 6, 2, 2), np.float32), "its weights are real"),
    ],
)
def test_does_not_lower(attributes: str, weight: Array, reason: str) -> None:
    _, after, declined = lower(f"{SIGN}\ny = ConvTranspose<{attributes}>(s, w)", w=weight)
    assert op_types(after) == ["Sign", "ConvTranspose"]
    assert len(declined) == 1 and reason in declined[0]


def test_no_phase_skips_elements_of_the_input_or_is_shorter_than_another() -> None:
    """For any size: pads below 0, which no convolution has, would be needed."""
    for kernel, stride, dilation, begin, end in np.ndindex(6, 4, 4, 4, 4):
        found = find_phases([kernel + 1], [stride + 1], [dilation + 1], [begin, end], [0])
        for phase in found.phases:
            assert min(phase.pads) >= 0
            assert sum(phase.pads) - (phase.kernel[0] - 1) * phase.dilations[0] == found.extra[0]
        assert min(found.crop) >= 0
