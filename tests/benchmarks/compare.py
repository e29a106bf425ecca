"""Speed of layers and networks against peers: onnxruntime (float and int8), OpenVINO and Larq Compute Engine.

    python tests/benchmarks/compare.py --peers PEERS/bin/python --json benchmarks.json --write docs/benchmarks.md
    python tests/benchmarks/compare.py --layers 64@56 --networks nin --batch 1 8 64 --threads 2

Every engine's values are checked against the float model in onnxruntime before it is timed. Engines run in worker
processes (peers/worker.py), because their numpy versions exclude each other, and take turns, round by round, so that a
change of the machine's clock meets them all alike. OpenVINO and Larq are looked for in the Python that --peers names,
and left out where they are not installed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

BENCHMARKS = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent)]  # for peers and networks

LAYERS = ["64@56", "128@28", "256@14", "512@7"]
TITLES = {
    "lenet5": "LeNet-5",
    "nin": "NIN",
    "alexnet": "AlexNet (227)",
    "birealnet18": "Bi-Real ResNet-18",
}

OURS, OURS_INT8 = "bnn-deploy", "bnn-deploy, int8 edges"
FLOAT, INT8 = "onnxruntime fp32", "onnxruntime int8"
OPENVINO, LARQ = "OpenVINO binary", "Larq"
ENGINES = [OURS, OURS_INT8, FLOAT, INT8, OPENVINO, LARQ]

CHECKED_SAMPLES = 16
"""Minimum number of different inputs on which each engine's values are checked."""

CALIBRATION_SAMPLES = 32
"""Number of inputs for the calibration of the int8 models; they are not measured."""

WARM_MS, TIMED_MS = 3.0, 10.0
"""Milliseconds of untimed and of timed runs in an engine's turn; at least one run of each."""

BATCH_ROUNDS = 10
"""Maximum number of turns per engine for batches above 1, whose runs are long."""

LAYER_TOLERANCE = 1e-5
NETWORK_TOLERANCE = 1e-4
INT8_TOLERANCE = 0.25
"""Largest relative error of a correct sample: |y - reference| / |reference - its mean|.

For binary models it leaves room for float rounding only. int8 models are compared with their own float model, and
differ by their quantisation.
"""

NETWORK_SHARE = 0.25
"""A binary network is correct if this share of its samples is within the tolerance; other models need all samples.

Another order of float sums flips a sign here and there, and one flipped sign can move a deep network's output by 20 %.
A correct engine still has samples without a flip; a wrong one has none.
"""


@dataclass(frozen=True)
class Candidate:
    """One engine's model of a workload.

    Attributes:
        label: one of ENGINES.
        engine: the module in peers/ that runs the model.
        model: the file that the module loads.
        reference: the float ONNX file whose values in onnxruntime are the expected ones.
        tolerance: largest relative error of a correct sample.
        share: minimum share of samples within the tolerance.
        options: further arguments of the module's `load`.
    """

    label: str
    engine: str
    model: Path
    reference: Path
    tolerance: float
    share: float
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """A layer or a network: the engines' models of it, and its input ([samples, C, H, W] float32)."""

    name: str
    kind: str
    candidates: list[Candidate]
    inputs: NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """One engine's figures on one workload; times in ms per run (one run is one batch)."""

    workload: str
    kind: str
    batch: int
    engine: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    errors: list[float]
    tolerance: float
    share: float

    @property
    def within(self) -> int:
        """The number of samples whose relative error is within the tolerance."""
        return sum(error <= self.tolerance for error in self.errors)

    @property
    def right(self) -> bool:
        """Whether the engine computes the reference's values."""
        return self.within >= self.share * len(self.errors)


class WorkerError(Exception):
    """A request to a worker failed."""


class Worker:
    """A process that holds engines; its requests are listed in peers/worker.py."""

    def __init__(self, python: str, paths: Sequence[str]) -> None:
        self.errors = TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            # -P: the working directory may hold a source tree of bnn_deploy, which has no library
            [python, "-P", "-m", "peers.worker"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}, default=str) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise WorkerError(f"the worker process ended with status {self.process.wait()}: {''.join(last)}")
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise WorkerError(result["error"])
        return result

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.errors.close()


class Workers:
    """The worker processes: onnxruntime in this Python, each peer in the Python that `--peers` names."""

    def __init__(self, peers: str) -> None:
        own = [str(BENCHMARKS), *(path for path in sys.path if path)]
        self.by_engine = {"ort": Worker(sys.executable, own)}
        self.versions: dict[str, str] = self.by_engine["ort"].ask("versions", engine="ort")["versions"]
        self.left_out: dict[str, str] = {}
        for engine, label in (("openvino", OPENVINO), ("larq", LARQ)):
            worker = Worker(peers, [str(BENCHMARKS)] if peers != sys.executable else own)
            try:
                self.versions |= worker.ask("versions", engine=engine)["versions"]
                self.by_engine[engine] = worker
            except WorkerError as error:
                self.left_out[label] = str(error)
                worker.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self.by_engine.values():
            worker.close()


def layer_workload(name: str, folder: Path) -> Workload:
    """A 3x3 layer "channels@size" with padding 1: sign and convolution with +-alpha filters, float in, float out."""
    import onnx
    import onnx_ir as ir
    from int8 import quantize
    from onnx import TensorProto, helper, numpy_helper

    from bnn_deploy.passes.pipeline import to_binary

    channels, size = map(int, name.split("@"))
    rng = np.random.default_rng(0)
    alpha = rng.uniform(0.01, 0.1, (channels, 1, 1, 1))
    weight = (rng.choice([-1.0, 1.0], (channels, channels, 3, 3)) * alpha).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    shape = ["batch", channels, size, size]

    def write(file: str, nodes: list[Any]) -> Path:
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, folder / file)
        return folder / file

    conv = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1}
    flat = write("conv.onnx", [helper.make_node("Conv", ["input", "weight", "bias"], ["y"], "conv", **conv)])
    signs = write(
        "sign_conv.onnx",
        [
            helper.make_node("Sign", ["input"], ["sign"], "sign"),
            helper.make_node("Conv", ["sign", "weight", "bias"], ["y"], "conv", **conv),
        ],
    )
    binary, *_ = to_binary(ir.load(signs))
    ir.save(binary, folder / "binary.onnx")

    inputs = rng.standard_normal((max(CHECKED_SAMPLES, 64), *shape[1:])).astype(np.float32)
    calibration = rng.standard_normal((CALIBRATION_SAMPLES, *shape[1:])).astype(np.float32)
    int8 = quantize(flat, ({"input": sample[None]} for sample in calibration), folder / "int8.onnx")
    candidates = [
        Candidate(OURS, "ort", folder / "binary.onnx", signs, LAYER_TOLERANCE, 1.0, {"kernels": True}),
        Candidate(FLOAT, "ort", flat, flat, LAYER_TOLERANCE, 1.0),
        Candidate(INT8, "ort", int8, flat, INT8_TOLERANCE, 1.0),
        *peer_candidates(signs, (channels, size, size), LAYER_TOLERANCE, 1.0, folder),
    ]
    return Workload(f"3x3, {name}x{size}", "layer", candidates, inputs)


def network_workload(name: str, folder: Path) -> Workload:
    """LeNet-5 and NIN are trained; others have seeded weights and BatchNorm calibrated on images."""
    import onnx
    from int8 import quantize

    from bnn_deploy.architectures import ARCHITECTURES
    from bnn_deploy.conversion import convert
    from support import networks

    module = networks.network(name, CALIBRATION_SAMPLES)
    shape = ARCHITECTURES[name].input_shape
    binary, flat = folder / "binary.onnx", folder / "float.onnx"
    convert(module, binary, float_output=flat)

    relu = onnx.load(flat)
    for node in relu.graph.node:
        if node.op_type == "Sign":
            node.op_type = "Relu"
    onnx.save(relu, folder / "relu.onnx")
    calibration = networks.inputs(name, CALIBRATION_SAMPLES).numpy()
    int8_edges = folder / "int8_edges.onnx"
    convert(module, int8_edges, calibration=calibration)
    samples = ({"input": sample[None]} for sample in calibration)
    int8 = quantize(folder / "relu.onnx", samples, folder / "int8.onnx")

    candidates = [
        Candidate(OURS, "ort", binary, flat, NETWORK_TOLERANCE, NETWORK_SHARE, {"kernels": True}),
        # Compared with the function bodies in its own file: this script does not measure the accuracy lost by 8 bits.
        Candidate(OURS_INT8, "ort", int8_edges, int8_edges, NETWORK_TOLERANCE, NETWORK_SHARE, {"kernels": True}),
        Candidate(FLOAT, "ort", flat, flat, NETWORK_TOLERANCE, NETWORK_SHARE),
        Candidate(INT8, "ort", int8, folder / "relu.onnx", INT8_TOLERANCE, 1.0),
        *peer_candidates(flat, shape, NETWORK_TOLERANCE, NETWORK_SHARE, folder),
    ]
    inputs = networks.inputs(name, max(CHECKED_SAMPLES, 64), first=CALIBRATION_SAMPLES).numpy()
    return Workload(TITLES.get(name, name), "network", candidates, inputs)


def peer_candidates(
    flat: Path, shape: tuple[int, ...], tolerance: float, share: float, folder: Path
) -> list[Candidate]:
    """The candidates for OpenVINO and Larq, with the plans that they build their graphs from."""
    import onnx
    from peers.plan import read_onnx, use_tensorflow_padding

    model = onnx.load(flat)
    plan = read_onnx(model, shape).save(folder / "openvino.json")
    larq_reference = flat
    if use_tensorflow_padding(model, shape):
        larq_reference = folder / "tensorflow_padding.onnx"
        onnx.save(model, larq_reference)
    larq_plan = read_onnx(model, shape).save(folder / "larq.json")
    return [
        Candidate(OPENVINO, "openvino", plan, flat, tolerance, share),
        Candidate(LARQ, "larq", larq_plan, larq_reference, tolerance, share),
    ]


def relative_errors(y: NDArray[np.float32], reference: NDArray[np.float32]) -> list[float]:
    """|y - reference| / |reference - its mean| (Euclidean norms) per sample; infinite where a value is not finite."""
    y, reference = y.reshape(len(y), -1), reference.reshape(len(reference), -1)
    if y.shape != reference.shape:
        return [float("inf")] * len(reference)
    spread = np.linalg.norm(reference - reference.mean(axis=1, keepdims=True), axis=1)
    errors = np.linalg.norm(y - reference, axis=1) / spread
    return [float(error) if np.isfinite(error) else float("inf") for error in errors]


class Outputs:
    """Computes the workload's samples on the engines, batch by batch."""

    def __init__(self, workload: Workload, batch: int, threads: int, workers: Workers, folder: Path) -> None:
        self.batch, self.threads, self.workers, self.folder = batch, threads, workers, folder
        self.inputs = []
        for i in range(-(-CHECKED_SAMPLES // batch)):
            self.inputs.append(folder / f"x{i}.npy")
            np.save(self.inputs[-1], workload.inputs[i * batch : (i + 1) * batch])
        self.references: dict[Path, NDArray[np.float32]] = {}

    def load(self, candidate: Candidate) -> None:
        """Load the engine under its label."""
        self.workers.by_engine[candidate.engine].ask(
            "load",
            engine=candidate.engine,
            name=candidate.label,
            model=candidate.model,
            batch=self.batch,
            threads=self.threads,
            **candidate.options,
        )

    def of(self, candidate: Candidate) -> NDArray[np.float32]:
        """A loaded engine's values on all samples, [samples, ...]."""
        y = self.folder / "y.npy"
        values = []
        for x in self.inputs:
            self.workers.by_engine[candidate.engine].ask("output", name=candidate.label, input=x, output=y)
            values.append(np.load(y))
        return np.concatenate(values)

    def reference(self, model: Path) -> NDArray[np.float32]:
        """The values of a float model in onnxruntime."""
        if model not in self.references:
            candidate = Candidate("reference", "ort", model, model, 0.0, 1.0)
            self.load(candidate)
            self.references[model] = self.of(candidate)
            self.workers.by_engine["ort"].ask("unload", name=candidate.label)
        return self.references[model]


def measure(
    workload: Workload, batch: int, threads: int, rounds: int, workers: Workers, folder: Path
) -> tuple[list[Result], dict[str, str]]:
    """Check every engine's values, then time them in turns.

    Returns:
        The results, and for each engine without results the reason.
    """
    outputs = Outputs(workload, batch, threads, workers, folder)
    errors: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for candidate in workload.candidates:
        if candidate.engine not in workers.by_engine:
            continue
        try:
            outputs.load(candidate)
            values = outputs.of(candidate)
        except WorkerError as error:
            failed[f"{candidate.label}: {workload.name}, batch {batch}"] = str(error)
            continue
        errors[candidate.label] = relative_errors(values, outputs.reference(candidate.reference))
    running = [candidate for candidate in workload.candidates if candidate.label in errors]
    times: dict[str, list[float]] = {candidate.label: [] for candidate in running}
    for turn in range(rounds):
        first = turn % len(running)
        for candidate in running[first:] + running[:first]:
            if threads > 1:
                time.sleep(0.05)  # the last engine's idle threads spin for a while
            worker = workers.by_engine[candidate.engine]
            answer = worker.ask("time", name=candidate.label, warm_ms=WARM_MS, timed_ms=TIMED_MS)
            times[candidate.label] += answer["ms"]
    results = []
    for candidate in running:
        workers.by_engine[candidate.engine].ask("unload", name=candidate.label)
        p10, median, p90 = (float(value) for value in np.percentile(times[candidate.label], [10, 50, 90]))
        results.append(
            Result(
                workload.name,
                workload.kind,
                batch,
                candidate.label,
                median,
                p10,
                p90,
                len(times[candidate.label]),
                errors[candidate.label],
                candidate.tolerance,
                candidate.share,
            )
        )
    return results, failed


def machine() -> dict[str, Any]:
    """CPU, cores, system."""
    from bnn_deploy.runtime.machine import cpu_name

    cpuinfo = Path("/proc/cpuinfo").read_text()
    family = re.search(r"^cpu family\s*: (\d+)$", cpuinfo, re.MULTILINE)
    model = re.search(r"^model\s*: (\d+)$", cpuinfo, re.MULTILINE)
    name = cpu_name() + (f" (family {family[1]}, model {model[1]})" if family and model else "")
    return {"cpu": name, "cpus": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.release()}"}


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the heading, all columns but the first are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def report(record: dict[str, Any]) -> str:
    """The whole record as Markdown."""
    results = [Result(**result) for result in record["results"]]
    parts = [
        f"Measured on {record['date']}: {record['machine']['cpu']}, {record['machine']['cpus']} CPUs, "
        f"{record['machine']['system']}; {record['threads']} thread(s), {record['rounds']} rounds "
        f"({BATCH_ROUNDS} at most for batches above 1). "
        f"Load average before and after: {record['load_before']:.2f}, {record['load_after']:.2f}.",
        "\n".join(f"* {name} {version}" for name, version in record["versions"].items()),
    ]
    parts += [f"Left out, {name}: {reason}" for name, reason in record["left_out"].items()]
    for kind, title in (("layer", "Layers, float in, float out"), ("network", "Networks")):
        chosen = [result for result in results if result.kind == kind]
        if chosen:
            engines = [engine for engine in ENGINES if any(result.engine == engine for result in chosen)]
            parts += [f"### {title}", *_tables(chosen, engines)]
    return "\n\n".join(parts) + "\n"


def _tables(results: list[Result], engines: list[str]) -> Iterator[str]:
    cells: dict[tuple[str, int], dict[str, Result]] = {}
    for result in results:
        cells.setdefault((result.workload, result.batch), {})[result.engine] = result
    rows = [["", "batch", *engines]]
    for (name, batch), row in cells.items():
        texts = [_cell(row[engine]) if engine in row else "-" for engine in engines]
        rows.append([name, str(batch), *texts])
    yield "Median ms per run, and whether the values are right:"
    yield table(rows)

    ours = [engine for engine in (OURS, OURS_INT8) if engine in engines]
    others = [engine for engine in engines if engine not in ours]
    for mine in ours:
        rows = [["", "batch", *others]]
        for (name, batch), row in cells.items():
            rows.append([name, str(batch), *(_ratio(row.get(mine), row.get(other)) for other in others)])
        yield f"How many times faster {mine} is (ratio of the medians):"
        yield table(rows)

    rows = [["", "batch", "engine", "median ms", "p10", "p90", "runs", "relative error", "allowed", "within"]]
    for r in results:
        times = [f"{ms:.4f}" for ms in (r.median_ms, r.p10_ms, r.p90_ms)]
        rows.append([r.workload, str(r.batch), r.engine, *times, str(r.runs), *_errors(r)])
    yield "All figures:"
    yield table(rows)


def _errors(result: Result) -> list[str]:
    within = f"{result.within} of {len(result.errors)}"
    return [f"{np.median(result.errors):.1e}", f"{result.tolerance:g}", within]


def _ratio(mine: Result | None, other: Result | None) -> str:
    return "-" if mine is None or other is None else f"{other.median_ms / mine.median_ms:.2f}"


def _cell(result: Result) -> str:
    digits = 4 if result.median_ms < 0.1 else 3
    return f"{result.median_ms:.{digits}f} {'right' if result.right else 'WRONG values'}"


PAGE = """\
# Benchmarks

What `python tests/benchmarks/compare.py` printed; the page is written by its option `--write`, no number by hand.
To measure again, with the peers in a virtual environment of their own, since they need an older numpy:

    python -m venv peers
    peers/bin/pip install openvino==2024.6.0 larq-compute-engine==0.16.0 larq==0.14.0 tensorflow-cpu==2.15.1
    python tests/benchmarks/compare.py --peers peers/bin/python {options} --write docs/benchmarks.md

One layer of each binary form (few levels, products of activations, linear layers on tokens, transposed convolutions)
beside fp32 and int8, for each instruction set of the machine, in a few minutes and without peers:

    python tests/benchmarks/layer_speed.py --json layers.json

## How it is measured

* Engines run in worker processes, all timed by the same loop from Python, and take turns: {warm:g} ms untimed, at least
  {timed:g} ms timed, then the next engine. Times are of single runs, and copy no input or output where the engine's
  Python interface allows it (onnxruntime: IO binding; OpenVINO: the request's own tensors; Larq's copies both).
* Before it is timed, each engine's values on {samples} inputs or more are held against the float model in onnxruntime:
  |y - reference| / |reference - its mean|. "right" means that all are within the tolerance, or of a binary network a
  quarter, because rounding can flip a sign, and one flipped sign can move a deep network's output by 20 %. All else is
  "WRONG values".
* Layers are 3x3 convolutions, "channels@height x width", padding 1, stride 1. The networks have random weights from a
  seed, and BatchNorm calibrated on images. AlexNet takes 227x227 without padding in its first layer.

How each engine is set up:

* **bnn-deploy**: the converted model in onnxruntime with the kernels registered, first and last layer in float32.
* **bnn-deploy, int8 edges**: the same with `convert --edges int8`, calibrated on {calibration} inputs. Its reference is
  the same file without the kernels: onnxruntime then runs the function bodies that define the operators.
* **onnxruntime fp32**: the float ONNX model of the same network, signs included; for a layer the convolution alone.
* **onnxruntime int8**: the same architecture with each sign replaced by ReLU (a layer: the convolution alone), through
  `quant_pre_process` and `quantize_static`: QDQ, U8 activations, S8 weights of 7 bits per output channel,
  calibrated on {calibration} inputs. Its reference is that network in float.
* **OpenVINO binary**: the float ONNX model rebuilt with FakeQuantize (2 levels, outputs 0 and 1) before
  opset1::BinaryConvolution (xnor-popcount, pad value 0), BatchNorm before a sign folded into FakeQuantize's thresholds;
  the rest in float. Latency hint, one stream, f32 precision, the same number of threads.
* **Larq**: Larq Compute Engine's interpreter with `use_indirect_bgemm=True` and `use_xnnpack=True`, on the model that
  its converter makes of the same network in Keras with larq's layers. Tensors are NHWC. Padded convolutions with a
  stride have TensorFlow's padding, and a reference with the same padding.

## Results

{report}"""


def page(record: dict[str, Any]) -> str:
    """The text of docs/benchmarks.md."""
    batches = " ".join(str(batch) for batch in record["batch"])
    return PAGE.format(
        options=f"--batch {batches} --threads {record['threads']} --rounds {record['rounds']}",
        warm=WARM_MS,
        timed=TIMED_MS,
        samples=CHECKED_SAMPLES,
        calibration=CALIBRATION_SAMPLES,
        report=report(record),
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the measurements of the arguments; return the record that `report` prints and --json writes."""
    load_before = os.getloadavg()[0]
    rounds = 3 if arguments.quick else arguments.rounds
    results: list[Result] = []
    with closing(Workers(arguments.peers)) as workers:
        left_out = dict(workers.left_out)
        builders = [(name, layer_workload) for name in arguments.layers]
        builders += [(name, network_workload) for name in arguments.networks]
        for name, build in builders:
            with TemporaryDirectory() as temporary:
                folder = Path(temporary)
                print(f"{name}: building", file=sys.stderr)
                workload = build(name, folder)
                for batch in arguments.batch:
                    print(f"{name}: measuring, batch {batch}", file=sys.stderr)
                    turns = rounds if batch == 1 else min(rounds, BATCH_ROUNDS)
                    measured, failed = measure(workload, batch, arguments.threads, turns, workers, folder)
                    results += measured
                    left_out |= failed
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {"Python": platform.python_version(), **workers.versions},
        "batch": arguments.batch,
        "threads": arguments.threads,
        "rounds": rounds,
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "left_out": left_out,
        "results": [asdict(result) for result in results],
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", metavar="CHANNELS@SIZE", help=f"default: {' '.join(LAYERS)}")
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="architectures; default: all")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], choices=range(1, 65), metavar="N", help="up to 64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50, help="turns of each engine (50)")
    parser.add_argument("--quick", action="store_true", help="3 rounds: to see that all of it works")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="a Python with OpenVINO and Larq")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the page docs/benchmarks.md")
    arguments = parser.parse_args(argv)
    if arguments.layers is None and arguments.networks is None:
        arguments.layers, arguments.networks = LAYERS, None
    elif arguments.networks is None:
        arguments.networks = []
    arguments.layers = arguments.layers or []
    for name in arguments.layers:
        if not re.fullmatch(r"\d+@\d+", name):
            parser.error(f"--layers {name}: a layer is CHANNELS@SIZE, as 64@56")
    if arguments.networks != []:
        arguments.networks = arguments.networks or list(TITLES)
        for name in arguments.networks:
            if name not in TITLES:
                parser.error(f"--networks {name}: choose of {', '.join(TITLES)}")
    return arguments


def main() -> None:
    arguments = parse(sys.argv[1:])
    record = run(arguments)
    print(report(record))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.write:
        arguments.write.write_text(page(record))


if __name__ == "__main__":
    main()
