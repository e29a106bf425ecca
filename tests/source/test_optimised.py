"""Models that onnxruntime optimised: converted, they compute what onnxruntime makes of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import load_session
from bnn_deploy.source import blocked
from bnn_deploy.source.blocked import NCHWC, in_blocks
from bnn_deploy.source.onnx_file import read
from support.graphs import eighths, parse, weights

NODES = """c = Conv <pads=[1,1,1,1]> (x, first)
r = Relu (c)
p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
n = Sub (p, quarter)
s = Sign (n)
d = Conv <pads=[1,1,1,1]> (s, w)
a = Add (d, n)
t = Sign (a)
e = Conv <pads=[1,1,1,1], strides=[2,2]> (t, v)
i = Conv <group=12, pads=[1,1,1,1]> (e, each)
j = Relu (i)
q = Conv (p, point)
l = AveragePool <kernel_shape=[2,2], strides=[2,2]> (q)
b = Conv (j, back)
k = Add (l, b)
u = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (k, none, scales)
o = Conv (u, mixed, bias)
g = GlobalAveragePool (o)
f = Flatten (g)
m = MatMul (f, last)
h = Add (m, end)
y = LeakyRelu <alpha=0.5> (h)"""
"""With 12 channels, which fill no block, and 16, which do; a depthwise convolution; a sum that becomes part of one."""

CONSTANTS: dict[str, NDArray[Any]] = {
    "first": eighths(12, 3, 3, 3),
    "w": weights(12, 12, 3, 3, seed=1),
    "v": weights(12, 12, 3, 3, seed=2),
    "each": eighths(12, 1, 3, 3, seed=3),
    "point": eighths(16, 12, 1, 1, seed=4),
    "back": eighths(16, 12, 1, 1, seed=9),
    "mixed": eighths(20, 16, 1, 1, seed=5),
    "bias": eighths(20, seed=6),
    "last": eighths(20, 5, seed=7),
    "end": eighths(5, seed=8),
    "quarter": np.float32(0.3),
    "none": np.zeros(0, np.float32),
    "scales": np.float32([1, 1, 2, 2]),
}

X = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)


def network(nodes: str = NODES, shape: tuple[Any, ...] = ("N", 3, 8, 8), **more: Any) -> ModelProto:
    model = ir.to_proto(parse(nodes, shape, **{**CONSTANTS, **more} if nodes is NODES else more))
    del model.graph.value_info[:]
    return model


def run(model: ModelProto | Path, x: NDArray[Any] = X) -> NDArray[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return np.asarray(ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])


def optimised(model: ModelProto, level: str, path: Path) -> ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def computes(source: Any, expected: NDArray[Any], folder: Path, binary: int, x: NDArray[Any] = X) -> tuple[str, ...]:
    """Convert, run, and see a flipped weight bit; return the notes."""
    result = convert(source, folder / "m.onnx")
    assert len(result.binary_layers) == binary, result.left_float
    near = 1e-5 * np.abs(expected).max()
    assert np.abs(load_session(folder / "m.onnx").run(None, {"x": x})[0] - expected).max() < near
    damaged = onnx.load(folder / "m.onnx")
    tensor = next(t for t in damaged.graph.initializer if t.name.endswith("weight_bits"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) ^ 1, tensor.name))
    onnx.save(damaged, folder / "damaged.onnx")
    assert np.abs(load_session(folder / "damaged.onnx").run(None, {"x": x})[0] - expected).max() > near
    return result.report.notes


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
def test_every_level(level: str, tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    found = {(node.domain, node.op_type) for node in optimised(network(), level, path).graph.node}
    assert (("com.microsoft", "FusedGemm") in found) == (level != "BASIC")
    assert ((NCHWC, "Upsample") in found) == (level == "ALL" and blocked.block_here() > 0)
    notes = computes(path, run(path), tmp_path, 2)
    assert not notes, "20 channels and 12 tell how many are in a block"
    if level == "ALL":
        short: dict[str, Any] = {"samples": 4, "reference_samples": 1, "isas": ["scalar"]}
        assert verify(tmp_path / "m.onnx", path, **short).passed
        assert not verify(tmp_path / "damaged.onnx", path, **short).passed


BESIDE = {
    "a Concat of plain tensors": (
        "a = Concat<axis=1>(x, x)\nb = Conv(a, six)\nc = Concat<axis=1>(b, b)\ny = Conv(c, wide)"
    ),
    "a Concat of a channel that is 0": (
        "a = Conv(x, three)\nb = Conv(x, dead)\nc = Concat<axis=1>(a, b)\ny = GlobalAveragePool(c)"
    ),
    "groups with a channel that is 0": (
        "a = Conv(x, dead)\nb = Conv<group=2>(a, half)\nc = Concat<axis=1>(b, b)\ny = GlobalAveragePool(c)"
    ),
    "blocks of what was fused": "a = Conv<group=3>(x, each)\nb = Relu(a)\nc = Conv(b, dead)\ny = Conv(c, wide)",
}
FILTERS = {
    "three": eighths(16, 3, 1, 1),
    "dead": np.pad(eighths(12, 3, 1, 1, seed=1), [(0, 4), (0, 0), (0, 0), (0, 0)]),
    "six": eighths(16, 6, 1, 1, seed=2),
    "each": eighths(3, 1, 3, 3, seed=3),
    "half": np.pad(eighths(28, 8, 3, 3, seed=4), [(0, 4), (0, 0), (0, 0), (0, 0)]),
}


@pytest.mark.parametrize("name", BESIDE)
def test_blocks_beside_other_forms(name: str, tmp_path: Path) -> None:
    """What a channel of zeros is to a Concat and to groups, and tensors that are in no blocks."""
    nodes, path = BESIDE[name], tmp_path / "optimised.onnx"
    wide = eighths(5, 16 if "fused" in name else 32, 1, 1, seed=5)
    used = {key: array for key, array in (FILTERS | {"wide": wide}).items() if f", {key})" in nodes}
    model = network(nodes, **used)
    optimised(model, "ALL", path)
    expected, found = run(model), read(path)
    assert not {"com.microsoft", NCHWC} & {node.domain for node in found.graph.node}
    near = 1e-5 * np.abs(expected).max()
    assert np.abs(run(found) - expected).max() < near
    layer = next(node for node in found.graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in found.graph.initializer if tensor.name == layer.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1], weight.name))
    assert np.abs(run(found) - expected).max() > near


BLOCK_NODES = """c = Conv <pads=[1,1,1,1]> (x, first)
p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c)
n = Sub (p, quarter)
s = Sign (n)
d = Conv <pads=[1,1,1,1]> (s, w)
y = Conv (d, last)"""


def in_blocks_of(block: int, middle: int, last: int) -> tuple[ModelProto, ModelProto]:
    """A network with 16, `middle` and `last` channels, and as a CPU with blocks of this size stores it."""
    first, w, end = eighths(16, 3, 3, 3), weights(middle, 16, 3, 3, seed=1), eighths(last, middle, 1, 1, seed=2)
    plain = ir.to_proto(parse(BLOCK_NODES, ("N", 3, 8, 8), first=first, w=w, last=end, quarter=np.float32(0.3)))
    del plain.graph.value_info[:]

    def filled(array: NDArray[Any], axis: int) -> NDArray[Any]:
        missing = -array.shape[axis] % block
        return np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])

    stored = {
        "first": in_blocks(filled(first, 0), block, False),
        "w": in_blocks(filled(filled(w, 0), 1), block, True),
        "last": in_blocks(filled(filled(end, 0), 1), block, True),
    }

    def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op_type, inputs, [output], f"{output}_nchwc", domain=NCHWC, **attributes)

    written = ModelProto()
    written.CopyFrom(plain)
    written.opset_import.append(helper.make_opsetid(NCHWC, 1))
    nodes = [
        node("Conv", ["x", "first"], "c_blocks", pads=[1, 1, 1, 1]),
        node("MaxPool", ["c_blocks"], "p_blocks", kernel_shape=[2, 2], strides=[2, 2]),
        node("ReorderOutput", ["p_blocks"], "p", channels=16),
        *plain.graph.node[2:4],
        node("ReorderInput", ["s"], "s_blocks"),
        node("Conv", ["s_blocks", "w"], "d_blocks", pads=[1, 1, 1, 1]),
        node("Conv", ["d_blocks", "last"], "y_blocks"),
        node("ReorderOutput", ["y_blocks"], "y", channels=last),
    ]
    del written.graph.node[:]
    written.graph.node.extend(nodes)
    for tensor in written.graph.initializer:
        if tensor.name in stored:
            tensor.CopyFrom(numpy_helper.from_array(stored[tensor.name], tensor.name))
    return plain, written


@pytest.mark.parametrize("middle", [16, 20])
@pytest.mark.parametrize("block", [8, 16])
def test_blocks_of_any_cpu(block: int, middle: int, tmp_path: Path) -> None:
    plain, written = in_blocks_of(block, middle, 24)
    assert not computes(written, run(plain), tmp_path, 1)


@pytest.mark.parametrize("block", [8, 16])
def test_what_fits_blocks_of_both_is_read_as_here(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, written = in_blocks_of(block, 16, 16)
    monkeypatch.setattr(blocked, "block_here", lambda: block)
    (note,) = computes(written, run(plain), tmp_path, 1)
    assert f"read as blocks of {block}, as onnxruntime does on this CPU" in note
    monkeypatch.setattr(blocked, "block_here", lambda: 0)
    with pytest.raises(InputError, match="in blocks of channels as only the CPU that wrote it has: give the model"):
        convert(written, tmp_path / "m.onnx")


def test_block_here_is_onnxruntimes_own(tmp_path: Path) -> None:
    block = blocked.block_here()
    plain, written = in_blocks_of(block, 16, 16)
    assert np.abs(run(written) - run(plain)).max() < 1e-4
    assert np.abs(run(in_blocks_of(24 - block, 16, 16)[1]) - run(plain)).max() > 1


def test_does_not_read_blocks_whose_filling_is_not_empty(tmp_path: Path) -> None:
    _, written = in_blocks_of(8, 20, 24)
    tensor = next(t for t in written.graph.initializer if t.name == "last")
    tensor.CopyFrom(numpy_helper.from_array(np.ones(tensor.dims, np.float32), "last"))
    next(node for node in written.graph.node if node.output[0] == "y").attribute[0].i = 20
    with pytest.raises(InputError, match="its blocks of channels fit no known layout: give the model as it was before"):
        convert(written, tmp_path / "m.onnx")


FUSED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "BiasGelu": (["d", "row"], {}),
    "FastGelu": (["d", "row"], {}),
    "FusedGemm": (["d", "square", "row"], {"activation": "LeakyRelu", "activation_alpha": 0.25, "transB": 1}),
    "FusedMatMul": (["d", "oblong"], {"transA": 1, "transB": 1, "alpha": 0.5}),
    "Gelu": (["d"], {}),
    "QuickGelu": (["d"], {"alpha": 1.5}),
    "SimplifiedLayerNormalization": (["d", "row"], {"epsilon": 0.1}),
    "SkipLayerNormalization": (["d", "d", "row", "row", "row"], {"epsilon": 0.1}),
    "SkipSimplifiedLayerNormalization": (["d", "d", "row"], {"epsilon": 0.1}),
}


def fused(op_type: str, opset: int = 20) -> ModelProto:
    """A binary linear layer d of [4, 16], and one of the operators that onnxruntime fuses behind it."""
    model = network(
        "s = Sign (x)\nd = MatMul (s, w)\ny = Identity (d)", (4, 24), w=weights(24, 16, seed=1, alpha=0.125)
    )
    inputs, attributes = FUSED.get(op_type, (["d", "row", "row"], {"epsilon": 0.1}))
    norm = op_type in (
        "LayerNormalization",
        "SimplifiedLayerNormalization",
    )  # onnxruntime has them among the standard ones
    node = helper.make_node(op_type, inputs, ["y"], domain="" if norm else "com.microsoft", **attributes)
    model.graph.node[-1].CopyFrom(node)
    for name, shape in {"row": (16,), "square": (16, 16), "oblong": (6, 4)}.items():
        model.graph.initializer.append(numpy_helper.from_array(eighths(*shape, seed=3), name))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", "columns"]))
    model.opset_import[0].version = opset
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize("op_type", FUSED)
def test_fused_operators_beside_a_binary_layer(op_type: str, tmp_path: Path) -> None:
    model, x = fused(op_type), np.random.default_rng(1).standard_normal((4, 24)).astype(np.float32)
    computes(model, run(model, x), tmp_path, 1, x)


@pytest.mark.parametrize(("op_type", "opset"), [("LayerNormalization", 13), ("SkipLayerNormalization", 13)])
def test_layer_normalisation_in_an_opset_that_has_none(op_type: str, opset: int, tmp_path: Path) -> None:
    model, x = fused(op_type, opset), np.random.default_rng(1).standard_normal((4, 24)).astype(np.float32)
    computes(model, run(model, x), tmp_path, 1, x)


def test_a_sum_that_a_fused_normalisation_gives_too(tmp_path: Path) -> None:
    model, x = fused("SkipLayerNormalization"), np.random.default_rng(1).standard_normal((4, 24)).astype(np.float32)
    model.graph.node[-1].output[:] = ["normal", "", "", "total"]
    model.graph.node.append(helper.make_node("Add", ["normal", "total"], ["y"]))
    computes(model, run(model, x), tmp_path, 1, x)


@pytest.mark.parametrize("taken", ["y_one", "y_scaled", "y_half"])
def test_names_that_the_graph_has_already(taken: str, tmp_path: Path) -> None:
    """A constant of the network's own, and a tensor, are called as an expansion calls its parts."""
    x = np.random.default_rng(1).standard_normal((4, 24)).astype(np.float32)
    constant = fused("FastGelu")
    constant.graph.initializer.append(numpy_helper.from_array(np.float32(3), taken))
    constant.graph.node[-1].input[1] = "sum"
    constant.graph.node.insert(2, helper.make_node("Add", ["row", taken], ["sum"]))
    tensor = fused("FastGelu")
    tensor.graph.node[-1].input[0] = taken
    tensor.graph.node.insert(2, helper.make_node("Neg", ["d"], [taken]))
    for model in (constant, tensor):
        computes(model, run(model, x), tmp_path, 1, x)


@pytest.mark.parametrize(
    ("op_type", "attributes", "line"),
    [
        (
            "FusedMatMul",
            {"transBatchA": 1},
            "FusedMatMul 'y' transposes a batch, which has no definition here; give the",
        ),
        (
            "Attention",
            {},
            "Attention 'y' is of the domain com.microsoft: onnxruntime's optimiser or quantiser wrote it",
        ),
    ],
)
def test_refuses_what_has_no_definition(op_type: str, attributes: dict[str, int], line: str, tmp_path: Path) -> None:
    model = fused("Gelu")
    model.graph.node[-1].CopyFrom(helper.make_node(op_type, ["d", "d"], ["y"], domain="com.microsoft", **attributes))
    with pytest.raises(InputError, match=line):
        convert(model, tmp_path / "m.onnx")
