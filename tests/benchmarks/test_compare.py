"""The machinery of tests/benchmarks/compare.py: no time is asserted here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from comparison.measuring import cold_starts, measure_threads
from comparison.results import FLOAT, INT8, LARQ, OPENVINO, OURS, Result, relative_errors
from comparison.workers import BENCHMARKS, Worker, WorkerError, Workers
from comparison.workloads import LAYER_TOLERANCE, NETWORK_SHARE, NETWORK_TOLERANCE, layer_workload
from onnx import TensorProto, helper, numpy_helper
from peers.ort import load as load_ort
from peers.plan import Plan, Step, fold_affine_into_sign, load_plan, read_onnx, same_pads
from peers.plan import use_tensorflow_padding as move_padding

from bnn_deploy.errors import InputError
from bnn_deploy.runtime.session import library_info, load_session


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record, the page and the printed report of a run on one tiny layer."""
    folder = tmp_path_factory.mktemp("compare")
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--quick", "--layers", "40@4", "--batch", "1", "3"]
    command += ["--json", str(folder / "record.json"), "--write", str(folder / "benchmarks.md")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    (folder / "report.md").write_text(done.stdout)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_quick_run_measures_and_checks_every_engine_of_onnxruntime(quick_run: Path) -> None:
    record = json.loads((quick_run / "record.json").read_text())
    results = {(r["batch"], r["engine"]): Result(**r) for r in record["results"]}
    for batch in (1, 3):
        for engine in (OURS, FLOAT, INT8):
            result = results[batch, engine]
            assert result.right
            assert 0 < result.p10_ms <= result.median_ms <= result.p90_ms
            assert result.runs >= 3
    assert max(results[1, OURS].errors) > 0  # not the reference compared with itself
    peers = {engine for _, engine in results} | set(record["left_out"])
    assert {OPENVINO, LARQ} <= peers


def test_page_holds_exactly_what_was_printed(quick_run: Path) -> None:
    printed, page = (quick_run / "report.md").read_text(), (quick_run / "benchmarks.md").read_text()
    assert page.endswith("## Results\n\n" + printed.rstrip() + "\n")
    assert "| 3x3, 40@4x4 |" in printed and "right" in printed
    assert "benchmarks.svg" not in page and not list(quick_run.glob("*.svg"))  # a picture is of networks
    assert str(quick_run) not in page


def test_every_number_of_threads_and_every_cold_start_has_a_process(tmp_path: Path) -> None:
    workload = layer_workload("40@4", tmp_path)
    model = onnx.load(workload.candidate(OURS).model)
    (words,) = (w for w in model.graph.initializer if w.data_type == TensorProto.UINT32)
    flipped = numpy_helper.to_array(words).copy()
    flipped.flat[0] ^= 1
    words.CopyFrom(numpy_helper.from_array(flipped, words.name))
    onnx.save(model, tmp_path / "flipped.onnx")
    wrong = replace(workload.candidate(OURS), model=tmp_path / "flipped.onnx")
    candidates = [wrong if c.engine == OURS else c for c in workload.candidates]
    with closing(Workers(sys.executable)) as workers:
        isa = library_info().isas[-1]
        results, failed = measure_threads(
            replace(workload, candidates=candidates), 1, [1, 2], isa, 1, workers, tmp_path
        )
        starts = cold_starts(workload, [OURS, FLOAT], isa, 1, workers, tmp_path)
    assert not failed
    assert {(r.engine, r.isa, r.threads, r.right) for r in results} == {
        (engine, name, threads, right)
        for engine, name, right in ((OURS, isa, False), (FLOAT, "", True))
        for threads in (1, 2)
    }
    assert [start.engine for start in starts] == [OURS, FLOAT]
    assert all(start.load_ms > 0 and start.added_mb > 0 and start.before_mb > 10 for start in starts)


def test_missing_peer_is_left_out_with_the_reason() -> None:
    worker = Worker(sys.executable, [str(BENCHMARKS)])
    with pytest.raises(WorkerError, match="no_such_engine"):
        worker.ask("versions", module="no_such_engine")
    with pytest.raises(WorkerError, match="KeyError"):  # and the worker survives
        worker.ask("time", name="nothing", warm_ms=0, timed_ms=0)
    worker.close()


def test_worker_that_dies_says_how() -> None:
    worker = Worker(sys.executable, ["/nowhere"])
    with pytest.raises(WorkerError, match="No module named"):
        worker.ask("versions", module="ort")
    worker.close()


def judged(y: np.ndarray, reference: np.ndarray, tolerance: float, share: float) -> bool:
    errors = relative_errors(y, reference)
    assert len(errors) == len(reference)
    return Result("", "network", 1, OURS, "", 1, 1.0, 1.0, 1.0, 1, errors, tolerance, share).right


def test_values_are_right_up_to_rounding_and_a_flipped_sign() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((8, 10, 4, 4)).astype(np.float32)
    layer, network = (LAYER_TOLERANCE, 1.0), (NETWORK_TOLERANCE, NETWORK_SHARE)
    rounded = reference * np.float32(1 + 1e-6)
    assert judged(rounded, reference, *layer) and judged(rounded, reference, *network)
    flipped = reference.copy()
    flipped[:6] *= 1.2
    assert judged(flipped, reference, *network) and not judged(flipped, reference, *layer)


def test_values_are_wrong_where_one_channel_is() -> None:
    reference = np.random.default_rng(0).standard_normal((8, 10, 4, 4)).astype(np.float32)
    network = (NETWORK_TOLERANCE, NETWORK_SHARE)
    one_channel = reference.copy()
    one_channel[:, 3] += 0.01
    assert not judged(one_channel, reference, *network)
    assert not judged(np.full_like(reference, np.nan), reference, *network)
    assert not judged(reference[:, :5], reference, *network)


def test_operator_without_a_kernel_is_not_measured(tmp_path: Path) -> None:
    nodes = [helper.make_node("Missing", ["x"], ["y"], domain="bnn_deploy")]
    body = helper.make_function(
        "bnn_deploy", "Missing", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in "xy")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bnn_deploy", 1)]
    graph = helper.make_graph(nodes, "graph", [x], [y])
    model = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    ones = np.ones(2, np.float32)
    np.testing.assert_array_equal(load_session(tmp_path / "model.onnx").run(None, {"x": ones})[0], -ones)  # its body
    with pytest.raises(InputError, match="Missing"):
        load_ort(tmp_path / "model.onnx", batch=2, threads=1, kernels=True)


def binary_network(stride: int) -> onnx.ModelProto:
    """BatchNorm (a negative, a zero gamma), Sign, 3x3 convolution with padding 1, Relu, Reshape, Gemm."""
    rng = np.random.default_rng(1)
    size = 4 // stride
    constants = {
        "gamma": np.array([1.0, -0.5, 0.0, 2.0], np.float32),
        "beta": np.array([0.1, 0.2, -0.3, 0.4], np.float32),
        "mean": rng.standard_normal(4).astype(np.float32),
        "variance": rng.uniform(0.5, 2, 4).astype(np.float32),
        "weight": (rng.choice([-1.0, 1.0], (5, 4, 3, 3)) * rng.uniform(0.1, 1, (5, 1, 1, 1))).astype(np.float32),
        "shape": np.array([-1, 5 * size * size]),
        "dense": rng.standard_normal((3, 5 * size * size)).astype(np.float32),
        "bias": rng.standard_normal(3).astype(np.float32),
    }
    nodes = [
        helper.make_node("BatchNormalization", ["input", "gamma", "beta", "mean", "variance"], ["norm"], epsilon=1e-5),
        helper.make_node("Sign", ["norm"], ["sign"]),
        helper.make_node("Conv", ["sign", "weight"], ["conv"], pads=[1] * 4, strides=[stride] * 2, kernel_shape=[3, 3]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Reshape", ["relu", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_plan_reads_a_network_and_survives_its_file(tmp_path: Path) -> None:
    plan = read_onnx(binary_network(stride=1), (4, 4, 4))
    assert [step.op for step in plan.steps] == ["affine", "sign", "binary_conv", "relu", "flatten", "dense"]
    assert [step.shape for step in plan.steps[2:]] == [(5, 4, 4), (5, 4, 4), (80, 1, 1), (3, 1, 1)]
    conv = plan.steps[2]
    weight = numpy_helper.to_array(next(t for t in binary_network(1).graph.initializer if t.name == "weight"))
    np.testing.assert_array_equal(conv.arrays["weight"] * conv.arrays["alpha"].reshape(-1, 1, 1, 1), weight)
    again = load_plan(plan.save(tmp_path / "plan.json"))
    assert [(s.op, s.inputs, s.output, s.shape, s.attributes) for s in again.steps] == [
        (s.op, s.inputs, s.output, s.shape, s.attributes) for s in plan.steps
    ]
    np.testing.assert_array_equal(again.steps[5].arrays["weight"], plan.steps[5].arrays["weight"])


def test_plan_does_not_take_a_convolution_for_binary_without_a_sign_or_two_values() -> None:
    model = binary_network(stride=1)
    model.graph.node[1].op_type = "Relu"
    assert "binary_conv" not in [step.op for step in read_onnx(model, (4, 4, 4)).steps]
    model = binary_network(stride=1)
    weight = next(t for t in model.graph.initializer if t.name == "weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] *= 2
    weight.CopyFrom(numpy_helper.from_array(values, "weight"))
    assert "binary_conv" not in [step.op for step in read_onnx(model, (4, 4, 4)).steps]


def test_plan_names_an_operator_that_it_does_not_know() -> None:
    model = binary_network(stride=1)
    model.graph.node[3].op_type = "Softsign"
    with pytest.raises(ValueError, match="Softsign"):
        read_onnx(model, (4, 4, 4))


def test_affine_folds_into_the_threshold_of_its_sign() -> None:
    plan = read_onnx(binary_network(stride=1), (4, 4, 4))
    affine = plan.steps[0]
    folded = fold_affine_into_sign(plan)
    sign = folded.steps[0]
    assert [step.op for step in folded.steps][:2] == ["sign", "binary_conv"] and sign.inputs == ["input"]
    x = np.random.default_rng(2).standard_normal((1000, 4)).astype(np.float32)
    expected = affine.arrays["scale"] * x + affine.arrays["shift"] >= 0
    threshold, below = sign.arrays["threshold"], sign.arrays["below"]
    np.testing.assert_array_equal(np.where(below, x <= threshold, x >= threshold), expected)
    assert not (np.where(~below, x <= threshold, x >= threshold) == expected).all()


def test_affine_does_not_fold_where_another_step_reads_it() -> None:
    ones = np.ones(4, np.float32)
    affine = Step("affine", ["input"], "norm", (4, 4, 4), {}, {"scale": ones, "shift": ones})
    sign, relu = Step("sign", ["norm"], "sign", (4, 4, 4)), Step("relu", ["norm"], "relu", (4, 4, 4))
    plan = fold_affine_into_sign(Plan((4, 4, 4), [affine, sign, relu]))
    assert [step.op for step in plan.steps] == ["affine", "sign", "relu"]


def test_tensorflow_padding_moves_only_where_there_is_a_stride() -> None:
    assert same_pads((4, 4), [3, 3], [1, 1]) == [1, 1, 1, 1]
    assert same_pads((4, 4), [3, 3], [2, 2]) == [0, 0, 1, 1]
    assert not move_padding(binary_network(stride=1), (4, 4, 4))
    model = binary_network(stride=2)
    assert move_padding(model, (4, 4, 4))
    assert read_onnx(model, (4, 4, 4)).steps[2].attributes["pads"] == [0, 0, 1, 1]
