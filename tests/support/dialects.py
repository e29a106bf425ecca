"""The catalogue of dialects: models with every form of a sign, weights, padding and follower.

One model has one form of sign, and a branch for each combination of weights, padding and follower:

    x -> sign -> [Pad] -> Conv -> follower -> sign -> Conv -> an output of its own

so the first sign feeds many convolutions, and every follower is folded into an integer threshold where that is
possible. Weights are powers of two and biases multiples of 1/16: float32 is exact, and every output must equal the
float graph's to the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnn_deploy.operators.bits import words
from bnn_deploy.operators.contract import OPSET
from bnn_deploy.passes.graph import constant, is_binary_op
from bnn_deploy.source.qonnx import expand_bipolar_quant
from support.graphs import Array, batch_norm

CHANNELS, FILTERS, SIZE, SAMPLES = 5, 6, 5, 12
SHIFT = (np.arange(-2, 3) / 8 + 1 / 16).astype(np.float32)

# {x} is the input, {s} the output; other names are {s} with a suffix, or constants.
SIGNS: dict[str, tuple[str, int]] = {
    "A1 Sign": ("{s} = Sign({x})", 0),
    "A2 Sign, Add, Sign": ("{s}a = Sign({x})\n{s}b = Add({s}a, tenth)\n{s} = Sign({s}b)", 1),
    "A2 with a negative number": ("{s}a = Sign({x})\n{s}b = Add({s}a, minus_tenth)\n{s} = Sign({s}b)", -1),
    "A3 Where(x > 0)": ("{s}a = Greater({x}, zero)\n{s} = Where({s}a, one, minus)", -1),
    "A3 Where(x >= 0)": ("{s}a = GreaterOrEqual({x}, zero)\n{s} = Where({s}a, one, minus)", 1),
    "A3 Where(x < 0)": ("{s}a = Less({x}, zero)\n{s} = Where({s}a, minus, one)", 1),
    "A3 Where(0 < x), ones of x's shape": (
        "{s}h = Shape({x})\n{s}o = Expand(one, {s}h)\n{s}m = Expand(minus, {s}h)\n"
        "{s}a = Less(zero, {x})\n{s} = Where({s}a, {s}o, {s}m)",
        -1,
    ),
    "A3 2 * Cast(x >= 0) - 1": (
        "{s}a = GreaterOrEqual({x}, zero)\n{s}b = Cast <to=1> ({s}a)\n{s}c = Mul({s}b, two)\n{s} = Sub({s}c, one)",
        1,
    ),
    "A3 the same times a number": (
        "{s}a = Greater({x}, zero)\n{s}b = Cast <to=1> ({s}a)\n{s}c = Mul({s}b, two)\n{s}d = Sub({s}c, one)\n"
        "{s} = Mul({s}d, quarter)",
        -1,
    ),
    "A3 1 - 2 * Cast(x < 0)": (
        "{s}a = Less({x}, zero)\n{s}b = Cast <to=1> ({s}a)\n{s}c = Mul({s}b, two)\n{s} = Sub(one, {s}c)",
        1,
    ),
    "A3 Where(Sign == 0, 1, Sign)": ("{s}a = Sign({x})\n{s}b = Equal({s}a, zero)\n{s} = Where({s}b, one, {s}a)", 1),
    "A3 Heaviside": (
        "{s}a = Less({x}, zero)\n{s}b = Equal({x}, zero)\n{s}c = Where({s}b, one, one)\n"
        "{s}d = Where({s}a, zero, {s}c)\n"
        "{s}e = Mul({s}d, two)\n{s} = Sub({s}e, one)",
        1,
    ),
    "A4 (Sign - Clip) + Clip, computed twice": (
        "{s}a = Sign({x})\n{s}b = Clip({x}, minus, one)\n{s}c = Sub({s}a, {s}b)\n{s}d = Clip({x}, minus, one)\n"
        "{s} = Add({s}c, {s}d)",
        0,
    ),
    "A4 x + (Sign - x)": ("{s}a = Sign({x})\n{s}c = Sub({s}a, {x})\n{s} = Add({x}, {s}c)", 0),
    "A4 with Tanh": ("{s}a = Sign({x})\n{s}t = Tanh({x})\n{s}c = Sub({s}a, {s}t)\n{s} = Add({s}c, {s}t)", 0),
    "A4 with Bi-Real Net's polynomial": (
        "{s}a = Sign({x})\n{s}q = Mul({x}, {x})\n{s}d = Mul({x}, two)\n{s}p = Add({s}q, {s}d)\n{s}m = Sub({s}d, {s}q)\n"
        "{s}n = Less({x}, zero)\n{s}o = Where({s}n, {s}p, {s}m)\n{s}u = Less({x}, one)\n{s}v = Where({s}u, {s}o, one)\n"
        "{s}w = Less({x}, minus)\n{s}z = Where({s}w, minus, {s}v)\n{s}c = Sub({s}a, {s}z)\n{s} = Add({s}c, {s}z)",
        0,
    ),
    "A4 over A3": (
        "{s}a = GreaterOrEqual({x}, zero)\n{s}b = Where({s}a, one, minus)\n{s}d = Clip({x}, minus, one)\n"
        "{s}c = Sub({s}b, {s}d)\n{s} = Add({s}c, {s}d)",
        1,
    ),
    "A5 Clip, Sign": ("{s}a = Clip({x}, minus, one)\n{s} = Sign({s}a)", 0),
    "A5 a second Sign, and a Clip": ("{s}a = Sign({x})\n{s}b = Sign({s}a)\n{s} = Clip({s}b, minus, one)", 0),
    "A5 channels last": (
        "{s}a = Transpose <perm=[0,2,3,1]> ({x})\n{s}b = GreaterOrEqual({s}a, zero)\n{s}c = Where({s}b, one, minus)\n"
        "{s} = Transpose <perm=[0,3,1,2]> ({s}c)",
        1,
    ),
    "A6 Add [1, C, 1, 1]": ("{s}a = Add({x}, shift)\n{s} = Sign({s}a)", 0),
    "A6 Sub Expand": (
        "{s}h = Shape({x})\n{s}e = Expand(shift, {s}h)\n{s}a = Sub({x}, {s}e)\n{s}b = Greater({s}a, zero)\n"
        "{s} = Where({s}b, one, minus)",
        -1,
    ),
    "A6 compared with [1, C, 1, 1]": ("{s}a = GreaterOrEqual({x}, shift)\n{s} = Where({s}a, one, minus)", 1),
    "A7 BipolarQuant": ("{s} = qonnx.custom_op.general.BipolarQuant({x}, quarter)", 1),
}

WEIGHTS = {
    "W1 constant": "{w} = Identity(binary)",
    "W2 Sign": "{w} = Sign(latent)",
    "W2 compared": "{w}a = GreaterOrEqual(latent, zero)\n{w} = Where({w}a, one, minus)",
    "W3 mean": (
        "{w}a = Sign(latent)\n{w}b = Abs(latent)\n{w}m = ReduceMean <keepdims=1> ({w}b, axes)\n{w} = Mul({w}a, {w}m)"
    ),
    "W3 learned": "{w}a = Sign(latent)\n{w} = Mul({w}a, alpha)",
    "W4 straight through": (
        "{w}a = Sign(latent)\n{w}b = Abs(latent)\n{w}m = ReduceMean <keepdims=1> ({w}b, axes)\n{w}d = Mul({w}m, {w}a)\n"
        "{w}c = Clip(latent, minus, one)\n{w}e = Sub({w}d, {w}c)\n{w} = Add({w}e, {w}c)"
    ),
    "W5 transposed": "{w}t = Sign(hwio)\n{w} = Transpose <perm=[3,2,0,1]> ({w}t)",
    "W7 BipolarQuant": "{w} = qonnx.custom_op.general.BipolarQuant(latent, alpha)",
}

# The Pad of the sign {s}, if any, and the pads of the Conv.
PADDINGS = {
    "none": ("", "0,0,0,0"),
    "zero": ("", "1,1,1,1"),
    "zero, asymmetric": ("", "0,0,1,2"),
    "Pad 0, and zero": ("{p} = Pad({s}, pads)", "0,1,1,0"),
    "Pad -1": ("{p} = Pad({s}, pads, pad_minus)", "0,0,0,0"),
    "Pad +1, asymmetric": ("{p} = Pad({s}, pads_asymmetric, pad_plus)", "0,0,0,0"),
    "Pad before the sign": ("", "0,0,0,0"),
}

FOLLOWERS = {
    "bias": "{t} = Identity({c})",
    "BatchNorm, some gammas negative": "{t} = BatchNormalization({c}, g, b, m, v)",
    "ReLU": "{t}a = Relu({c})\n{t} = Sub({t}a, shift2)",
    "PReLU": "{t}a = PRelu({c}, slope)\n{t} = Add({t}a, shift2)",
    "MaxPool": "{t} = MaxPool <kernel_shape=[2,2], strides=[2,2]> ({c})",
}


BIASES = 8
"""Eight successive branches have convolutions with different biases: equal convolutions would be merged."""


def constants(sign: str, offset: float) -> dict[str, Array]:
    """The constants that the ONNX text refers to. `offset` keeps sums away from exact zeros."""
    rng = np.random.default_rng(7)
    shape = (FILTERS, CHANNELS, 3, 3)
    # Every filter has as many |w| = 1/4 as 3/4, and one 1/2: the mean is exactly 1/2.
    count = CHANNELS * 9 - 1
    magnitudes = np.stack([rng.permutation([0.25, 0.75] * (count // 2) + [0.5]) for _ in range(FILTERS)])
    latent = (magnitudes * rng.choice([-1, 1], magnitudes.shape)).reshape(shape).astype(np.float32)
    scale = 0.25 if "{s}d, quarter" in SIGNS[sign][0] or "BipolarQuant" in sign else 1.0
    norm = batch_norm(FILTERS, gamma=[1.0, -0.5, 0.75, -1.25, 2.0, 0.5])
    # Statistics as after calibration, for sums of 45 products of ±1 times 1/2.
    norm["m"] = np.linspace(-2, 2, FILTERS, dtype=np.float32) * np.float32(scale)
    norm["v"] = np.linspace(4, 12, FILTERS, dtype=np.float32) * np.float32(scale**2)
    numbers = {"zero": 0.0, "one": 1.0, "minus": -1.0, "two": 2.0, "tenth": 0.1, "minus_tenth": -0.1, "quarter": 0.25}
    return {
        **{name: np.float32(value) for name, value in numbers.items()},
        **norm,
        "latent": latent,
        "hwio": latent.transpose(2, 3, 1, 0),
        "binary": np.sign(latent) * np.float32(0.5),
        "alpha": np.float32([0.25, 0.5, 1, 2, 0.5, 1]).reshape(-1, 1, 1, 1),
        "axes": np.array([1, 2, 3]),
        "shift": SHIFT.reshape(1, CHANNELS, 1, 1),
        **{f"bias{i}": (np.arange(i - 3, i + 3) / 8 + offset).astype(np.float32) for i in range(BIASES)},
        "shift2": (np.arange(1, 7) / 8 + offset / 64).reshape(1, FILTERS, 1, 1).astype(np.float32),
        "shift3": (np.arange(-3, 3) / 8).reshape(1, FILTERS, 1, 1).astype(np.float32),
        "slope": np.float32([0.25, 0.5, 0, 0.125, 1, 2]).reshape(FILTERS, 1, 1),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "pads_asymmetric": np.array([0, 0, 0, 1, 0, 0, 2, 1]),
        "pad_minus": np.float32(-scale),
        "pad_plus": np.float32(scale),
        "last": np.where(rng.random((3, FILTERS, 2, 2)) < 0.5, -0.5, 0.5).astype(np.float32),
    }


def model_of(nodes: list[str], outputs: list[str], values: dict[str, Array], x: tuple[Any, ...]) -> ir.Model:
    """A model from ONNX text; BipolarQuant is expanded, as it is when a file is read."""
    body = "\n".join(line for text in nodes for line in text.splitlines() if line.strip())
    results = ", ".join(f"float[] {name}" for name in outputs)
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {OPSET}, "qonnx.custom_op.general": 1]> '
        f"main (float[{','.join(map(str, x))}] x) => ({results}) {{\n{body}\n}}"
    )
    read = {name for node in proto.graph.node for name in node.input}
    for name in sorted(read & set(values)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values[name]), name))
    expand_bipolar_quant(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


BRANCHES = list(itertools.product(PADDINGS, FOLLOWERS))


def matrix(sign: str, weight: str, offset: float, ideal: bool = False) -> ir.Model:
    """The model with one form of sign and one of weights, and a branch for each of BRANCHES; see `branched`."""
    return branched(sign, [(weight, *branch) for branch in BRANCHES], offset, ideal)


def branched(sign: str, branches: Sequence[tuple[str, ...]], offset: float, ideal: bool = False) -> ir.Model:
    """The model with one form of sign and these branches.

    Args:
        sign: a key of SIGNS.
        branches: keys of WEIGHTS, PADDINGS and FOLLOWERS per branch, such as ("W3 learned", "zero", "bias").
        offset: see `constants`.
        ideal: build the oracle for forms with sign(0) = 0, from other operators: sign(0) is +1, a padded 0 is 0.
    """
    text = SIGNS["A3 Where(x >= 0)" if ideal and "A6" not in sign else sign][0]
    if ideal and "A6" in sign:
        text = "{s}a = Add({x}, shift)\n{s}b = GreaterOrEqual({s}a, zero)\n{s} = Where({s}b, one, minus)"
    second = text.replace("shift", "shift3")  # the second sign has FILTERS channels
    zero_padded = SIGNS[sign][1] == 0 and "A6" not in sign
    used = list(dict.fromkeys(weight for weight, _, _ in branches))
    nodes = [text.format(x="x", s="s"), *(WEIGHTS[weight].format(w=f"w{i}") for i, weight in enumerate(used))]
    outputs = []
    for i, (weight, padding, follower) in enumerate(branches):
        pad, pads = PADDINGS[padding]
        data = "s"
        if padding == "Pad before the sign" and not (ideal and zero_padded):
            nodes += [f"x{i} = Pad(x, pads)", text.format(x=f"x{i}", s=f"s{i}")]
            data = f"s{i}"
        elif padding == "Pad before the sign":
            pads = "1,1,1,1"
        if pad:
            data = f"p{i}"
            nodes.append(pad.format(s="s", p=data))
        nodes += [
            f"c{i} = Conv <pads=[{pads}]> ({data}, w{used.index(weight)}, bias{i % BIASES})",
            FOLLOWERS[follower].format(c=f"c{i}", t=f"t{i}"),
            second.format(x=f"t{i}", s=f"u{i}"),
            f"y{i} = Conv <pads=[1,0,0,1]> (u{i}, last)",
        ]
        outputs.append(f"y{i}")
    return model_of(nodes, outputs, constants(sign, offset), ("N", CHANNELS, SIZE, SIZE))


def inputs(zeros: bool) -> Array:
    """Random inputs; with `zeros`, a fifth of them are exactly 0 or -0, and some equal the thresholds of A6."""
    x = np.random.default_rng(3).standard_normal((SAMPLES, CHANNELS, SIZE, SIZE)).astype(np.float32)
    if zeros:
        x.flat[::7], x.flat[3::14] = 0, -0.0
        x[:, :, 2, 2], x[:, :, 3, 1] = SHIFT, -SHIFT
    return x


def corrupted(model: ir.Model) -> ir.Model:
    """A copy with half of the filters of every branch's first convolution complemented."""
    wrong = ir.from_proto(ir.to_proto(model))
    for node in wrong.graph:
        if is_binary_op(node, "BinaryConvThreshold", "BinaryConv") and node.attributes["channels"].as_int() == CHANNELS:
            value = node.inputs[1]
            array = np.array(constant(value))
            assert value is not None and array.shape[-1] == words(CHANNELS)
            array[:3] ^= np.uint32(2**CHANNELS - 1)
            value.const_value = ir.tensor(array, name=value.name)
    return wrong
