"""How much rounding in the float layers may flip bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from bnn_deploy.conversion import convert
from bnn_deploy.operators.bits import unpack_bits
from bnn_deploy.operators.contract import OPERATORS
from bnn_deploy.proof.golden import make
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.record import read_golden
from bnn_deploy.proof.pieces import with_outputs
from bnn_deploy.proof.results import Tolerances
from bnn_deploy.runtime.session import load_session
from support.converted import Converted
from support.damage import Damage, damaged, move_threshold
from support.golden_files import BEST, check_damaged, rewrite
from support.graphs import eighths, parse, weights


def noisy(converted: Converted, noise: float, path: Path) -> Path:
    """The model with the first layer's weights changed by relative noise: as if another machine summed otherwise."""
    model = onnx.load(converted.model)
    conv = next(node for node in model.graph.node if node.op_type == "DirectConvThreshold")
    tensor = next(t for t in model.graph.initializer if t.name == conv.input[1])
    weights = numpy_helper.to_array(tensor)
    factors = 1 + noise * np.random.default_rng(1).standard_normal(weights.shape)
    tensor.CopyFrom(numpy_helper.from_array((weights * factors).astype(np.float32), tensor.name))
    onnx.save(model, path)
    return path


def test_rounding_in_the_first_layer_passes_and_is_counted(
    nin: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    model = noisy(nin, 1e-5, tmp_path / "noisy.onnx")
    result = check_damaged(nin, model, goldens(nin, 5), tmp_path)
    assert result.passed, result.failures
    first, *others = result.layers
    assert 0 < first.differing <= first.near / 4
    assert not any(layer.differing for layer in others)  # fed with golden bits, they see none of it
    (output,) = result.outputs
    assert 0 < output.flipped <= output.samples == 5
    assert output.identical == 5 - output.flipped


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_less_rounding_flips_nothing_here(
    nin: Converted, noise: float, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    result = check_damaged(nin, noisy(nin, noise, tmp_path / "noisy.onnx"), goldens(nin, 5), tmp_path)
    assert result.passed, result.failures
    assert result.layers[0].differing <= 1


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_more_than_rounding_fails(
    nin: Converted, noise: float, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    model = noisy(nin, noise, tmp_path / "noisy.onnx")
    result = check_damaged(nin, model, goldens(nin, 5), tmp_path)
    assert [layer.layer for layer in result.layers if not layer.passed] == ["xnor.0"]
    assert result.layers[0].wrong > 0
    assert any("running free: layer 'xnor.0' is the first with other bits" in f for f in result.failures)
    assert (result.outputs[0].identical, result.outputs[0].flipped) == (0, 0)


def test_a_near_flip_does_not_excuse_a_later_layer(
    nin: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    """Every sample has a near flip in the first layer, and a threshold in the fourth is off by one."""
    model = noisy(nin, 2e-5, tmp_path / "noisy.onnx")
    proto = onnx.load(model)
    move_threshold(1)(Damage(proto), "xnor.6.conv")
    onnx.save(proto, model)
    result = check_damaged(nin, model, goldens(nin, 5), tmp_path)
    assert [layer.layer for layer in result.layers if not layer.passed] == ["xnor.6.conv"]
    assert result.outputs[0].flipped == 5
    assert not any("running free" in failure for failure in result.failures)


def test_too_many_near_flips_fail(
    nin_int8: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    """A `>` where the contract says `>=` changes bits at the threshold only, and each of them alone is excused."""

    def edit(damage: Damage, layer: str) -> None:
        def raise_by_one(levels: np.ndarray) -> None:
            levels += 1

        damage.change(damage.first("BinarizeQuantized").input[1], raise_by_one)

    model = damaged(nin_int8, edit, "", tmp_path / "damaged.onnx")
    result = check_damaged(nin_int8, model, goldens(nin_int8, 5), tmp_path)
    (failed,) = (layer for layer in result.layers if not layer.passed)
    assert (failed.layer, failed.wrong) == ("xnor.0", 0)
    assert result.failures[0].startswith(f"layer 'xnor.0': {failed.differing} of the {failed.near} bits near the ")
    assert "flipped; rounding flips at most 0.1% of them" in result.failures[0]


def test_near_bits() -> None:
    values = np.array([[1.0, 2], [1 + 1e-5, -2], [1 - 1e-5, 2], [-1, 2 + 1e-5], [3, 7]], np.float32)
    threshold = np.array([1, np.inf], np.float32)
    near = unpack_bits(make._near(OPERATORS["Binarize"], values, threshold, 1e-4), 2)
    assert near.tolist() == [[True, False], [True, False], [True, False], [False, False], [False, False]]
    assert not make._near(OPERATORS["Binarize"], values, threshold, 1e-6)[1:].any()
    last = make._near(OPERATORS["BinarizeChannelsLast"], values[:, None], threshold, 1e-4)
    assert last.shape == (5, 1, 1)
    assert unpack_bits(last, 2)[:, 0].tolist() == near.tolist()
    levels = np.array([[3, 0, 255], [4, 1, 0], [5, 7, 9], [2, 0, 255]], np.uint8)
    quantized = make._near(OPERATORS["BinarizeQuantized"], levels[:, None], np.array([4, 0, 256], np.int32), 1e-4)
    assert unpack_bits(quantized, 3)[:, 0, 0].tolist() == [True, True, False, False]
    assert not unpack_bits(quantized, 3)[:, 0, 1:].any()  # 0 is always reached, 256 never


def test_float_tolerance(lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path) -> None:
    golden = read_golden(goldens(lenet5, 32))
    values = golden.outputs[0].values.copy()
    values[7, 3] += np.float32(np.abs(values[:, 3]).max() * 5e-4)
    output = dataclasses.replace(golden.outputs[0], values=values)
    path = rewrite(tmp_path / "golden.npz", golden, outputs=(output,))
    result = check_golden(lenet5.model, path, isas=BEST, body_samples=0)
    assert [failure.split(":")[0] for failure in result.failures] == [
        f"kernels, {BEST[0]}, fed with golden bits",
        f"kernels, {BEST[0]}, running free",
    ]
    assert (
        "outputs differ by up to 0.0005 of the largest in their channel (allowed 0.0001); worst at sample 7"
        in (result.failures[0])
    )
    rewrite(path, golden, outputs=(dataclasses.replace(output, relative=1e-3),))
    result = check_golden(lenet5.model, path, isas=BEST, body_samples=0)
    assert result.passed
    assert result.outputs[0].relative_error == pytest.approx(5e-4, rel=0.01)


def test_near_bits_of_an_average_pool(tmp_path: Path) -> None:
    """Those whose window's sum is near its threshold, not the element at the same place."""
    conv, pool = (
        "Conv <pads=[1,1,1,1]> ",
        "AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1> ",
    )
    text = (
        f"s = Sign(x)\nc = {conv} (s, w, b)\nr = Relu(c)\np = {pool} (r)\nq = Sub(p, m)\nt = Sign(q)\ny = {conv} (t, u)"
    )
    graph = parse(
        text, w=weights(8, 4, 3, 3), u=weights(8, 8, 3, 3), b=eighths(8), m=np.full((1, 8, 1, 1), 1.5, np.float32)
    )
    source, path = tmp_path / "float.onnx", tmp_path / "model.onnx"
    onnx.save(ir.to_proto(graph), source)
    convert(source, path)
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "AveragePoolThreshold")
    threshold = np.float32(numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == node.input[1])))
    tensor = make._Plan(model).tensors[node.output[0]]
    assert tensor.channels == 8
    x = np.random.default_rng(0).standard_normal((4, 4, 6, 6)).astype(np.float32)
    (floats,) = load_session(with_outputs(model, [node.input[0]])).run(None, {"x": x})
    padded = np.pad(np.maximum(floats, 0), ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = sum(padded[:, :, i : i + 5 : 2, j : j + 5 : 2] for i in range(3) for j in range(3))
    shifted = sums - threshold.reshape(-1, 1, 1)
    unit = np.sqrt((shifted**2).mean(axis=(0, 2, 3), keepdims=True))
    wanted = np.abs(shifted) <= 0.2 * unit
    golden = make.make_golden(path, x, tolerances=Tolerances(flip_margin=0.2))
    (found,) = [made for made in golden.tensors if made.tensor == node.output[0]]
    assert found.near is not None
    near = np.moveaxis(unpack_bits(found.near, 8), -1, 1)
    assert 0 < near.sum() < near.size
    assert np.array_equal(near, wanted)
    assert not np.array_equal(near, np.roll(wanted, 1, axis=1))
