"""Small float graphs for the tests of the passes, and the comparison that every rewrite must pass.

Weights are plus or minus a power of two and biases are multiples of 1/8, so the float convolutions are exact: a
rewritten model must give the same floats to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes import common

from bnn_deploy.operators.bodies import functions
from bnn_deploy.operators.contract import DOMAIN, OPSET, VERSION, operator_of
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.provenance import complemented
from bnn_deploy.runtime.session import load_session

Array = NDArray[Any]
Shape = Sequence[int | str]


with np.errstate(invalid="ignore"):
    HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
HALVES = np.sort(HALVES[np.isfinite(HALVES)])
"""Every finite float16."""


def weights(*shape: int, seed: int = 0, alpha: float = 0.5) -> NDArray[np.float32]:
    """Random ±alpha, [O, ...] float32."""
    return np.where(np.random.default_rng(seed).random(shape) < 0.5, -alpha, alpha).astype(np.float32)


def eighths(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Random multiples of 1/8 between -1 and 1."""
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 8).astype(np.float32)


def batch_norm(channels: int, seed: int = 0, gamma: Sequence[float] | None = None) -> dict[str, NDArray[np.float32]]:
    """Plausible gamma g, beta b, mean m and variance v of a BatchNormalization; no channel's sign is constant."""
    rng = np.random.default_rng(seed)
    return {
        "g": rng.uniform(0.5, 1.5, channels).astype(np.float32) if gamma is None else np.float32(gamma),
        "b": rng.normal(0, 0.3, channels).astype(np.float32),
        "m": rng.normal(0, 0.3, channels).astype(np.float32),
        "v": rng.uniform(0.5, 2, channels).astype(np.float32),
    }


def parse(
    nodes: str,
    x: Shape = ("N", 4, 6, 6),
    outputs: Sequence[str] = ("y",),
    inputs: str = "",
    dtype: str = "float",
    **constants: Array,
) -> ir.Model:
    """A float model from ONNX text with shapes inferred.

    Args:
        nodes: one per line.
        x: shape of the input x.
        outputs: names of the outputs, with a type if that is not float: "int64[] k".
        inputs: more inputs, in ONNX text.
        dtype: type of the input x.
        constants: initializers.
    """
    # Line by line: the parser takes no empty lines.
    body = "\n".join(line for line in nodes.splitlines() if line.strip())
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {OPSET}]> '
        f"main ({dtype}[{','.join(map(str, x))}] x{inputs and ', ' + inputs}) => "
        f"({', '.join(name if ' ' in name else f'float[] {name}' for name in outputs)}) {{\n{body}\n}}"
    )
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def copy(model: ir.Model) -> ir.Model:
    """An independent copy."""
    return ir.from_proto(ir.to_proto(model))


def lower(model: ir.Model) -> ir.Model:
    """A copy with Binarize and BinaryConv; nothing is folded yet."""
    after = copy(model)
    assert LowerBinaryConv()(after).count
    common.RemoveUnusedNodesPass()(after)
    return after


def op_types(model: ir.Model) -> list[str]:
    """The operators of the main graph, in order."""
    return [node.op_type for node in model.graph]


def only(model: ir.Model, op_type: str) -> ir.Node:
    """The only node of this type."""
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


def runnable(model: ir.Model) -> bytes:
    """The model as bytes, checked, with the functions that it uses."""
    model = copy(model)
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    if used:
        model.opset_imports[DOMAIN] = VERSION
    for function in functions(used):
        model.functions[function.identifier()] = function
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def samples(model: ir.Model, count: int = 6, seed: int = 1) -> NDArray[np.float32]:
    """Random normal inputs for a model."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    dims = [size if isinstance(size, int) else count for size in shape]
    return np.random.default_rng(seed).standard_normal(dims).astype(np.float32)


def run_float(model: ir.Model, x: Array) -> list[Array]:
    """The outputs of the float graph in onnxruntime, without graph optimisation."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def run_binary(model: ir.Model, x: Array, kernels: bool) -> list[Array]:
    return load_session(runnable(model), 1, kernels=kernels).run(None, {"x": x})


def equal(first: Sequence[Array], second: Sequence[Array]) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def same_bits(before: ir.Model, after: ir.Model, kernels: bool, count: int = 6) -> bool:
    """Whether a rewritten model gives, to the last bit, what the function bodies of the model before gave."""
    x = samples(before, count)
    return equal(run_binary(before, x, False), run_binary(after, x, kernels))


def corruptions(model: ir.Model) -> list[tuple[str, list[ir.Model]]]:
    """For each binary operator with constants, copies with one constant wrong; one copy at least acts on any data."""
    found = []
    for index, node in enumerate(model.graph):
        row = operator_of(node)
        if row is None or (row.threshold is None and not row.is_layer):
            continue
        # Either a threshold that is always or never reached, or one weight bit.
        place, values = (1, [None]) if row.threshold is None else (row.threshold.input, list(row.threshold.limits))
        copies = []
        for value in values:
            wrong = copy(model)
            inputs = list(wrong.graph)[index].inputs
            target = inputs[place] if constant(inputs[place]) is not None else inputs[-1]
            assert target is not None
            array = np.array(constant(target))
            if value is None and target is inputs[place]:
                array.flat[0] ^= 1  # channel 0 of the first tap of filter 0
            elif value is None:
                array *= 2  # the scale of a product of two activations
            else:
                array[0] = value
            target.const_value = ir.tensor(array, name=target.name)
            copies.append(wrong)
        found.append((node.op_type, copies))
    return found


def assert_same(before: ir.Model, after: ir.Model, x: Array | None = None) -> None:
    """Assert that bodies and kernels equal `before` bit for bit, and that with any operator corrupted they do not."""
    x = samples(before) if x is None else x
    is_float = all(node.domain != DOMAIN for node in before.graph)
    expected = run_float(before, x) if is_float else run_binary(before, x, kernels=False)
    for kernels in (False, True):
        assert equal(run_binary(after, x, kernels), expected), f"kernels: {kernels}"
    broken = corruptions(after)
    assert broken, "nothing in the model is binary"
    for op_type, copies in broken:
        assert not all(equal(run_binary(wrong, x, kernels=True), expected) for wrong in copies), op_type


def complemented_channels(model: ir.Model, op_type: str = "Binarize") -> set[int]:
    """The channels whose bits the only node of this type stores complemented."""
    return complemented(only(model, op_type))
