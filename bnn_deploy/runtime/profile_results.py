"""The results of `profile`: times, memory, operators, speed-ups, and the machine that they were measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from bnn_deploy.json_form import JsonDocument
from bnn_deploy.notebook import NotebookResult
from bnn_deploy.quantities import plural
from bnn_deploy.runtime.bound import Bound
from bnn_deploy.runtime.machine import Board

BINARY_LAYER, FLOAT_LAYER, INT8_LAYER = "binary layer", "float layer", "int8 layer"
BIT_OPERATOR, OTHER = "bit operator", "other operator"
"""The kinds of nodes: convolutions and linear layers by what they multiply; other operators that make or pool bits; the
rest, such as a ReLU, BatchNorm or sum that is a node of its own."""

NOISY_SPREAD = 1.5
"""The ratio of p90 to p10 of a model's times above which its runs count as disturbed."""

NOISY_WAIT = 0.1
"""The share of the timed runs' wall-clock time without the CPU above which they count as disturbed."""

NOISY_INTERVAL = 0.1
"""Half the width of a speed-up's interval, divided by the speed-up, above which it counts as uncertain."""

QUIET_ADVICE = "close other programs, or give more runs, and measure again"

COOL_ADVICE = "give the board a better power supply or cooling, or raise the limit of its clock, and measure again"


@dataclass(frozen=True)
class Speedup:
    """The time of a compared model divided by that of the profiled model: 2.0 means that the profiled one is faster.

    All numbers are of the ratios of neighbouring runs, one of each model, so that a slow change of the machine's speed
    is in none of them.

    Attributes:
        median: their median.
        low: lower end of the interval that holds the true median with a confidence of at least 95 %, see
            `statistics.median_interval`; None below 6 runs.
        high: its upper end.
        p10: their 10th percentile.
        p90: their 90th percentile.
    """

    median: float
    low: float | None
    high: float | None
    p10: float
    p90: float

    @property
    def uncertainty(self) -> float:
        """Half the width of the interval, divided by the median; 0 without an interval."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of `InferenceSession.run`, the call from Python included, of one model in one setting.

    This is the steady state: behind an untimed run of the same model, with its weights and memory where they stay.

    Attributes:
        batch: samples per run.
        threads: intra-op threads.
        median_ms: median over the timed runs, ms per run (one run is one batch).
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        samples_per_second: batch size divided by the median.
        speedup: of the profiled model over this one in this setting; None for the profiled model itself.
    """

    batch: int
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    samples_per_second: float
    speedup: Speedup | None = None

    @property
    def noisy(self) -> bool:
        """Whether the times lie too far apart for a quiet machine."""
        return self.p90_ms > NOISY_SPREAD * self.p10_ms


@dataclass(frozen=True)
class ColdStart:
    """The start of a fresh process, measured once; Python and onnxruntime are imported, the file is in the page cache.

    Attributes:
        load_ms: from the path to a session: read, optimise, prepare the weights for the kernels. ms.
        first_run_ms: the first run, which allocates memory and touches everything for the first time. ms.
    """

    load_ms: float
    first_run_ms: float


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of a fresh process that loads one model and runs it.

    Attributes:
        baseline_bytes: when onnxruntime is imported and the input is read, right before the model is loaded.
        peak_bytes: after the model has run; the file's bytes, weights, activations and arena are all in it.
    """

    JSON_PROPERTIES: ClassVar = ("model_bytes",)

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
        kind: BINARY_LAYER, FLOAT_LAYER, INT8_LAYER, BIT_OPERATOR or OTHER.
        median_ms: median time of the kernel, ms per run, from onnxruntime's profiler (resolution 0.001 ms).
        share: median_ms divided by the sum over all nodes.
        output_shapes: one stored shape per output, of the profiled run: for bits uint32 [N, spatial..., ceil(C/32)].
        output_dtypes: numpy's name of the type of each output.
        output_bits: for each output the number of channels C if it holds bits; None for any other.
        macs: multiply-accumulates of a run, of the whole batch: products of bits in a BINARY_LAYER, of numbers in other
            layers; 0 for what is no layer, None where they are not known. onnxruntime pads the channels of some of its
            own convolutions to whole vectors, which counts.
        bytes: bytes of its inputs, constants and outputs: what it reads and writes at least.
        channels: of a BINARY_LAYER, the input channels that share the words of a weight: C / group; None for others.
        unused_bits: of a BINARY_LAYER, the share of bits of its weights' words that stand for no channel: 20 channels
            in one word of 32 bits leave 0.375 unused; None for others.
        gmacs_per_second: 10^9 macs per second; None without macs, and for nodes below RESOLVED_MS, whose time the
            profiler does not resolve.
        gbytes_per_second: 10^9 bytes per second; None as above. Above the memory's rate, they come from caches.
        bound_share: gmacs_per_second divided by the machine's measured bound for the kind of layer; None without one.
    """

    JSON_PROPERTIES: ClassVar = ("speedup_if_free",)

    name: str
    op_type: str
    kind: str
    median_ms: float
    share: float
    output_shapes: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[str, ...]
    output_bits: tuple[int | None, ...]
    macs: int | None
    bytes: int
    channels: int | None
    unused_bits: float | None
    gmacs_per_second: float | None
    gbytes_per_second: float | None
    bound_share: float | None

    @property
    def speedup_if_free(self) -> float | None:
        """How many times as fast all nodes would be if this took no time; None if it is all."""
        return speedup_if_free(self.share)


@dataclass(frozen=True)
class TimeShare:
    """Nodes of one operator or kind together.

    Attributes:
        name: the operator or kind.
        nodes: their number.
        median_ms: the sum of their median_ms.
        share: the sum of their shares.
    """

    JSON_PROPERTIES: ClassVar = ("speedup_if_free",)

    name: str
    nodes: int
    median_ms: float
    share: float

    @property
    def speedup_if_free(self) -> float | None:
        """How many times as fast all nodes would be if these took no time; None if these are all."""
        return speedup_if_free(self.share)


def speedup_if_free(share: float) -> float | None:
    """The speed-up if what takes this share of the time took none (Amdahl 1967); None for everything."""
    return 1 / (1 - share) if share < 1 - 1e-9 else None


def grouped(nodes: Iterable[NodeTime], key: Callable[[NodeTime], str]) -> tuple[TimeShare, ...]:
    """The nodes summed by a key, most expensive first."""
    groups: dict[str, list[NodeTime]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node)
    sums = [TimeShare(name, len(g), sum(n.median_ms for n in g), sum(n.share for n in g)) for name, g in groups.items()]
    return tuple(sorted(sums, key=lambda group: -group.median_ms))


@dataclass(frozen=True)
class Dominant:
    """The names of the slowest nodes, as few as take half of the time, their share, and the speed-up without them."""

    nodes: tuple[str, ...]
    share: float
    speedup_if_free: float | None


@dataclass(frozen=True)
class Advice:
    """Where a model's time goes.

    Attributes:
        kinds: the nodes summed per kind, most expensive first.
        dominant: the slowest nodes.
        half_filled: the names of the binary layers with unused bits in the words of their weights, slowest first.
    """

    kinds: tuple[TimeShare, ...]
    dominant: Dominant
    half_filled: tuple[str, ...]


@dataclass(frozen=True)
class ModelProfile:
    """The measurements of one model.

    Attributes:
        path: the file, as it was given.
        file_bytes: size of the .onnx file and of the external data files that it names.
        timings: time of whole runs, without the profiler, one per setting: the batch sizes of each number of threads.
        cold_start: load and first run in the first setting, in a process of its own.
        memory: peak memory in the first setting, of the same process.
        nodes: time per node in the first setting in execution order, from a session of its own: profiling slows a
            session down.
        sha256: of these files, see `files.model_sha256`.
    """

    JSON_PROPERTIES: ClassVar = ("timing", "ops", "advice")

    path: str
    file_bytes: int
    timings: tuple[Timing, ...]
    cold_start: ColdStart
    memory: Memory
    nodes: tuple[NodeTime, ...]
    sha256: str = ""

    @property
    def timing(self) -> Timing:
        """The time in the first setting."""
        return self.timings[0]

    @property
    def ops(self) -> tuple[TimeShare, ...]:
        """The nodes summed per operator type, most expensive first."""
        return grouped(self.nodes, lambda node: node.op_type)

    @property
    def kinds(self) -> tuple[TimeShare, ...]:
        """The nodes summed per kind, most expensive first."""
        return grouped(self.nodes, lambda node: node.kind)

    @property
    def dominant(self) -> tuple[NodeTime, ...]:
        """The slowest nodes, as few as take half of the time together; slowest first."""
        found: list[NodeTime] = []
        for node in sorted(self.nodes, key=lambda node: -node.median_ms):
            if sum(other.share for other in found) >= 0.5:
                break
            found.append(node)
        return tuple(found)

    @property
    def half_filled(self) -> tuple[NodeTime, ...]:
        """The binary layers with unused bits in the words of their weights, slowest first."""
        return tuple(sorted((node for node in self.nodes if node.unused_bits), key=lambda node: -node.median_ms))

    @property
    def advice(self) -> Advice:
        """What takes the time, by the names of the nodes."""
        names, share = tuple(node.name for node in self.dominant), sum(node.share for node in self.dominant)
        dominant = Dominant(names, share, speedup_if_free(share))
        return Advice(self.kinds, dominant, tuple(node.name for node in self.half_filled))


@dataclass(frozen=True)
class Machine:
    """The measuring machine: CPU model, the CPUs that this process may use, and the onnxruntime version."""

    cpu: str
    cpus: int
    onnxruntime: str


@dataclass(frozen=True, repr=False)
class ProfileReport(NotebookResult, JsonDocument):
    """The result of `profile`.

    Attributes:
        model: the model, run with the C++ kernels.
        compare: the compared models, run by onnxruntime alone.
        isa_calls: micro-kernel calls per instruction set, counted by the library while the models ran.
        threads: intra-op threads of each session in the first setting, the only one of nodes, memory, cold starts and
            the bound.
        batch: samples per run in the first setting.
        runs: timed runs of each model in each setting.
        warmup_runs: untimed runs of each model in each setting before the timed ones.
        input_shapes: shape of each input of the model in the first setting.
        data: file of the inputs; None for random inputs (standard normal, seed 0).
        machine: CPU and onnxruntime version.
        board: the board's description, and its clocks, temperature and flags before and after the timed runs.
        bound: the rates that this machine was measured to reach.
        cpu_share: the CPU time of the calling thread divided by the wall-clock time, in the timed runs with one thread:
            below 1 where other programs had its CPU; None without such runs.
    """

    JSON_FORMAT = "profile"
    JSON_PROPERTIES: ClassVar = ("speedup", "isa", "throttled", "noisy", "notes")

    model: ModelProfile
    compare: tuple[ModelProfile, ...]
    isa_calls: dict[str, int]
    threads: int
    batch: int
    runs: int
    warmup_runs: int
    input_shapes: dict[str, tuple[int, ...]]
    data: str | None
    machine: Machine
    board: Board
    bound: Bound
    cpu_share: float | None

    shown_columns: ClassVar[tuple[str, ...]] = ("model", "name", "op_type", "median_ms", "share")

    def headline(self) -> str:
        """The same as str()."""
        return str(self)

    def rows(self) -> list[dict[str, Any]]:
        """One for each node, in the order of their execution."""
        return [{"model": model.path} | asdict(node) for model in self.models for node in model.nodes]

    @property
    def models(self) -> tuple[ModelProfile, ...]:
        """The model and the compared ones."""
        return (self.model, *self.compare)

    @property
    def speedup(self) -> Speedup | None:
        """Of the model over the first compared one in the first setting; None if nothing is compared."""
        return self.compare[0].timing.speedup if self.compare else None

    @property
    def throttled(self) -> tuple[str, ...]:
        """Signs that the timed runs were throttled; empty if there are none."""
        return self.board.throttled

    @property
    def noisy(self) -> tuple[str, ...]:
        """Signs that other programs disturbed the timed runs, one sentence each; empty if there are none."""
        found = []
        if self.cpu_share is not None and self.cpu_share < 1 - NOISY_WAIT:
            found.append(f"the timed runs had a CPU for only {self.cpu_share:.0%} of their time: others used it")
        all_timings = [(item, timing) for item in self.models for timing in item.timings]
        spread = [(timing.p90_ms / timing.p10_ms, item, timing) for item, timing in all_timings if timing.noisy]
        if spread:
            factor, item, timing = max(spread, key=lambda entry: entry[0])
            found.append(
                f"the runs of {_setting(item, timing)} took {timing.p10_ms:.3f} to {timing.p90_ms:.3f} ms "
                f"(p10 to p90), {factor:.1f} times as long{_worst(len(spread))}"
            )
        unsure = [
            (ratio.uncertainty, item, timing)
            for item, timing in all_timings
            if (ratio := timing.speedup) is not None and ratio.uncertainty > NOISY_INTERVAL
        ]
        if unsure:
            half, item, timing = max(unsure, key=lambda entry: entry[0])
            found.append(f"the speed-up over {_setting(item, timing)} is uncertain by {half:.0%}{_worst(len(unsure))}")
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """Further remarks on the machine's speed."""
        return self.board.notes

    @property
    def isa(self) -> str | None:
        """The instruction set that ran; None if no binary kernel did."""
        return "+".join(self.isa_calls) or None

    def __str__(self) -> str:
        timing = self.model.timing
        text = (
            f"{self.model.path}: {timing.median_ms:.3f} ms ({timing.p10_ms:.3f} to {timing.p90_ms:.3f}) for a batch of"
        )
        text += f" {self.batch} on {plural(self.threads, 'thread')}, ISA {self.isa or 'none'}"
        for item in self.compare:
            ratio = item.timing.speedup
            assert ratio is not None
            text += f"; {item.path}: {item.timing.median_ms:.3f} ms, ratio {ratio.median:.2f}"
        for word, reasons in (("THROTTLED", self.throttled), ("NOISY", self.noisy)):
            if reasons:
                text += f"; {word}: {'; '.join(reasons)}"
        return text


def _setting(item: ModelProfile, timing: Timing) -> str:
    """Model, batch and threads in a sentence."""
    return f"{Path(item.path).name} with batch {timing.batch} and {plural(timing.threads, 'thread')}"


def _worst(count: int) -> str:
    return f" (the worst of {count})" if count > 1 else ""
