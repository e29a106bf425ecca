"""The operators that onnxruntime writes into the models that it optimised, in standard operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from bnn_deploy.errors import InputError
from bnn_deploy.source.expansion import MICROSOFT, Expansion, attributes_of
from bnn_deploy.source.opset import opset_of

_CONV_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": (),
}
"""Activation of a FusedConv -> the attributes that its parameters are; those of Clip are inputs."""

_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")


def name_early_norms(model: ModelProto) -> None:
    """Move layer normalisations that no standard opset of the model has, as onnxruntime writes, to its own domain."""
    for node in model.graph.node:
        if node.op_type in _NORMS and not node.domain and (opset_of(model) < 17 or node.op_type == _NORMS[1]):
            node.domain = MICROSOFT


def expand_optimised(model: ModelProto, name: str) -> None:
    """Replace the fused operators of the domain com.microsoft that are known here by what they were fused of.

    Args:
        model: changed in place.
        name: the model's name in errors.

    Raises:
        InputError: an operator in a form that has no definition here.
    """
    if not any(node.domain == MICROSOFT for node in model.graph.node):
        return
    expansion = Expansion(model, name)
    for node in model.graph.node:
        write_node(expansion, node)
    expansion.finish()
    expansion.drop_domains()


def write_node(to: Expansion, node: NodeProto) -> None:
    """Write what a fused operator was fused of, if it is one that is known here, and any other node as it is."""
    expand = _EXPANSIONS.get(node.op_type) if node.domain == MICROSOFT else None
    if expand is None:
        to.nodes.append(node)
    else:
        expand(to, node)


def _refuse(to: Expansion, node: NodeProto, what: str) -> InputError:
    return _refusal(to, f"{node.op_type} '{node.name or node.output[0]}'", what)


def _refusal(to: Expansion, who: str, what: str) -> InputError:
    return InputError(
        f"{to.name}: {who} {what}, which has no definition here; "
        "give the model as it was before onnxruntime optimised it"
    )


def write_conv(to: Expansion, inputs: Sequence[str], y: str, name: str, attributes: dict[str, Any]) -> None:
    """Write FusedConv(x, w, bias, summand): a Conv, an Add, if there is a summand, and the activation, if there is one.

    Args:
        to: gets the nodes.
        inputs: of the FusedConv.
        y: its output.
        name: its name.
        attributes: its own, as of `attributes_of`; those of the activation are taken out.

    Raises:
        InputError: an activation that has no standard operator here.
    """
    kind = attributes.pop("activation", b"").decode()
    numbers = list(attributes.pop("activation_params", []))
    if kind and kind not in _CONV_ACTIVATIONS:
        raise _refusal(to, f"FusedConv '{name or y}'", f"has the activation {kind}")
    summand = inputs[3] if len(inputs) > 3 else ""
    summed = to.free(f"{y}_summed") if kind else y
    products = to.write("Conv", inputs[:3], to.free(f"{y}_conv") if summand else summed, name, **attributes)
    if summand:
        to.write("Add", [products, summand], summed, f"{y}_sum")
    if kind:
        bounds = [
            to.constant(np.array(number, np.float32), f"{y}_bound_{i}")
            for i, number in enumerate(numbers if kind == "Clip" else ())
        ]
        given = dict(zip(_CONV_ACTIVATIONS[kind], numbers, strict=False))
        to.write(kind, [summed, *bounds], y, f"{y}_activation", **given)


def _conv(to: Expansion, node: NodeProto) -> None:
    write_conv(to, node.input, node.output[0], node.name, attributes_of(node))


def _gemm(to: Expansion, node: NodeProto) -> None:
    """FusedGemm: a Gemm and an activation, whose attributes it has under longer names."""
    (y,) = node.output
    attributes = attributes_of(node)
    kind = attributes.pop("activation", b"").decode()
    prefix = "activation_"
    given = {key.removeprefix(prefix): attributes.pop(key) for key in list(attributes) if key.startswith(prefix)}
    product = to.write("Gemm", node.input, to.free(f"{y}_product") if kind else y, node.name, **attributes)
    if kind:
        to.write(kind, [product], y, f"{y}_activation", **given)


def _matmul(to: Expansion, node: NodeProto) -> None:
    """FusedMatMul and its old name TransposeMatMul: alpha * A B, either of them transposed."""
    (y,) = node.output
    attributes = attributes_of(node)
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise _refuse(to, node, "transposes a batch")
    operands = list(node.input)
    for index, key in enumerate(("transA", "transB")):
        if attributes.get(key):
            shape = to.shape(operands[index])
            if shape is None:
                raise _refuse(to, node, f"transposes '{operands[index]}', of unknown rank")
            rank = len(shape)
            perm = [*range(rank - 2), rank - 1, rank - 2]
            operands[index] = to.step("Transpose", [operands[index]], f"{y}_{key}", perm=perm)
    alpha = attributes.get("alpha", 1.0)
    product = to.write("MatMul", operands, y if alpha == 1 else to.free(f"{y}_product"), node.name)
    if alpha != 1:
        to.write("Mul", [product, _number(to, alpha, f"{y}_alpha")], y, f"{y}_scaled")


def _number(to: Expansion, number: float, name: str) -> str:
    return to.constant(np.array(number, np.float32), name)


def _biased(to: Expansion, node: NodeProto) -> str:
    """The input of an activation, plus its bias, if it has one."""
    data, *biases = filter(None, node.input)
    return to.step("Add", [data, *biases], f"{node.output[0]}_biased") if biases else data


def _gelu(to: Expansion, node: NodeProto) -> None:
    """Gelu(x) and BiasGelu(x, bias): x / 2 * (1 + erf(x / sqrt(2)))."""
    (y,) = node.output
    x = _biased(to, node)
    scaled = to.step("Mul", [x, _number(to, 0.5**0.5, f"{y}_root")], f"{y}_scaled")
    raised = to.step("Add", [to.step("Erf", [scaled], f"{y}_erf"), _number(to, 1, f"{y}_one")], f"{y}_raised")
    _half_product(to, node, x, raised)


def _fast_gelu(to: Expansion, node: NodeProto) -> None:
    """FastGelu(x, bias): x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    (y,) = node.output
    x = _biased(to, node)
    square = to.step("Mul", [x, x], f"{y}_square")
    part = to.step("Mul", [square, _number(to, 0.044715, f"{y}_cubic")], f"{y}_part")
    one = _number(to, 1, f"{y}_one")
    factor = to.step("Add", [part, one], f"{y}_factor")
    cubic = to.step("Mul", [x, factor], f"{y}_polynomial")
    scaled = to.step("Mul", [cubic, _number(to, (2 / np.pi) ** 0.5, f"{y}_root")], f"{y}_scaled")
    raised = to.step("Add", [to.step("Tanh", [scaled], f"{y}_tanh"), one], f"{y}_raised")
    _half_product(to, node, x, raised)


def _half_product(to: Expansion, node: NodeProto, x: str, factor: str) -> None:
    (y,) = node.output
    half = to.step("Mul", [x, _number(to, 0.5, f"{y}_half")], f"{y}_halved")
    to.write("Mul", [half, factor], y, node.name)


def _quick_gelu(to: Expansion, node: NodeProto) -> None:
    """QuickGelu(x): x * sigmoid(alpha * x)."""
    (x,), (y,) = node.input, node.output
    alpha = attributes_of(node).get("alpha", 1.702)
    scaled = x if alpha == 1 else to.step("Mul", [x, _number(to, alpha, f"{y}_alpha")], f"{y}_scaled")
    to.write("Mul", [x, to.step("Sigmoid", [scaled], f"{y}_sigmoid")], y, node.name)


def _layer_norm(to: Expansion, node: NodeProto) -> None:
    """LayerNormalization of a model whose opset has none, over the last dimension."""
    attributes = attributes_of(node)
    if attributes.get("axis", -1) != -1 or any(node.output[1:]):
        raise _refuse(to, node, "has an axis besides the last, or gives its statistics, too")
    x, *parameters = node.input
    _normalise(to, node, x, [*parameters, ""][:2], node.op_type == _NORMS[0], attributes.get("epsilon", 1e-5))


def _skip_norm(to: Expansion, node: NodeProto) -> None:
    """SkipLayerNormalization(x, skip, gamma, beta, bias): a layer normalisation of the sum, which it may give, too."""
    centred = node.op_type == "SkipLayerNormalization"
    y, *others = node.output
    x, skip, *parameters = node.input
    count = 2 if centred else 1
    bias = next(iter(parameters[count:]), "")
    if any(others[:2]):
        raise _refuse(to, node, "gives its statistics, too")
    total = others[2] if len(others) > 2 and others[2] else to.free(f"{y}_total")
    pair = to.write("Add", [x, skip], to.free(f"{y}_pair") if bias else total)
    if bias:
        to.write("Add", [pair, bias], total)
    scales = [*parameters[:count], "", ""][:2]
    _normalise(to, node, total, scales, centred, attributes_of(node).get("epsilon", 1e-12))


def _normalise(to: Expansion, node: NodeProto, x: str, scales: list[str], centred: bool, epsilon: float) -> None:
    """Write gamma * (x - mean) / sqrt(variance + epsilon) + beta, over the last dimension; scales: gamma, beta."""
    y = node.output[0]
    gamma, beta = scales

    def mean(value: str, name: str) -> str:
        if to.opset < 18:
            return to.step("ReduceMean", [value], name, axes=[-1], keepdims=1)
        axes = to.constant(np.array([-1], np.int64), f"{name}_axes")
        return to.step("ReduceMean", [value, axes], name, keepdims=1)

    centre = to.step("Sub", [x, mean(x, f"{y}_mean")], f"{y}_centred") if centred else x
    variance = mean(to.step("Mul", [centre, centre], f"{y}_squares"), f"{y}_variance")
    shifted = to.step("Add", [variance, _number(to, epsilon, f"{y}_epsilon")], f"{y}_shifted")
    normal = to.step("Div", [centre, to.step("Sqrt", [shifted], f"{y}_deviation")], f"{y}_normal")
    scaled = to.write("Mul", [normal, gamma], to.free(f"{y}_scaled") if beta else y, node.name if not beta else "")
    if beta:
        to.write("Add", [scaled, beta], y, node.name)


_EXPANSIONS: dict[str, Callable[[Expansion, NodeProto], Any]] = {
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _layer_norm,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "TransposeMatMul": _matmul,
}
"""Operator of com.microsoft -> what writes it in standard operators."""
