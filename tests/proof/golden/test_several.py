"""Golden results of models with several inputs and outputs, of any type."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.golden.check import GoldenVerification, check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import read_golden, write_golden
from bnn_deploy.runtime.inputs import load_data, read_inputs
from bnn_deploy.runtime.session import load_session
from support.golden_files import BEST, ISAS, rewrite
from support.graphs import batch_norm, eighths, parse, weights

BODY = """e = Gather <axis=0> (rows, ids)
c = Conv <pads=[1,1,1,1]> (x, first)
n = BatchNormalization (c, g, b, m, v)
s = Sign (n)
d = Conv <pads=[1,1,1,1]> (s, w)
o = Add (d, quarter)
t = Sign (o)
f = Flatten (t)
h = MatMul (f, last)
y = Add (h, e)
k = ArgMax <axis=1, keepdims=0> (y)
z = Where (mask, d, zero)
j = Greater (z, zero)"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a bool mask, int64 ids and a table without the batch; floats, a class, a map and bools."""
    constants: dict[str, Any] = {
        "first": eighths(8, 3, 3, 3),
        **batch_norm(8),
        "w": weights(6, 8, 3, 3),
        "last": weights(6 * 16, 5, seed=2),
        "quarter": np.float32(0.25),
        "zero": np.float32(0),
    }
    inputs = "bool[N,1,4,4] mask, int64[N] ids, float[2,5] rows"
    source = parse(BODY, ("N", 3, 4, 4), ("y", "int64[] k", "z", "bool[] j"), inputs, **constants)
    return convert(source, tmp_path_factory.mktemp("several") / "m.onnx").output


@pytest.fixture(scope="module")
def golden(model: Path) -> Path:
    path = model.parent / "golden.npz"
    write_golden(make_golden(model, samples=6), path)
    return path


def test_all_inputs_and_outputs(model: Path, golden: Path) -> None:
    content = read_golden(golden)
    assert list(content.inputs.arrays) == ["x", "mask", "ids", "rows"] and content.inputs.whole == {"rows"}
    session = load_session(model, kernels=False)
    data = load_data(None, None, 6, read_inputs(session)).arrays
    for output, expected in zip(content.outputs, session.run(None, data), strict=True):
        assert output.values.dtype == expected.dtype
        np.testing.assert_allclose(output.values, expected, atol=1e-5)
    np.testing.assert_equal(dataclasses.asdict(content), dataclasses.asdict(make_golden(model, samples=6)))
    result = check_golden(model, golden)
    assert result.passed, result.failures
    assert [(o.output, o.samples, o.identical, o.differing) for o in result.outputs[:4]] == [
        ("y", 6, 6, None),
        ("k", 6, 6, 0),
        ("z", 6, 6, None),
        ("j", 6, 6, 0),
    ]
    assert len(result.outputs) == 4 * (len(ISAS) + 1)


def changed(golden: Path, path: Path, output: int, **changes: Any) -> Path:
    content = read_golden(golden)
    outputs = list(content.outputs)
    outputs[output] = dataclasses.replace(outputs[output], **changes)
    return rewrite(path, content, outputs=tuple(outputs))


def quick(model: Path, golden: Path) -> GoldenVerification:
    return check_golden(model, golden, isas=BEST, body_samples=0)


def nudged(values: NDArray[Any], amount: Any) -> NDArray[Any]:
    values = values.copy()
    values[(4, *(0,) * (values.ndim - 1))] += np.asarray(amount, values.dtype)
    return values


@pytest.mark.parametrize(
    ("output", "amount", "message"),
    [
        (1, 1, "the values of output 'k' differ in 1 of 6 values, which are no floats; worst at sample 4, index "),
        (2, 1.0, r"the values of output 'z' differ by up to [\d.]+ of the largest in their channel \(allowed 0.0001\)"),
        (2, 1e-6, ""),
        (3, 1, "the values of output 'j' differ in 1 of 576 values"),
    ],
)
def test_each_output_is_compared(
    output: int, amount: float, message: str, model: Path, golden: Path, tmp_path: Path
) -> None:
    """Floats within the recorded rounding, all others exactly."""
    values = read_golden(golden).outputs[output].values
    if values.dtype == bool:
        values = values.copy()
        values[4, 0, 0, 0] ^= True
    else:
        values = nudged(values, amount)
    result = quick(model, changed(golden, tmp_path / "g.npz", output, values=values))
    assert result.passed is not bool(message)
    if message:
        (fed, free) = result.failures
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(fed)
        assert free.startswith(f"kernels, {BEST[0]}, running free: the values of output ")
    other = changed(golden, tmp_path / "g.npz", output, values=values.astype(np.float64))
    line = quick(model, other).failures[0]
    assert f" is {read_golden(golden).outputs[output].values.dtype} [6" in line and " instead of float64 [6" in line


def test_a_head_that_is_damaged(model: Path, golden: Path, tmp_path: Path) -> None:
    """A constant that only the third output reads."""
    wrong = onnx.load(model)
    where = next(node for node in wrong.graph.node if node.op_type == "Where")
    where.input[1], where.input[2] = where.input[2], where.input[1]
    onnx.save(wrong, tmp_path / "m.onnx")
    content = read_golden(golden)
    result = quick(tmp_path / "m.onnx", rewrite(tmp_path / "g.npz", content, tmp_path / "m.onnx"))
    assert [line.split(" differ")[0].rpartition("the values of ")[2] for line in result.failures] == [
        "output 'z'",
        "output 'j'",
    ]


def test_outputs_that_are_no_samples_are_refused(tmp_path: Path) -> None:
    body = BODY.split("\nf = ")[0].split("\n", 1)[1] + "\ny = ReduceMax <keepdims=0> (d)"
    constants: dict[str, Any] = {"first": eighths(8, 3, 3, 3), **batch_norm(8), "w": weights(6, 8, 3, 3)}
    source = parse(body, ("N", 3, 4, 4), ("y", "t"), quarter=np.float32(0.25), **constants)
    model = convert(source, tmp_path / "m.onnx").output
    with pytest.raises(
        InputError, match=r"m\.onnx: the output 'y' gives \[2\] for 6 samples; golden results compare sampl"
    ):
        make_golden(model, samples=6)
