"""What K of XNOR-Net costs: a binary layer with and without it, against onnxruntime's float32 of both, one thread.

The layers are 3x3, floats in and floats out. Without K: Binarize and BinaryConv. With K: BinarizeAbsMean, the box
filter (as an AveragePool, and as the Conv that the paper writes) and BinaryConvScaled; and, to see what fusing them is
worth, the same from separate operators. In float32: Sign and Conv, without K and with K from standard operators. All
are timed in turn, round by round, so that a change of the machine's clock affects them all alike; the table has
medians, and the cost of K is the median of the rounds' ratios.

    python tests/benchmarks/k_speed.py --isa avx512 --json k.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper
from turns import Runner, take_turns

from bnn_deploy.runtime.machine import cpu_name

LAYERS = [(64, 56), (128, 28), (256, 14)]
"""(channels in and out, height and width)."""

POOL, CONV, UNFUSED = "with K, AveragePool", "with K, Conv", "with K, not fused"
PLAIN, FLOAT, FLOAT_K = "without K", "float32", "float32 with K"
KINDS = (PLAIN, POOL, CONV, UNFUSED, FLOAT, FLOAT_K)


def make_nodes(channels: int, kind: str) -> list[NodeProto]:
    """The nodes from X to Y."""
    ours = {"domain": "bnn_deploy"}
    window = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1}
    binary = ours | window | {"channels": channels}
    inputs = ["bits", "W", "scale", "bias", "pad"]
    binarize = helper.make_node("Binarize", ["X", "threshold"], ["bits"], **ours)
    pool = helper.make_node("AveragePool", ["A"], ["K"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    box = helper.make_node("Conv", ["A", "box"], ["K"], pads=[1] * 4)
    mean = [
        helper.make_node("Abs", ["X"], ["magnitudes"]),
        helper.make_node("ReduceMean", ["magnitudes", "axes"], ["A"]),
    ]
    signs = helper.make_node("Sign", ["X"], ["signs"])
    product = helper.make_node("Mul", ["convolved", "K"], ["Y"])
    if kind == PLAIN:
        return [binarize, helper.make_node("BinaryConv", inputs, ["Y"], **binary)]
    if kind == UNFUSED:
        return [binarize, *mean, box, helper.make_node("BinaryConv", inputs, ["convolved"], **binary), product]
    if kind == FLOAT:
        return [signs, helper.make_node("Conv", ["signs", "weights", "bias"], ["Y"], pads=[1] * 4)]
    if kind == FLOAT_K:
        convolution = helper.make_node("Conv", ["signs", "weights", "bias"], ["convolved"], pads=[1] * 4)
        return [signs, *mean, box, convolution, product]
    return [
        helper.make_node("BinarizeAbsMean", ["X", "threshold", "a", "b"], ["bits", "A"], **ours),
        pool if kind == POOL else box,
        helper.make_node("BinaryConvScaled", [*inputs, "K"], ["Y"], **binary),
    ]


def make_model(channels: int, size: int, kind: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "threshold": rng.standard_normal(channels).astype(np.float32) * 0.1,
        "W": rng.integers(0, 2**32, (channels, 3, 3, (channels + 31) // 32), dtype=np.uint32),
        "weights": rng.choice(np.float32([-1, 1]), (channels, channels, 3, 3)),
        "scale": rng.uniform(0.01, 0.1, channels).astype(np.float32),
        "bias": np.zeros(channels, np.float32),
        "pad": np.zeros(1, np.float32),
        "a": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        "b": rng.standard_normal(channels).astype(np.float32),
        "box": np.full((1, 1, 3, 3), 1 / 9, np.float32),
        "axes": np.array([1], np.int64),
    }
    nodes = make_nodes(channels, kind)
    used = {name for node in nodes for name in node.input}
    shape = [1, channels, size, size]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
        value_info=[helper.make_tensor_value_info("A", TensorProto.FLOAT, [1, 1, size, size])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bnn_deploy", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def measure(isa: str | None, rounds: int) -> list[dict]:
    """Per layer, the median in ms of each kind, and the relative cost of K."""
    runners = {(layer, kind): Runner(make_model(*layer, kind), isa) for layer in LAYERS for kind in KINDS}
    times = take_turns(runners, rounds)
    rows = []
    for layer in LAYERS:
        medians = {kind: float(np.median(times[layer, kind])) for kind in KINDS}
        plain = times[layer, PLAIN]
        cost = {kind: float(np.median(times[layer, kind] / plain)) - 1 for kind in (POOL, CONV, UNFUSED)}
        rows.append({"layer": f"3x3 {layer[0]} @ {layer[1]}x{layer[1]}", "median_ms": medians, "cost_of_k": cost})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--isa", help="instruction set of the kernels; default: the best")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    rows = measure(arguments.isa, arguments.rounds)
    print(f"{cpu_name()}, onnxruntime {ort.__version__}, ISA {arguments.isa or 'best'}, 1 thread")
    print("CPU ms per call; in brackets what K adds")
    for row in rows:
        print(row["layer"])
        for kind, median in row["median_ms"].items():
            cost = f"  ({row['cost_of_k'][kind]:+.0%})" if kind in row["cost_of_k"] else ""
            print(f"  {kind:20} {median:8.4f}{cost}")
    if arguments.json:
        record = {"cpu": cpu_name(), "onnxruntime": ort.__version__, "isa": arguments.isa, "layers": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
