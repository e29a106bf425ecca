"""PackWeights: BWN layers keep one bit per weight, and compute bit for bit what the float graph computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx.reference import ReferenceEvaluator

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.operators.bits import unpack_bits
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.lower.pack_weights import PackWeights, packed_layers
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.proof import verification
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import SOURCE
from bnn_deploy.runtime.session import load_session
from support.graphs import batch_norm, copy, op_types, parse, runnable, samples


def bwn(*shape: int, axis: int = 0, seed: int = 0) -> Any:
    """±alpha with an alpha of its own for each filter along `axis`."""
    rng = np.random.default_rng(seed)
    alpha = rng.uniform(0.1, 1, [size if i == axis else 1 for i, size in enumerate(shape)])
    return (np.where(rng.random(shape) < 0.5, -1, 1) * alpha).astype(np.float32)


def pack(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """The packed model, and the reasons of what was declined."""
    after = copy(model)
    result = PackWeights({value.name or "" for node in after.graph for value in node.outputs})(after)
    common.RemoveUnusedNodesPass()(after)
    return after, [decline.reason for decline in result.declined]


LAYERS = {
    "Conv": ("y = Conv <pads=[1,1,1,1]> (x, w)", (2, 19, 6, 6), bwn(16, 19, 3, 3)),
    "Conv, 3 channels": ("y = Conv (x, w)", (2, 3, 9, 9), bwn(20, 3, 5, 5)),
    "Conv, grouped": ("y = Conv <group=4> (x, w)", (2, 32, 6, 6), bwn(16, 8, 3, 3)),
    "Conv, depthwise": ("y = Conv <group=128> (x, w)", (2, 128, 5, 5), bwn(128, 1, 3, 3)),
    "Conv, 1-D": ("y = Conv (x, w)", (2, 24, 9), bwn(16, 24, 3)),
    "Conv, 3-D": ("y = Conv (x, w)", (2, 8, 4, 4, 4), bwn(8, 8, 3, 3, 3)),
    "ConvTranspose": ("y = ConvTranspose (x, w)", (2, 16, 4, 4), bwn(16, 9, 3, 3, axis=1)),
    "Gemm": ("y = Gemm (x, w)", (2, 70), bwn(70, 20, axis=1)),
    "Gemm, transB": ("y = Gemm <transB=1> (x, w)", (2, 70), bwn(20, 70)),
    "MatMul": ("y = MatMul (x, w)", (2, 70), bwn(70, 20, axis=1)),
    "MatMul of sequences": ("y = MatMul (x, w)", (2, 5, 70), bwn(70, 20, axis=1)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_fires(layer: str) -> None:
    text, shape, weight = LAYERS[layer]
    model = parse(text, shape, w=weight)
    after, declined = pack(model)
    assert declined == []
    assert op_types(after)[0] == "UnpackWeights" and packed_layers(after) == ["y"]
    unpack, *_, node = after.graph
    assert node.metadata_props[SOURCE] == "y"
    bits, scale = (constant(value) for value in unpack.inputs)
    assert bits is not None and scale is not None
    assert bits.nbytes + scale.nbytes < weight.nbytes / 4
    assert weight.nbytes not in [t.const_value.nbytes for t in after.graph.initializers.values() if t.const_value]
    data, x = runnable(after), samples(model)
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        for kernels in (False, True):
            expected = run(runnable(model), x, level, kernels)
            assert np.array_equal(run(data, x, level, kernels), expected)
    reference = ReferenceEvaluator(onnx.load_from_string(runnable(model))).run(None, {"x": x})[0]
    packed = ReferenceEvaluator(onnx.load_from_string(data)).run(None, {"x": x})[0]
    # numpy's BLAS sums in an order that depends on the CPU and on where the weights lie.
    assert np.allclose(packed, reference, rtol=1e-5, atol=1e-5)
    # One bit, or the scale of one filter, is seen.
    for index in (0, 1):
        wrong = copy(after)
        value = next(iter(wrong.graph)).inputs[index]
        assert value is not None
        array = np.array(constant(value))
        array.flat[0] = array.flat[0] ^ 1 if index == 0 else array.flat[0] * 1.001
        value.const_value = ir.tensor(array, name=value.name)
        assert not np.array_equal(run(runnable(wrong), x, "ORT_ENABLE_ALL", False), expected)


def run(data: bytes, x: Any, level: str, kernels: bool) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return load_session(data, 1, kernels=kernels, options=options).run(None, {"x": x})[0]


def test_the_bits_are_the_filters_in_the_order_of_their_elements() -> None:
    weight = bwn(16, 19, 3, 3)
    after, _ = pack(parse("y = Conv (x, w)", (2, 19, 6, 6), w=weight))
    bits, scale = (constant(value) for value in next(iter(after.graph)).inputs)
    assert bits is not None and scale is not None
    assert bits.shape == (16, 6) and bits.dtype == np.uint32
    np.testing.assert_array_equal(unpack_bits(bits, 171), weight.reshape(16, -1) > 0)
    np.testing.assert_array_equal(scale, np.abs(weight[:, 0, 0, 0]))


@pytest.mark.parametrize("layer", ["Conv", "MatMul"])
def test_onnxruntime_folds_the_body_into_a_constant(layer: str, tmp_path: Path) -> None:
    """The reason why it runs at fp32's speed: the layer is prepacked as ever."""
    text, shape, weight = LAYERS[layer]
    after, _ = pack(parse(text, shape, w=weight))
    for kernels in (False, True):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        load_session(runnable(after), 1, kernels=kernels, options=options)
        assert [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node] == [layer]


def test_magnitudes_that_vary_by_rounding_become_their_mean() -> None:
    exact = bwn(16, 19, 3, 3)
    varied = (exact * (1 + 1e-4 * np.random.default_rng(1).standard_normal(exact.shape))).astype(np.float32)
    model = parse("y = Conv (x, w)", (2, 19, 6, 6), w=varied)
    after, declined = pack(model)
    assert declined == [] and packed_layers(after) == ["y"]
    x = samples(model)
    got, expected = (run(runnable(m), x, "ORT_ENABLE_ALL", False) for m in (after, model))
    assert not np.array_equal(got, expected)
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


def real(weight: Any) -> Any:
    return weight * np.random.default_rng(2).uniform(0.5, 1, weight.shape).astype(np.float32)


def with_zeros(weight: Any) -> Any:
    weight = weight.copy()
    weight[3, :2, 0, 0] = 0
    return weight


def dead(weight: Any) -> Any:
    weight = weight.copy()
    weight[3] = 0
    return weight


DECLINED = {
    "real weights": (real(bwn(16, 19, 3, 3)), []),
    "exact zeros": (
        with_zeros(bwn(16, 19, 3, 3)),
        ["filter 3 has 2 weights that are exactly 0, which one bit cannot hold"],
    ),
    "an all-zero filter": (dead(bwn(16, 19, 3, 3)), ["a filter is all zeros"]),
    "a box filter": (np.full((16, 19, 3, 3), 1 / 9, np.float32), []),
    "little to gain": (bwn(5, 19, 3, 3), []),
    "filters of four weights": (
        bwn(1000, 4, 1, 1),
        ["each filter has 4 weights, which take a word of 32 bits and a scale"],
    ),
    "float64": (bwn(16, 19, 3, 3).astype(np.float64), []),
}


@pytest.mark.parametrize("case", DECLINED)
def test_does_not_pack(case: str) -> None:
    weight, reasons = DECLINED[case]
    model = parse(
        "c = Cast <to=11> (x)\nd = Conv (c, w)\ny = Cast <to=1> (d)" if case == "float64" else "y = Conv (x, w)",
        (2, weight.shape[1], 6, 6),
        w=weight,
    )
    after, declined = pack(model)
    assert declined == reasons
    assert op_types(after) == op_types(model)


def test_does_not_pack_weights_that_are_inputs() -> None:
    model = parse("y = Conv (x, w)", (2, 19, 6, 6), inputs="float[16,19,3,3] w")
    assert pack(model)[1] == [] and packed_layers(pack(model)[0]) == []


def test_does_not_pack_weights_that_something_else_reads() -> None:
    weight = bwn(20, 20, 3, 3)
    model = parse("y = Conv (x, w)\nz = Relu (w)", (2, 20, 6, 6), ("y", "z"), w=weight)
    after, declined = pack(model)
    assert declined == ["Relu 'z' reads its weights, too"] and packed_layers(after) == []


def test_does_not_touch_a_grouped_conv_transpose() -> None:
    model = parse("y = ConvTranspose <group=2> (x, w)", (2, 16, 4, 4), w=bwn(16, 9, 3, 3, axis=1))
    assert pack(model)[1] == [] and packed_layers(pack(model)[0]) == []


def test_shared_weights_and_fan_out() -> None:
    """Two layers of one weight and one input share the unpacked tensor."""
    model = parse("y = Conv (x, w)\nz = Conv <pads=[1,1,1,1]> (x, w)", (2, 19, 6, 6), ("y", "z"), w=bwn(16, 19, 3, 3))
    after, declined = pack(model)
    assert declined == []
    assert op_types(after).count("UnpackWeights") == 1 and packed_layers(after) == ["y", "z"]
    x = samples(model)
    for got, expected in zip(*(load_session(runnable(m), 1).run(None, {"x": x}) for m in (after, model)), strict=True):
        assert np.array_equal(got, expected)


# The whole way.

NET = """c = Conv <pads=[1,1,1,1]> (x, w1)
n = BatchNormalization (c, g, b, m, v)
r = Relu (n)
p = AveragePool <kernel_shape=[2,2], strides=[2,2]> (r)
d = Conv (p, w2)
q = Relu (d)
f = Flatten (q)
y = Gemm (f, w3)"""


def network(nodes: str = NET, **more: Any) -> ir.Model:
    constants = {"w1": bwn(32, 8, 3, 3), **batch_norm(32), "w2": bwn(32, 32, 3, 3, seed=1), "w3": bwn(128, 10, axis=1)}
    return parse(nodes, ("N", 8, 8, 8), **constants | more)


def converted(model: ir.Model, folder: Path, **options: Any) -> Any:
    ir.save(model, folder / "float.onnx")
    return convert(folder / "float.onnx", folder / "m.onnx", **options)


def test_a_network_with_binary_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = converted(network(), tmp_path, strict=True)
    assert (result.binary_layers, result.binary_weights, result.left_float) == ((), ("c", "d", "y"), ())
    proof = verify(tmp_path / "m.onnx", tmp_path / "float.onnx", reference_samples=2)
    assert proof.passed, proof.failures
    assert (proof.isas, [layer.kind for layer in proof.layers]) == ([], ["floats"] * 3)
    assert [result.op_type for result in proof.operators] == ["UnpackWeights"] * 3
    layers = {layer.name: layer for layer in inspect_model(tmp_path / "m.onnx").layers}
    assert layers["d"].binary_weights and layers["d"].constant_bytes < 32 * 32 * 9 * 4 / 20
    assert layers["d.weight"].output.shape == (32, 32, 3, 3)
    with pytest.raises(InputError, match="it has binary weights only"):
        make_golden(tmp_path / "m.onnx")
    with monkeypatch.context() as board:  # without onnx
        board.setattr(verification.importlib.util, "find_spec", lambda name: None)
        proof = verify(tmp_path / "m.onnx", tmp_path / "float.onnx")
        assert (proof.passed, proof.isas, proof.complete) == (True, [], False), proof.failures
    # A wrong bit, and a wrong alpha, are seen.
    for suffix in ("weight_bits", "scales"):
        wrong = onnx.load(tmp_path / "m.onnx")
        tensor = next(t for t in wrong.graph.initializer if t.name == f"d_{suffix}")
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[4] = array[4] ^ 1 if suffix == "weight_bits" else array[4] * 1.01
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(wrong, tmp_path / "wrong.onnx")
        assert [x.layer for x in verify(tmp_path / "wrong.onnx", tmp_path / "float.onnx").layers if not x.passed] == [
            "d"
        ]


def test_the_command_line_says_so(tmp_path: Path) -> None:
    ir.save(network(), tmp_path / "float.onnx")
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "float.onnx"), "-o", str(tmp_path / "m.onnx")])
    assert result.exit_code == 0, result.stderr
    assert "0 layers binary, 3 with binary weights only, 0 left float" in result.stdout
    assert "Conv (binary weights only)" in result.stdout
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "m.onnx"), "--against", str(tmp_path / "float.onnx")])
    assert result.exit_code == 0 and "kernels    none: the model has binary weights only" in result.stdout


def test_beside_binary_layers(tmp_path: Path) -> None:
    text = NET.replace("q = Relu (d)\nf = Flatten (q)", "s = Sign (d)\nq = Conv (s, w4)\nf = Flatten (q)")
    model = parse(
        text,
        ("N", 8, 8, 8),
        w1=bwn(32, 8, 3, 3),
        **batch_norm(32),
        w2=bwn(32, 32, 2, 2, seed=1),
        w4=bwn(32, 32, 2, 2, seed=4),
        w3=bwn(128, 10, axis=1),
    )
    result = converted(model, tmp_path)
    assert (result.binary_layers, result.binary_weights) == (("q",), ("c", "d", "y"))
    proof = verify(tmp_path / "m.onnx", tmp_path / "float.onnx", reference_samples=2)
    assert proof.passed, proof.failures
    assert len(proof.isas) > 0
    write_golden(make_golden(tmp_path / "m.onnx", samples=4), tmp_path / "golden.npz")
    assert check_golden(tmp_path / "m.onnx", tmp_path / "golden.npz").passed


def test_eight_bit_edges_leave_them_alone(tmp_path: Path) -> None:
    text = NET.replace("q = Relu (d)\nf = Flatten (q)", "s = Sign (d)\nq = Conv (s, w4)\nf = Flatten (q)")
    model = parse(
        text,
        ("N", 8, 8, 8),
        w1=real(bwn(32, 8, 3, 3)),
        **batch_norm(32),
        w2=bwn(32, 32, 2, 2, seed=1),
        w4=bwn(32, 32, 2, 2, seed=4),
        w3=bwn(128, 10, axis=1),
    )
    calibration = np.random.default_rng(0).standard_normal((32, 8, 8, 8)).astype(np.float32)
    result = converted(model, tmp_path, calibration=calibration)
    assert result.binary_weights == ("d", "y")
    layers = {layer.name: layer for layer in inspect_model(tmp_path / "m.onnx").layers}
    assert [(layers[name].quantized, layers[name].binary_weights) for name in "cdy"] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    proof = verify(tmp_path / "m.onnx", tmp_path / "float.onnx", data=calibration, reference_samples=2)
    assert proof.passed, proof.failures


def test_a_batch_norm_in_front_does_not_make_them_real() -> None:
    """FoldBatchNorm multiplies the weights of a layer by a factor per input channel; not those."""
    text = "n = BatchNormalization (x, g, b, m, v)\ny = Conv (n, w)"
    for weight, packed in ((bwn(32, 32, 3, 3), ["y"]), (real(bwn(32, 32, 3, 3)), [])):
        model = parse(text, ("N", 32, 8, 8), **batch_norm(32), w=weight)
        after, _, _ = to_binary(model)
        assert packed_layers(after) == packed
        assert ("BatchNormalization" in op_types(after)) == bool(packed)


def test_the_report_says_why_they_are_not_bits(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"its weights are not stored as bits: filter 3 has 2 weights that are exactly 0"
    ):
        converted(parse("y = Conv (x, w)", (2, 19, 6, 6), w=with_zeros(bwn(16, 19, 3, 3))), tmp_path)
    assert not (tmp_path / "m.onnx").exists()
