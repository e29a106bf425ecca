"""Networks of thousands of nodes: the work grows with their number, and not with its square."""

from __future__ import annotations

import cProfile
import gc
import pstats
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.cli.inspect import print_report
from bnn_deploy.conversion import convert
from bnn_deploy.inspection import inspect_model
from bnn_deploy.passes.recognise.few_levels import quantizer

CHANNELS = 8


def save_chain(path: Path, blocks: int) -> None:
    """BatchNorm -> Sign -> Conv -> Tanh -> residual Add, again and again."""
    rng = np.random.default_rng(blocks)
    nodes, constants = [], {}
    x = "x"
    for i in range(blocks):
        norm = [f"{name}{i}" for name in ("gamma", "beta", "mean", "var")]
        constants |= {name: (rng.random(CHANNELS) + 0.5).astype(np.float32) for name in norm}
        constants[f"w{i}"] = np.where(rng.random((CHANNELS, CHANNELS, 1, 1)) < 0.5, -0.5, 0.5).astype(np.float32)
        nodes += [
            helper.make_node("BatchNormalization", [x, *norm], [f"n{i}"]),
            helper.make_node("Sign", [f"n{i}"], [f"s{i}"]),
            helper.make_node("Conv", [f"s{i}", f"w{i}"], [f"c{i}"]),
            helper.make_node("Tanh", [f"c{i}"], [f"t{i}"]),
            helper.make_node("Add", [f"t{i}", x], [f"x{i}"]),
        ]
        x = f"x{i}"
    shape = ["N", CHANNELS, 4, 4]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def calls(function: Callable[..., object], *given: object) -> int:
    """How many functions are called, of Python and of C: the same on every machine, unlike time."""
    profile = cProfile.Profile()
    gc.disable()  # what it calls is up to the tests before
    try:
        profile.runcall(function, *given)
    finally:
        gc.enable()
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


def bend(counts: list[int]) -> float:
    """By what factor the second of two equal steps takes more than the first: 1 if the work is linear."""
    small, middle, large = counts
    return (large - middle) / (middle - small)


def test_a_scan_per_node_shows() -> None:
    def scan(nodes: int) -> None:
        for _ in range(nodes):
            for _ in range(nodes):
                len("")

    assert bend([calls(scan, nodes) for nodes in (20, 40, 60)]) > 1.5


def inspect(path: Path) -> None:
    print_report(inspect_model(path))


@pytest.mark.parametrize("job", ["convert", "inspect", "inspect without stated shapes"])
def test_work_is_linear_in_the_number_of_nodes(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "chain.onnx", tmp_path / "out.onnx"
    counts = []
    for blocks in (20, 20, 40, 60):  # the first time, caches are filled
        save_chain(source, blocks)
        if job == "convert":
            counts.append(calls(convert, source, output))
            continue
        convert(source, output)
        if job != "inspect":
            model = onnx.load(output)
            del model.graph.value_info[:]
            onnx.save(model, output)
        counts.append(calls(inspect, output))
        assert "BinaryConv" in capsys.readouterr().out
    assert bend(counts[1:]) == pytest.approx(1, abs=0.05), counts


def test_what_a_layer_quantises_is_found_near_it(tmp_path: Path) -> None:
    """The search from one sign looks at its neighbours alone, whatever the length of the network."""
    counts = []
    for blocks in (5, 5, 50):  # the first time, caches are filled
        save_chain(tmp_path / "chain.onnx", blocks)
        model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "chain.onnx"))
        signs = [node for node in onnx_ir.from_proto(model).graph if node.op_type == "Sign"]
        counts.append(calls(quantizer, signs[-1].outputs[0], True))
    assert counts[1] == counts[2]
