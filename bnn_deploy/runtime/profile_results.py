"""The results of `profile`: times, memory, operators, speed-ups, and the machine that they were measured on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bnn_deploy.runtime.machine import Board


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of `InferenceSession.run`, the call from Python included.

    Attributes:
        median_ms: median over the timed runs, ms per run (one run is one batch).
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        samples_per_second: batch size divided by the median.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    samples_per_second: float


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of a fresh process that loads one model and runs it.

    Attributes:
        baseline_bytes: when onnxruntime is imported and the input is read, right before the model is loaded.
        peak_bytes: after the model has run; the file's bytes, weights, activations and arena are all in it.
    """

    baseline_bytes: int
    peak_bytes: int

    @property
    def model_bytes(self) -> int:
        """Memory that loading and running the model added to the process, in bytes."""
        return self.peak_bytes - self.baseline_bytes


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph that onnxruntime runs, after its optimisations.

    Attributes:
        name: the node's name; onnxruntime's own name for a node that its optimiser made.
        op_type: the operator.
        median_ms: median time of the kernel, ms per run, from onnxruntime's profiler (resolution 0.001 ms).
        share: median_ms divided by the sum over all nodes.
        output_shapes: one shape per output, of the profiled run.
    """

    name: str
    op_type: str
    median_ms: float
    share: float
    output_shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class OpTime:
    """The nodes of one operator type together: their number, their summed median_ms, and their share of all nodes."""

    op_type: str
    nodes: int
    median_ms: float
    share: float


@dataclass(frozen=True)
class ModelProfile:
    """The measurements of one model.

    Attributes:
        path: the file, as it was given.
        file_bytes: size of the .onnx file and of the external data files that it names.
        timing: time of whole runs, without the profiler.
        memory: peak memory, in a process of its own.
        nodes: time per node in execution order, from a session of its own: profiling slows a session down.
    """

    path: str
    file_bytes: int
    timing: Timing
    memory: Memory
    nodes: tuple[NodeTime, ...]

    @property
    def ops(self) -> tuple[OpTime, ...]:
        """The nodes summed per operator type, most expensive first."""
        groups: dict[str, list[NodeTime]] = {}
        for node in self.nodes:
            groups.setdefault(node.op_type, []).append(node)
        sums = [OpTime(op, len(g), sum(n.median_ms for n in g), sum(n.share for n in g)) for op, g in groups.items()]
        return tuple(sorted(sums, key=lambda op: -op.median_ms))

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps."""
        result = asdict(self)
        result["memory"]["model_bytes"] = self.memory.model_bytes
        result["ops"] = [asdict(op) for op in self.ops]
        return result


@dataclass(frozen=True)
class Speedup:
    """The time of the compared model divided by the time of the model: 2.0 is twice as fast.

    Attributes:
        median: ratio of the two medians.
        p10: 10th percentile of the ratios of neighbouring runs (one of each model).
        p90: 90th percentile of these ratios.
    """

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Machine:
    """The measuring machine: CPU model, the CPUs that this process may use, and the onnxruntime version."""

    cpu: str
    cpus: int
    onnxruntime: str


@dataclass(frozen=True)
class ProfileReport:
    """The result of `profile`.

    Attributes:
        model: the model, run with the C++ kernels.
        compare: the compared model, run by onnxruntime alone; None if there is none.
        speedup: of `model` over `compare`; None without one.
        isa_calls: micro-kernel calls per instruction set, counted by the library while the models ran.
        threads: intra-op threads of each session.
        runs: timed runs of each model.
        warmup_runs: untimed runs of each model before the timed ones.
        batch: samples per run.
        input_shapes: shape of each input of the model.
        data: file of the inputs; None for random inputs (standard normal, seed 0).
        machine: CPU and onnxruntime version.
        board: the board's description, and its clocks, temperature and flags before and after the timed runs.
    """

    model: ModelProfile
    compare: ModelProfile | None
    speedup: Speedup | None
    isa_calls: dict[str, int]
    threads: int
    runs: int
    warmup_runs: int
    batch: int
    input_shapes: dict[str, tuple[int, ...]]
    data: str | None
    machine: Machine
    board: Board

    @property
    def throttled(self) -> tuple[str, ...]:
        """Signs that the timed runs were throttled; empty if there are none."""
        return self.board.throttled

    @property
    def isa(self) -> str | None:
        """The instruction set that ran; None if no binary kernel did."""
        return "+".join(self.isa_calls) or None

    def __str__(self) -> str:
        timing = self.model.timing
        text = (
            f"{self.model.path}: {timing.median_ms:.3f} ms ({timing.p10_ms:.3f} to {timing.p90_ms:.3f}) for a batch of"
        )
        text += f" {self.batch} on {self.threads} thread(s), ISA {self.isa or 'none'}"
        if self.compare is not None and self.speedup is not None:
            text += f"; {self.compare.path}: {self.compare.timing.median_ms:.3f} ms, ratio {self.speedup.median:.2f}"
        if self.throttled:
            text += f"; THROTTLED: {'; '.join(self.throttled)}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps."""
        result = asdict(self)
        result["model"] = self.model.to_json()
        result["compare"] = None if self.compare is None else self.compare.to_json()
        result["isa"] = self.isa
        result["throttled"] = list(self.throttled)
        result["notes"] = list(self.board.notes)
        return result
