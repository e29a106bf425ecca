"""Several inputs and outputs, of any type: converted, and run like the float model in stock onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.inputs import load_data, read_inputs
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import load_session
from support.golden_files import BEST
from support.graphs import batch_norm, eighths, parse, weights

Arrays = dict[str, NDArray[Any]]

BACKBONE = """c = Conv <pads=[1,1,1,1]> (x, first)
n = BatchNormalization (c, g, b, m, v)
s = Sign (n)
d = Conv <pads=[1,1,1,1]> (s, w)"""

CONSTANTS: dict[str, Any] = {
    "first": eighths(8, 3, 3, 3),
    **batch_norm(8),
    "w": weights(6, 8, 3, 3),
    "last": weights(6 * 16, 5, seed=2),
    "quarter": np.float32(0.25),
}
HEAD = "o = Add (d, quarter)\nt = Sign (o)\nf = Flatten (t)\ny = MatMul (f, last)"  # sums are multiples of a half

FORMS: dict[str, tuple[str, tuple[str, ...], str, int]] = {
    "two heads": (f"{BACKBONE}\n{HEAD}\nz = Relu (d)", ("y", "z"), "", 2),
    "outputs in the middle": (f"{BACKBONE}\n{HEAD}", ("n", "s", "d", "t", "y"), "", 2),
    "one output twice read": (f"{BACKBONE}\n{HEAD}\nz = Add (d, d)", ("d", "y", "z"), "", 2),
    "a class": (f"{BACKBONE}\n{HEAD}\nk = ArgMax <axis=1> (y)", ("int64[] k", "y"), "", 2),
    "the best three": (f"{BACKBONE}\n{HEAD}\nk, i = TopK (y, three)", ("k", "int64[] i"), "", 2),
    "boxes": (
        f"{BACKBONE}\nl = Flatten (d)\nq = Reshape (l, quads)\nr = ReduceMax <keepdims=1> (q, two)\n"
        "p = Transpose <perm=[0,2,1]> (r)\nk = NonMaxSuppression (q, p, three, half, half)\ny = Identity (q)",
        ("int64[] k", "y"),
        "",
        1,
    ),
    "two pictures": (
        f"{BACKBONE}\ne = Conv <pads=[1,1,1,1]> (other, first)\na = Sign (e)\nh = Conv <pads=[1,1,1,1]> (a, w)\n"
        "z = Add (d, h)",
        ("d", "z"),
        "float[N,3,4,4] other",
        2,
    ),
    "bytes": (f"{BACKBONE}\n{HEAD}", ("y",), "", 2),
    "a mask": (f"{BACKBONE}\ny = Where (mask, d, zero)", ("y",), "bool[N,1,4,4] mask", 1),
    "a number": (f"{BACKBONE}\ny = Mul (d, factor)", ("y",), "float factor", 1),
    "indices": (f"{BACKBONE}\nl = Flatten (d)\ny = Gather <axis=1> (l, places)", ("y",), "int64[2] places", 1),
}


def network(form: str) -> onnx.ModelProto:
    body, outputs, inputs, _ = FORMS[form]
    more = {
        "three": np.array([3]),
        "quads": np.array([0, -1, 4]),
        "two": np.array([2]),
        "half": np.float32([0.5]),
        "zero": np.float32(0),
    }
    names = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    known = {name: value for name, value in (CONSTANTS | more).items() if name in names}
    model = ir.to_proto(parse(body, ("N", 3, 4, 4), outputs, inputs, **known))
    if form == "bytes":  # pictures as uint8, cast and scaled in the graph
        model.graph.input[0].name = "pixels"
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 / 128), "scale"))
        model.graph.node.insert(0, onnx.helper.make_node("Cast", ["pixels"], ["float"], to=onnx.TensorProto.FLOAT))
        model.graph.node.insert(1, onnx.helper.make_node("Mul", ["float", "scale"], ["x"]))
    return model


def feed(model: onnx.ModelProto, count: int = 5) -> Arrays:
    """Random inputs."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return load_data(None, None, count, read_inputs(session)).part(0, count)


def run_stock(model: onnx.ModelProto, arrays: Arrays) -> list[NDArray[Any]]:
    """The outputs in onnxruntime alone."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, arrays))


def same(got: list[NDArray[Any]], expected: list[NDArray[Any]]) -> bool:
    """Whether all outputs agree, floats but for rounding."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
def test_runs_like_the_float_model(form: str, tmp_path: Path) -> None:
    model = network(form)
    result = convert(model, tmp_path / "m.onnx")
    assert len(result.binary_layers) == FORMS[form][3], result.left_float
    arrays, session = feed(model), load_session(tmp_path / "m.onnx")
    assert [item.name for item in session.get_inputs()] == [item.name for item in model.graph.input]
    assert [item.name for item in session.get_outputs()] == [output.split()[-1] for output in FORMS[form][1]]
    expected = run_stock(model, arrays)
    assert same(session.run(None, arrays), expected)
    assert same(load_session(tmp_path / "m.onnx", kernels=False).run(None, arrays), expected)
    proof = verify(tmp_path / "m.onnx", model, data=arrays, isas=BEST, reference_samples=2)
    assert proof.passed, proof.failures
    wrong = onnx.load(tmp_path / "m.onnx")
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith("weight_bits"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) ^ 1, tensor.name))
    assert not same(load_session(wrong.SerializeToString()).run(None, arrays), expected)
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", model, data=arrays, isas=BEST, reference_samples=0).passed


def test_profile_and_inspect(tmp_path: Path) -> None:
    model = network("two pictures")
    convert(model, tmp_path / "m.onnx", float_output=tmp_path / "float.onnx")
    report = profile(tmp_path / "m.onnx", tmp_path / "float.onnx", runs=1, batch=2)
    assert report.input_shapes == {"x": (2, 3, 4, 4), "other": (2, 3, 4, 4)}
    arrays = feed(model)
    np.savez(tmp_path / "data.npz", **arrays)
    profile(tmp_path / "m.onnx", runs=1, batch=5, data=tmp_path / "data.npz")
    content = inspect_model(tmp_path / "m.onnx")
    assert [tensor.name for tensor in content.inputs] == ["x", "other"]
    assert [(tensor.name, tensor.shape) for tensor in content.outputs] == [
        (name, ("batch", 6, 4, 4)) for name in ("d", "z")
    ]
    with pytest.raises(InputError, match="holds x, but the model has the inputs x, other: other is missing"):
        load_data({"x": arrays["x"]}, None, None, read_inputs(load_session(tmp_path / "m.onnx")))
    arrays["other"] = arrays["other"][:3]
    with pytest.raises(InputError, match="given arrays: input 'other' has 3 samples, another one 5"):
        load_data(arrays, None, None, read_inputs(load_session(tmp_path / "m.onnx")))


@pytest.mark.parametrize("form", ["two pictures", "a number", "bytes"])
def test_edges_of_8_bits(form: str, tmp_path: Path) -> None:
    model = network(form)
    arrays = feed(model)
    convert(model, tmp_path / "m.onnx", calibration=arrays if len(arrays) > 1 else arrays["pixels"])
    for got, exact in zip(load_session(tmp_path / "m.onnx").run(None, arrays), run_stock(model, arrays), strict=True):
        assert got.shape == exact.shape and not np.array_equal(got, exact)
        assert np.abs(got - exact).mean() < np.abs(exact[::-1] - exact).mean()


def test_shapes_of_several_inputs(tmp_path: Path) -> None:
    model = network("two pictures")
    model.graph.input[1].type.tensor_type.shape.dim[3].dim_param = "W"
    with pytest.raises(InputError, match=r"its input 'other' has dimensions besides .* \(N, 3, 4, W\)"):
        convert(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="it has no input 'others', which input_shape names; it has x, other"):
        convert(model, tmp_path / "m.onnx", input_shape={"others": (3, 4, 4)})
    with pytest.raises(InputError, match=r"its input 'other' is \['N', 3, 4, None\], which .* \[4, 4, 4\] does not"):
        convert(model, tmp_path / "m.onnx", input_shape={"other": (4, 4, 4)})
    convert(model, tmp_path / "m.onnx", input_shape={"other": (3, 4, 4)})
    assert inspect_model(tmp_path / "m.onnx").metadata["bnn_deploy.input_shape"] == (
        '{"x": [3, 4, 4], "other": [3, 4, 4]}'
    )
