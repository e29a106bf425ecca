"""ONNX as people have it: converted, it computes what onnxruntime makes of the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from bnn_deploy import conversion
from bnn_deploy.conversion import convert
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.operators.contract import OPSET
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import load_session
from support.graphs import parse, weights

NODES = """c = Conv <pads=[1,1,1,1]> (x, first)
n = Add (c, quarter)
s = Sign (n)
d = Conv <pads=[1,1,1,1]> (s, w)
o = Add (d, quarter)
t = Sign (o)
f = Flatten (t)
y = MatMul (f, last)"""
"""All sums are exact in bfloat16, for inputs that are small integers, and none is 0 before a sign."""

X = np.random.default_rng(0).integers(-2, 3, (7, 3, 4, 4)).astype(np.float32)

NODE = helper.make_node


def network(nodes: str = NODES, **more: Any) -> ModelProto:
    known = {
        "first": weights(8, 3, 3, 3),
        "w": weights(6, 8, 3, 3, seed=1),
        "last": weights(96, 5, seed=2),
        "quarter": np.float32(0.25),
    }
    model = ir.to_proto(parse(nodes, ("N", 3, 4, 4), **known, **more))
    del model.graph.value_info[:]
    return model


def stock(model: ModelProto, x: NDArray[Any] = X) -> NDArray[Any]:
    """The output in onnxruntime alone."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def computes(model: ModelProto, expected: NDArray[Any], folder: Path, binary: int = 2) -> conversion.Conversion:
    """Convert, run, and see a flipped weight bit."""
    result = convert(model, folder / "m.onnx")
    assert len(result.binary_layers) == binary, result.left_float
    assert np.array_equal(load_session(folder / "m.onnx").run(None, {"x": X})[0], expected)
    wrong = onnx.load(folder / "m.onnx")
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith("weight_bits"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) ^ 1, tensor.name))
    assert not np.array_equal(load_session(wrong.SerializeToString()).run(None, {"x": X})[0], expected)
    return result


NEWEST = onnx.defs.onnx_opset_version()


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 22, 23, 24, 25, 26, NEWEST - 1])
def test_every_opset(opset: int, tmp_path: Path) -> None:
    model = network()
    expected = stock(model)
    model.opset_import[0].version = opset
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    computes(model, expected, tmp_path)
    content = inspect_model(tmp_path / "m.onnx")
    assert content.opsets[""] == OPSET and content.ir_version == 10, "what onnxruntime 1.19 reads"


def old(opset: int) -> ModelProto:
    """What later opsets moved from attributes to inputs; a sign without Sign, which is of opset 9."""
    nodes = [
        NODE("Pad", ["x"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0),
        NODE("Conv", ["p", "first"], ["c"]),
        NODE("BatchNormalization", ["c", "ones", "fourths", "zeros", "ones"], ["n"], epsilon=0.0),
        NODE("Dropout", ["n"], ["k"], ratio=0.5),
        NODE("Clip", ["k"], ["h"], min=-1.0, max=1.0),
        NODE("Greater", ["h", "zero"], ["g"]),
        NODE("Cast", ["g"], ["b"], to=TensorProto.FLOAT),
        NODE("Mul", ["b", "two"], ["q"]),
        NODE("Sub", ["q", "one"], ["s"]),
        NODE("Conv", ["s", "w"], ["d"], pads=[1, 1, 1, 1]),
        NODE("Upsample", ["d"], ["u"], scales=[1.0, 1.0, 2.0, 2.0])
        if opset < 9
        else NODE("Upsample", ["d", "scales"], ["u"]),
        NODE("Slice", ["u"], ["v"], axes=[2, 3], starts=[0, 0], ends=[4, 4])
        if opset < 10
        else NODE("Slice", ["u", "begin", "end", "axes"], ["v"]),
        NODE("ReduceSum", ["v"], ["r"], axes=[3], keepdims=1),
        NODE("Squeeze", ["r"], ["z"], axes=[3]),
        NODE("Unsqueeze", ["z"], ["y"], axes=[1]),
    ]
    if opset >= 10:
        nodes[10] = NODE("Resize", ["d", "scales"], ["u"], mode="nearest")
    constants: dict[str, NDArray[Any]] = {
        "first": weights(8, 3, 3, 3),
        "w": weights(6, 8, 3, 3, seed=1),
        "ones": np.ones(8, np.float32),
        "zeros": np.zeros(8, np.float32),
        "fourths": np.full(8, 0.25, np.float32),
        "zero": np.float32(0),
        "one": np.float32(1),
        "two": np.float32(2),
        "scales": np.float32([1, 1, 2, 2]),
        "begin": np.array([0, 0]),
        "end": np.array([4, 4]),
        "axes": np.array([2, 3]),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 6, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_what_old_opsets_write_as_attributes(opset: int, tmp_path: Path) -> None:
    model = old(opset)
    computes(model, stock(model), tmp_path, binary=1)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("inputs", ["too", "float32"])
def test_other_floats(kind: int, inputs: str, tmp_path: Path) -> None:
    model = network()
    expected = stock(model)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, tensor.dims, numpy_helper.to_array(tensor).reshape(-1)))
    if inputs == "too":
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = kind
    else:
        model.graph.node[0].input[0], model.graph.node[-1].output[0] = "half", "wide"
        model.graph.node.insert(0, NODE("Cast", ["x"], ["half"], to=kind))
        model.graph.node.append(NODE("Cast", ["wide"], ["y"], to=TensorProto.FLOAT))
    result = computes(model, expected, tmp_path)
    name = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}[kind]
    assert result.report.notes == (f"it computes in {name}; converted to float32, inputs and outputs included",)


def test_a_cast_through_float16_is_the_networks_own(tmp_path: Path) -> None:
    """A difference of 2^-30 is nothing in float16, so that the sign of what lies there is that of 0."""
    nodes = NODES.replace(
        "n = Add (c, quarter)", "k = Mul (c, tiny)\nh = Cast <to=10> (k)\nm = Cast <to=1> (h)\nn = Sub (m, lift)"
    )
    model = network(nodes, tiny=np.float32(2**-30), lift=np.float32(2**-31))
    assert not computes(model, stock(model), tmp_path).report.notes


def test_no_names(tmp_path: Path) -> None:
    model = network()
    expected = stock(model)
    model.graph.name = ""
    for node in model.graph.node:
        node.name = ""
    result = computes(model, expected, tmp_path)
    assert result.binary_layers == ("d", "y"), "named by their outputs"


def branches(condition: str) -> ModelProto:
    """An If behind the network whose branches only give a tensor from outside, or compute."""
    model = network()

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["N", 5])]
        )

    then = branch("", NODE("Identity", ["y"], ["yt"]))
    other = branch("", NODE("Neg", ["y"], ["yn"]), NODE("Identity", ["yn"], ["ye"]))
    if condition == "data":
        model.graph.node.append(NODE("ReduceMax", ["y"], ["largest"], keepdims=0))
        model.graph.node.append(NODE("Less", ["largest", "quarter"], ["go"]))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.array(condition == "true"), "go"))
    model.graph.node.append(NODE("If", ["go"], ["z"], then_branch=then, else_branch=other))
    model.graph.output[0].name = "z"
    return model


@pytest.mark.parametrize("condition", ["data", "true", "false"])
def test_branches_without_layers(condition: str, tmp_path: Path) -> None:
    model = branches(condition)
    named = branches(condition)
    for graph in (a.g for node in named.graph.node if node.op_type == "If" for a in node.attribute):
        graph.name = "branch"
    computes(model, stock(named), tmp_path)
    kept = any(layer.op_type == "If" for layer in inspect_model(tmp_path / "m.onnx").layers)
    assert kept == (condition == "data")
    assert not kept or verify(tmp_path / "m.onnx", model, samples=4).passed, "branches read what is outside of them"


def training_norm(opset: int) -> ModelProto:
    model = old(opset)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.output.extend(["mean", "var", "saved_mean", "saved_var"])
    return model


def no_old_form() -> ModelProto:
    model = network(NODES.replace("y =", "l =") + "\ny = Identity (l)")
    model.opset_import[0].version, model.ir_version = 24, 12
    model.graph.node[-1].CopyFrom(NODE("Swish", ["l"], ["y"], "act"))
    return model


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: training_norm(9), "BatchNormalization 'n' is in training mode; call model.eval() and export again"),
        (lambda: training_norm(7), "BatchNormalization 'n' is in training mode; call model.eval() and export again"),
        (no_old_form, "its opset is 24, and Swish 'act' has no form in opset 20, which convert takes"),
    ],
)
def test_refuses(make: Callable[[], ModelProto], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        convert(make(), tmp_path / "m.onnx")
    assert line in str(caught.value)


def test_a_model_that_does_not_run_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    with monkeypatch.context() as patch:

        def broken(*arguments: Any, **options: Any) -> Any:
            made = conversion_to_binary(*arguments, **options)
            layer = next(node for node in made[0].graph if node.op_type.startswith("BinaryConv"))
            layer.attributes["group"] = ir.AttrInt64("group", 3)
            return made

        conversion_to_binary = conversion.to_binary
        patch.setattr(conversion, "to_binary", broken)
        with pytest.raises(BnnDeployError, match=r"a fault of bnn-deploy.*but not the converted one") as caught:
            convert(model, tmp_path / "m.onnx", float_output=tmp_path / "f.onnx", report=tmp_path / "r.json")
        assert not isinstance(caught.value, InputError) and not list(tmp_path.iterdir())
    model.graph.node.insert(0, NODE("Gather", ["x", "none"], ["g"], axis=1))
    model.graph.node[1].input[0] = "g"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 9]), "none"))
    with pytest.raises(InputError, match=r"onnxruntime cannot run it on random inputs 'x' \[1, 3, 4, 4\]: .*Gather"):
        convert(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_the_result_can_be_quantised_by_its_user(tmp_path: Path) -> None:
    """onnxruntime's quantiser takes "d_scale" for the scale of tensor d."""
    source = network(NODES.replace("t = Sign (o)", "t = Conv (o, real)").replace("(f, last)", "(f, end)"), **REAL)
    convert(source, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    tensors = {name for node in model.graph.node for name in node.output}
    assert not [t.name for t in model.graph.initializer if t.name.removesuffix("_scale") in tensors]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter([{"x": X}])

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.samples, None)

    quantize_static(
        tmp_path / "m.onnx", tmp_path / "q.onnx", Reader(), op_types_to_quantize=["Conv"], nodes_to_quantize=["t"]
    )
    got = load_session(tmp_path / "q.onnx").run(None, {"x": X})[0]
    expected = load_session(tmp_path / "m.onnx").run(None, {"x": X})[0]
    assert not np.array_equal(got, expected)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


REAL = {
    "real": np.random.default_rng(3).standard_normal((4, 6, 1, 1)).astype(np.float32),
    "end": np.random.default_rng(4).standard_normal((64, 5)).astype(np.float32),
}


@pytest.mark.parametrize("name", ["X.ONNX", "model", "model.pb", "model.pth"])
def test_any_suffix(name: str, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    (tmp_path / "m.onnx").rename(tmp_path / name)
    assert convert(tmp_path / name, tmp_path / "out.onnx").binary_layers == ("d", "y")


OTHER_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "arrays.npz": (lambda path: np.savez(path, x=X), "a NumPy archive, not a model"),
    "array.npy": (lambda path: np.save(path, X), "a NumPy array, not a model"),
    "script.pt": (
        lambda path: torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(path),
        "a TorchScript program, not a checkpoint: arch='torchscript' runs it",
    ),
    "lite.tflite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(99)), "a TensorFlow Lite model; convert"),
    "keras.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file, as Keras writes"),
    "fast.ort": (lambda path: path.write_bytes(b"\x1c\0\0\0ORTM" + bytes(99)), "a model in onnxruntime's own format"),
}


@pytest.mark.parametrize("arguments", [{}, {"arch": "lenet5"}])
@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_named(name: str, arguments: dict[str, str], tmp_path: Path) -> None:
    make, line = OTHER_FILES[name]
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        convert(tmp_path / name, tmp_path / "m.onnx", **arguments)  # type: ignore[arg-type]
    assert f"{name}: {line}" in str(caught.value)
    (tmp_path / name).rename(tmp_path / "called.onnx")
    with pytest.raises(InputError, match=re.escape(f"called.onnx: {line}")):
        convert(tmp_path / "called.onnx", tmp_path / "m.onnx")


@pytest.mark.parametrize("activation", ["Relu (k)", "LeakyRelu <alpha=0.5> (k)", "Clip (k, minus, quarter)"])
@pytest.mark.parametrize("summand", ["", "c"])
def test_what_onnxruntime_fused(activation: str, summand: str, tmp_path: Path) -> None:
    """Its extended optimisations write FusedConv into a file; the summand that it may have is added here."""
    nodes = NODES.replace("n = Add (c, quarter)", f"k = Conv (c, point)\na = {activation}\nn = Sub (a, eighth)")
    extra: dict[str, Any] = {"point": weights(8, 8, 1, 1, seed=3), "eighth": np.float32(0.125)}
    model = network(nodes, **extra | ({"minus": np.float32(-2)} if "minus" in activation else {}))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    (fused,) = (node for node in optimised.graph.node if node.op_type == "FusedConv")
    if summand:
        fused.input.extend([""] * (3 - len(fused.input)) + [summand])
    computes(optimised, stock(optimised), tmp_path)


def test_an_activation_without_definition(tmp_path: Path) -> None:
    model = network()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[0].CopyFrom(
        NODE("FusedConv", ["x", "first"], ["c"], "one", domain="com.microsoft", activation="Swoosh", pads=[1, 1, 1, 1])
    )
    with pytest.raises(InputError, match="FusedConv 'one' has the activation Swoosh, which has no definition here"):
        convert(model, tmp_path / "m.onnx")
