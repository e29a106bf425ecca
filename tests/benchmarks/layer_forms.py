"""Single layers in every form that becomes a binary operator, for layer_speed.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from unittest.mock import patch

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.lower import bases
from bnn_deploy.passes.pipeline import to_binary

Array = NDArray[np.float32]

ACTIVATIONS = {
    "signs": "{a} = Sign({x})",
    "0/1": "{a}_reached = GreaterOrEqual({x}, zero)\n{a} = Cast<to=1>({a}_reached)",
    "two levels": "{a}_sign = Sign({x})\n{a} = Add({a}_sign, half)",
    "2 bits": "{a}_clipped = Clip({x}, zero, three)\n{a} = Round({a}_clipped)",
    "4 levels": "{a}_clipped = Clip({x}, zero, three)\n{a}_bits = Round({a}_clipped)\n{a} = Sub({a}_bits, half)",
}
"""What makes the activation a of the input x, in ONNX text. "two levels" are those of AdaBin, "2 bits" 0 to 3, as of
DoReFa; "4 levels" have no 0, so that no level is the padding."""

SCALARS = {"zero": 0.0, "half": 0.5, "three": 3.0}


@dataclass(frozen=True)
class Form:
    """What values a layer's activations and weights have.

    Attributes:
        activations: a key of ACTIVATIONS for each input.
        weights: a kind of make_weights.
    """

    activations: tuple[str, ...] = ("signs",)
    weights: str = "±alpha"

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return ", ".join(dict.fromkeys([*self.activations, self.weights]))


SIGNS = Form()
LEVELS = Form(("2 bits",))
SUMS = (
    Form(("two levels",), "beta±alpha"),
    Form(("signs",), "ternary"),
    Form(("4 levels",)),
    Form(("4 levels",), "4 values"),
)
"""Planes x bases of BinaryConvBases: 1x1 with offsets, 1x2, 2x1 and 2x2."""


@dataclass(frozen=True)
class Layer:
    """A float layer and the forms in which it is binary.

    Attributes:
        name: as in the table.
        node: ONNX text that makes y of the activations a and b, and the constants `weight` and `bias`.
        inputs: the shapes of a and, in a product of activations, of b.
        outputs: the shape of y.
        weight: the shape of `weight`; None in a product of activations.
        axis: along which the weights' filters lie.
        macs: multiply-accumulates of the float layer.
        forms: those that are measured.
    """

    name: str
    node: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]
    weight: tuple[int, ...] | None
    axis: int
    macs: int
    forms: tuple[Form, ...] = (SIGNS,)


def convolution(channels: int, size: int, kernel: int, forms: tuple[Form, ...], outputs: int | None = None) -> Layer:
    """A convolution whose output is as large as its input."""
    outputs = outputs or channels
    weight = (outputs, channels, kernel, kernel)
    node = f"y = Conv<kernel_shape=[{kernel},{kernel}], pads={[kernel // 2] * 4}>(a, weight, bias)"
    name = f"{kernel}x{kernel} {channels}" + (f" -> {outputs}" if outputs != channels else "") + f" @ {size}x{size}"
    shapes = [(1, count, size, size) for count in (channels, outputs)]
    return Layer(name, node, (shapes[0],), shapes[1], weight, 0, prod(weight) * size**2, forms)


def transposed(channels: int, outputs: int, size: int, kernel: int, stride: int, rank: int = 2) -> Layer:
    """A transposed convolution that makes its input `stride` times as large."""
    weight = (channels, outputs, *[kernel] * rank)
    window = f"kernel_shape={[kernel] * rank}, strides={[stride] * rank}, pads={[(kernel - stride) // 2] * 2 * rank}"
    name = f"transposed {rank}-D {channels} -> {outputs} @ {size}, kernel {kernel}, stride {stride}"
    shapes = [(1, channels, *[size] * rank), (1, outputs, *[size * stride] * rank)]
    macs = prod(weight) * size**rank
    return Layer(name, f"y = ConvTranspose<{window}>(a, weight, bias)", (shapes[0],), shapes[1], weight, 1, macs)


def linear(tokens: int, channels: int, outputs: int) -> Layer:
    """A linear layer on tokens, [1, T, C] to [1, T, O]."""
    name = f"linear {channels} -> {outputs} @ {tokens} token{'s' if tokens > 1 else ''}"
    node = "p = MatMul(a, weight)\ny = Add(p, bias)"
    shapes = [(1, tokens, count) for count in (channels, outputs)]
    return Layer(name, node, (shapes[0],), shapes[1], (channels, outputs), 1, tokens * channels * outputs)


def attention(heads: int, tokens: int, channels: int) -> list[Layer]:
    """The two products of binary attention: Q K^T, and a map of 0 and 1 times V."""
    values, maps = (heads, tokens, channels), (heads, tokens, tokens)
    macs, size = heads * tokens**2 * channels, f"{heads} x {tokens} x {channels}"
    scores = "t = Transpose<perm=[0,2,1]>(b)\ny = MatMul(a, t)"
    return [
        Layer(f"Q K^T {size}", scores, (values, values), maps, None, 0, macs, (Form(("signs", "signs"), "signs"),)),
        Layer(
            f"map x V {size}",
            "y = MatMul(a, b)",
            (maps, values),
            values,
            None,
            0,
            macs,
            (Form(("0/1", "signs"), "signs"),),
        ),
    ]


LAYERS = [
    *(
        convolution(channels, size, 3, (SIGNS, LEVELS, *SUMS))
        for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7))
    ),
    convolution(192, 32, 1, (SIGNS, LEVELS)),
    # So few products per output that the work around them counts.
    *(convolution(channels, 28, 1, (SIGNS, *SUMS[1::2])) for channels in (8, 16, 32, 64, 128)),
    *(convolution(channels, 28, 3, (SIGNS, *SUMS[1::2])) for channels in (4, 8, 16, 32)),
    # As many products as the first product of two activations, and the first linear layer, below.
    convolution(64, 49, 1, (SIGNS,), outputs=196),
    convolution(384, 14, 1, (SIGNS,), outputs=1536),
    *attention(12, 196, 64),
    *attention(128, 128, 64),
    linear(196, 384, 1536),
    linear(16, 64, 64),
    linear(1, 1024, 1024),
    transposed(64, 64, 32, 4, 2),
    transposed(32, 16, 64, 2, 2),
    *(transposed(channels, channels, 32, 2, 2) for channels in (32, 64, 128)),
    transposed(64, 64, 1024, 4, 2, rank=1),
]


def float_model(layer: Layer) -> onnx.ModelProto:
    """The layer alone."""
    return _model(layer, layer.node, "a b", layer.forms[0])


def source_model(layer: Layer, form: Form) -> onnx.ModelProto:
    """The float model that `binary_model` is made of: the activations and the layer."""
    made = [ACTIVATIONS[kind].format(a=a, x=x) for kind, a, x in zip(form.activations, "ab", ("x", "z"), strict=False)]
    return _model(layer, "\n".join([*made, layer.node]), "x z", form)


def binary_model(layer: Layer, form: Form) -> onnx.ModelProto:
    """As `convert` makes it of the activations and the layer; sums that do not pay, too, which it leaves float."""
    with patch.multiple(bases, PIXEL_PRODUCTS=0, WINDOW_PRODUCTS=0):
        binary, *_ = to_binary(ir.from_proto(source_model(layer, form)))
    return ir.to_proto(binary)


def becomes(model: onnx.ModelProto) -> str:
    """The binary operators of a converted layer, without those that make bits; "float" if it stayed as it was."""
    found = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    counts = {name: found.count(name) for name in found if not name.startswith(("Binarize", "Quantize"))}
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items()) or "float"


def _model(layer: Layer, nodes: str, inputs: str, form: Form) -> onnx.ModelProto:
    def tensor(shape: tuple[int, ...], name: str) -> str:
        return f"float[{','.join(map(str, shape))}] {name}"

    given = ", ".join(tensor(shape, name) for shape, name in zip(layer.inputs, inputs.split(), strict=False))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> layer ({given}) => ({tensor(layer.outputs, "y")}) {{\n{nodes}\n}}'
    )
    constants: dict[str, NDArray[np.float32]] = {name: np.float32(value) for name, value in SCALARS.items()}
    if layer.weight is not None:
        rng = np.random.default_rng(0)
        constants["weight"] = make_weights(form.weights, layer.weight, layer.axis, rng)
        constants["bias"] = rng.standard_normal(layer.weight[layer.axis]).astype(np.float32)
    used = {name for node in model.graph.node for name in node.input}
    for name in used & constants.keys():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(constants[name]), name))
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def make_weights(kind: str, shape: tuple[int, ...], axis: int, rng: np.random.Generator) -> Array:
    """Random weights with the values of a Form's `weights`, other ones for each filter."""
    per_filter = [1] * len(shape)
    per_filter[axis] = shape[axis]
    alpha, beta = (rng.uniform(low, high, per_filter).astype(np.float32) for low, high in ((0.05, 0.1), (0.01, 0.04)))
    values: Mapping[str, list[Array]] = {
        "±alpha": [-alpha, alpha],
        "beta±alpha": [beta - alpha, beta + alpha],
        "ternary": [-alpha, np.zeros_like(alpha), alpha],
        "4 values": [-alpha - beta, beta - alpha, alpha - beta, alpha + beta],
    }
    return np.choose(rng.integers(0, len(values[kind]), shape), values[kind])
