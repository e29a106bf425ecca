"""Speed of single layers: Binarize + BinaryConv (W1A1), QuantizeLevels + BinaryConvLevels (W1A2) and
QuantizeLevels + BinaryConvBases against onnxruntime's float32 Conv and its 8-bit one, one thread.

The sums of P planes and Q bases ("sum PxQ") have offsets in activations and weights, as of AdaBin (1x1);
1x2 are ternary weights.

All take and give float32 tensors of the same shape. All layers and engines are timed in turn, round
by round, so that a change of the machine's clock affects them all alike; the table has the median and
the 10th and 90th percentile over the rounds. 1 GMAC/s is 10^9 multiply-accumulates of the
convolution per second.

    python tests/benchmarks/layer_speed.py --isa avx512 --json layers.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.runtime.session import library_path


@dataclasses.dataclass(frozen=True)
class Layer:
    channels: int
    size: int
    kernel: int

    @property
    def name(self) -> str:
        return f"{self.kernel}x{self.kernel} {self.channels} @ {self.size}x{self.size}"

    @property
    def macs(self) -> int:
        return self.channels**2 * self.kernel**2 * self.size**2


LAYERS = [Layer(64, 56, 3), Layer(128, 28, 3), Layer(256, 14, 3), Layer(512, 7, 3), Layer(192, 32, 1)]


SUMS = {"sum_1x1": (1, 1), "sum_1x2": (1, 2), "sum_2x2": (2, 2)}
"""Planes and bases of BinaryConvBases."""

ENGINES = {"binary": "W1A1", "two_bits": "W1A2"} | {name: name.replace("_", " ") for name in SUMS}
ENGINES |= {"int8": "int8", "float": "float32"}


def make_model(layer: Layer, engine: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    channels, kernel, pad = layer.channels, layer.kernel, layer.kernel // 2
    if engine in SUMS:
        planes, bases = SUMS[engine]
        words = (channels + 31) // 32
        steps = np.float32([[0.5 * i] for i in range(2**planes - 1)])
        constants = {
            "threshold": steps + rng.standard_normal(channels).astype(np.float32) * np.float32(0.1),
            "W": rng.integers(0, 2**32, (channels, kernel, kernel, bases * words), dtype=np.uint32),
            "scale": rng.uniform(0.01, 0.1, (planes + 1, bases + 1, channels)).astype(np.float32),
            "bias": rng.standard_normal(channels).astype(np.float32),
        }
        nodes = [
            helper.make_node("QuantizeLevels", ["X", "threshold"], ["bits"], domain="bnn_deploy", bits=planes),
            helper.make_node(
                "BinaryConvBases",
                ["bits", "W", "scale", "bias"],
                ["Y"],
                domain="bnn_deploy",
                channels=channels,
                kernel_shape=[kernel] * 2,
                strides=[1, 1],
                pads=[pad] * 4,
                dilations=[1, 1],
                group=1,
                planes=planes,
                bases=bases,
            ),
        ]
    elif engine == "int8":
        constants = {
            "W": rng.integers(-127, 128, (channels, channels, kernel, kernel), dtype=np.int8),
            "step": np.float32(0.05),
            "zero": np.uint8(128),
            "zeros": np.zeros(channels, np.int8),
            "steps": np.full(channels, 0.01, np.float32),
        }
        inputs = ["q", "step", "zero", "W", "steps", "zeros", "step", "zero"]
        nodes = [
            helper.make_node("QuantizeLinear", ["X", "step", "zero"], ["q"]),
            helper.make_node("QLinearConv", inputs, ["r"], pads=[pad] * 4),
            helper.make_node("DequantizeLinear", ["r", "step", "zero"], ["Y"]),
        ]
    elif engine != "float":
        words = (channels + 31) // 32
        threshold = rng.standard_normal(channels).astype(np.float32) * 0.1
        constants = {
            "W": rng.integers(0, 2**32, (channels, kernel, kernel, words), dtype=np.uint32),
            "scale": rng.uniform(0.01, 0.1, channels).astype(np.float32),
            "bias": rng.standard_normal(channels).astype(np.float32),
        }
        window = {
            "channels": channels,
            "kernel_shape": [kernel] * 2,
            "strides": [1, 1],
            "pads": [pad] * 4,
            "dilations": [1, 1],
            "group": 1,
        }
        if engine == "binary":
            constants |= {"threshold": threshold, "pad": np.zeros(1, np.float32)}
            ops, inputs, bits = ("Binarize", "BinaryConv"), ["bits", "W", "scale", "bias", "pad"], {}
        else:
            constants["threshold"] = threshold + np.float32([[0], [0.5], [1]])
            ops, inputs, bits = ("QuantizeLevels", "BinaryConvLevels"), ["bits", "W", "scale", "bias"], {"bits": 2}
        nodes = [
            helper.make_node(ops[0], ["X", "threshold"], ["bits"], domain="bnn_deploy", **bits),
            helper.make_node(ops[1], inputs, ["Y"], domain="bnn_deploy", **window, **bits),
        ]
    else:
        weights = rng.standard_normal((channels, channels, kernel, kernel)).astype(np.float32)
        constants = {"W": weights, "bias": rng.standard_normal(channels).astype(np.float32)}
        nodes = [helper.make_node("Conv", ["X", "W", "bias"], ["Y"], pads=[pad] * 4)]
    shape = [1, channels, layer.size, layer.size]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bnn_deploy", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


class Runner:
    """A session with bound tensors, so that a call's time is that of onnxruntime and the kernels."""

    def __init__(self, layer: Layer, engine: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        if engine != "float":
            options.register_custom_ops_library(str(library_path()))
        model = make_model(layer, engine).SerializeToString()
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        x = np.random.default_rng(1).standard_normal((1, layer.channels, layer.size, layer.size))
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input("X", x.astype(np.float32))
        self.output = ort.OrtValue.ortvalue_from_shape_and_type(x.shape, np.float32)
        self.binding.bind_ortvalue_output("Y", self.output)

    def milliseconds(self, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            self.session.run_with_iobinding(self.binding)
        return (time.perf_counter() - start) / calls * 1e3


def percentiles(times: list[float]) -> dict[str, float]:
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return {"p10_ms": p10, "median_ms": median, "p90_ms": p90}


def measure(rounds: int) -> list[dict]:
    runners = {(layer, engine): Runner(layer, engine) for layer in LAYERS for engine in ENGINES}
    # A sample of about 5 ms: long against the clock's resolution, short against changes of the machine's speed.
    calls = {key: max(1, round(5 / min(runner.milliseconds(3) for _ in range(3)))) for key, runner in runners.items()}
    times: dict = {key: [] for key in runners}
    for _ in range(rounds):
        for key, runner in runners.items():
            times[key].append(runner.milliseconds(calls[key]))
    rows = []
    for layer in LAYERS:
        row = {"layer": layer.name, "macs": layer.macs}
        for engine in ENGINES:
            row[engine] = percentiles(times[layer, engine])
            row[engine]["gmacs_per_s"] = layer.macs / row[engine]["median_ms"] / 1e6
        row["ratios"] = {e: row["float"]["median_ms"] / row[e]["median_ms"] for e in ENGINES if e != "float"}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--isa", help="instruction set of the kernels; default: the best")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.isa:
        os.environ["BNN_DEPLOY_ISA"] = arguments.isa
    rows = measure(arguments.rounds)
    print(f"onnxruntime {ort.__version__}, ISA {arguments.isa or 'best'}, 1 thread, ms per call")
    for engine, name in ENGINES.items():
        print(f"{name:18} {'median':>8} {'p10':>8} {'p90':>8} {'GMAC/s':>7}  float32 / this")
        for row in rows:
            found = row[engine]
            times = f"{found['median_ms']:8.4f} {found['p10_ms']:8.4f} {found['p90_ms']:8.4f}"
            print(f"{row['layer']:18} {times} {found['gmacs_per_s']:7.0f}  {row['ratios'].get(engine, 1.0):5.2f}")
    if arguments.json:
        record = {"onnxruntime": ort.__version__, "isa": arguments.isa, "layers": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
