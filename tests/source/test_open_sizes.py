"""Models that leave the height and the width of their input open, and what is converted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import load_session
from support.graphs import batch_norm, eighths, parse, run_float, weights

BACKBONE = """c = Conv <pads=[1,1,1,1]> (x, first)
n = BatchNormalization (c, g, b, m, v)
s = Sign (n)
d = Conv <pads=[1,1,1,1]> (s, w)
o = Add (d, quarter)
t = Sign (o)
"""
UP = """k = Shape <start=2> (o)
i = Shape <end=2> (z)
h = Concat <axis=0> (i, k)
r = Resize <mode="nearest"> (z, , , h)
"""

FORMS = {
    "pools and a residual": (
        "z = Conv <pads=[1,1,1,1]> (t, third)\na = Add (z, o)\nq = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)\n"
        "e = Add (q, quarter)\nu = Sign (e)\ny = Conv (u, last)",
        3,
    ),
    "down and up": (
        f"z = Conv <pads=[1,1,1,1], strides=[2,2]> (t, third)\n{UP}a = Add (r, o)\nu = Sign (a)\ny = Conv (u, last)",
        3,
    ),
    "a class": ("z = Conv (t, last)\na = GlobalAveragePool (z)\nf = Flatten (a)\ny = MatMul (f, real)", 2),
    "tokens": ("f = Reshape (o, flat)\na = Transpose <perm=[0,2,1]> (f)\nu = Sign (a)\ny = MatMul (u, linear)", 2),
    "SAME padding": ('y = Conv <auto_pad="SAME_UPPER"> (t, third)', 2),
    "SAME padding at stride 2": ('y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (t, third)', 1),
}
CONSTANTS: dict[str, Any] = {
    "first": eighths(8, 3, 3, 3),
    **batch_norm(8),
    "w": weights(6, 8, 3, 3),
    "quarter": np.float32(0.25),
    "third": weights(6, 6, 3, 3, seed=3),
    "last": weights(5, 6, 3, 3, seed=4),
    "linear": weights(6, 4, seed=5),
    "real": eighths(5, 3, seed=6),
    "flat": np.array([0, 0, -1]),
    "wide": weights(6 * 64, 5, seed=7),
}


def network(nodes: str, size: tuple[int | str, int | str] = ("H", "W")) -> ir.Model:
    body = BACKBONE + nodes
    names = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(body, ("N", 3, *size), **{name: value for name, value in CONSTANTS.items() if name in names})


def images(*size: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((3, 3, *size)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_runs_at_every_size(form: str, tmp_path: Path) -> None:
    nodes, binary = FORMS[form]
    model = network(nodes)
    result = convert(model, tmp_path / "m.onnx", input_shape=(3, 8, 8) if form == "tokens" else None)
    assert len(result.binary_layers) == binary, result.left_float
    content = inspect_model(tmp_path / "m.onnx")
    assert content.inputs[0].shape == ("batch", 3, "H", "W")
    shape = "3,8,8" if form == "tokens" else "3,64,64"
    assert content.metadata["bnn_deploy.input_shape"] == shape
    assert content.binary_macs and not content.uncounted
    wrong = onnx.load(tmp_path / "m.onnx")
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith("weight_bits"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) ^ 1, tensor.name))
    sessions = [load_session(tmp_path / "m.onnx", kernels=kernels) for kernels in (True, False)]
    damaged = load_session(wrong.SerializeToString())
    for size in ((8, 8), (12, 21), (30, 9), (8, 8)):
        (expected,) = run_float(model, images(*size))
        for session in sessions:
            assert np.allclose(session.run(None, {"x": images(*size)})[0], expected, rtol=1e-6, atol=1e-6)
        assert not np.allclose(damaged.run(None, {"x": images(*size)})[0], expected, rtol=1e-6, atol=1e-6)


def test_a_linear_layer_behind_a_map_fixes_the_size(tmp_path: Path) -> None:
    """The file says that any size will do, but only one does."""
    model = ir.to_proto(network("f = Flatten (t)\ny = Identity (f)"))
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("MatMul", ["f", "wide"], ["y"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(CONSTANTS["wide"], "wide"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    del model.graph.value_info[:]
    with pytest.raises(InputError, match=r"are not numbers \(N, 3, H, W\); give input_shape"):
        convert(model, tmp_path / "m.onnx")
    assert len(convert(model, tmp_path / "m.onnx", input_shape=(3, 8, 8)).binary_layers) == 2
    assert inspect_model(tmp_path / "m.onnx").inputs[0].shape == ("batch", 3, 8, 8)


def test_verify_and_profile(tmp_path: Path) -> None:
    model = network(FORMS["pools and a residual"][0])
    ir.save(model, tmp_path / "f.onnx")
    convert(tmp_path / "f.onnx", tmp_path / "m.onnx", input_shape=(3, 12, 8), float_output=tmp_path / "float.onnx")
    assert profile(tmp_path / "m.onnx", tmp_path / "float.onnx", runs=1).input_shapes == {"x": (1, 3, 12, 8)}
    for data in (None, images(20, 10)):
        assert verify(tmp_path / "m.onnx", tmp_path / "f.onnx", data=data, reference_samples=1).passed
