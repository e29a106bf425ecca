"""Measure models: time, memory, and what each node costs. Needs onnxruntime and numpy only: it runs on a board."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.board import Board, read_board, read_state
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.session import library_info, load_session

WARMUP_RUNS = 5
"""Untimed runs of each model before the timed ones: the first ones allocate memory and fill the caches."""

MAX_NODE_RUNS = 100
"""Runs under onnxruntime's profiler, at most: it writes one event per node and run."""

MEMORY_RUNS = 3
"""Runs in the process that measures memory; onnxruntime's arena has reached its size after the first."""


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
    """Peak resident memory (Linux VmHWM) of a fresh process that loads one model and runs it.

    Attributes:
        baseline_bytes: when onnxruntime is imported and the input is read, right before the model is loaded.
        peak_bytes: after the model has run; the file's bytes, weights, activations and arena are all in it.
    """

    baseline_bytes: int
    peak_bytes: int

    @property
    def model_bytes(self) -> int:
        """What loading and running the model added to the process."""
        return self.peak_bytes - self.baseline_bytes


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph that onnxruntime runs, after its optimisations.

    Attributes:
        name: the node's name; onnxruntime's own for a node that its optimiser made.
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
    """The nodes of one operator type together: how many, their summed median_ms, and their share of all nodes."""

    op_type: str
    nodes: int
    median_ms: float
    share: float


@dataclass(frozen=True)
class ModelProfile:
    """What was measured of one model.

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
    """How many times faster the model is than the one it is compared with.

    Attributes:
        median: ratio of the two medians.
        p10: 10th percentile of the ratios of neighbouring runs (one of each model).
        p90: 90th percentile of them.
    """

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Machine:
    """What it was measured on: CPU model, the CPUs that this process may use, and the onnxruntime version."""

    cpu: str
    cpus: int
    onnxruntime: str


@dataclass(frozen=True)
class ProfileReport:
    """The result of `profile`.

    Attributes:
        model: the model, run with the C++ kernels.
        compare: the other one, run by onnxruntime alone.
        speedup: of `model` over `compare`.
        isa_calls: micro-kernel calls per instruction set, counted by the library while the models ran.
        threads: intra-op threads of each session.
        runs: timed runs of each model.
        warmup_runs: untimed runs of each model before them.
        batch: samples per run.
        input_shapes: shape of each input of the model.
        data: file that the inputs are from; None for random ones (standard normal, seed 0).
        machine: what it ran on.
        board: more of what it ran on, and its clocks, temperature and flags before and after the timed runs.
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
        """Why the times are not the machine's full speed; empty if nothing speaks for it."""
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


@dataclass(frozen=True)
class _Setting:
    """How to make one model's session, here or in another process."""

    path: str
    kernels: bool
    threads: int
    isa: str | None

    def session(self, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
        return load_session(self.path, self.threads, isa=self.isa, kernels=self.kernels, options=options)


def profile(
    model: str | os.PathLike[str],
    compare: str | os.PathLike[str] | None = None,
    *,
    threads: int = 1,
    runs: int = 50,
    batch: int = 1,
    data: str | os.PathLike[str] | None = None,
    isa: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ProfileReport:
    """Measure a model with the C++ kernels, and beside it another one in onnxruntime alone.

    Both sessions live in this process and run on the same input with the same number of threads, in turns (A B A B),
    so that whatever else the machine does meets both. Memory and the per-node times are measured apart from that.

    Args:
        model: path of the .onnx file.
        compare: path of the .onnx file to compare with, usually the float model.
        threads: intra-op threads.
        runs: timed runs of each model.
        batch: samples per run, where the model leaves its batch dimension open.
        data: .npy or .npz file to take the first `batch` samples of each input from: the array named like the input or,
            if the model has one input, the first array. None draws float inputs from a standard normal distribution.
        isa: force an instruction set, as `load_session`.
        progress: called with the name of each step as it begins.

    Raises:
        InputError: a file cannot be used, the data or the two models' inputs do not fit, a number is out of range.
        SetupError: as `load_session`; or a process that measures memory died.
    """
    for name, value in (("threads", threads), ("runs", runs), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    step = progress or (lambda _: None)
    settings = [_Setting(os.fspath(model), True, threads, isa)]
    if compare is not None:
        settings.append(_Setting(os.fspath(compare), False, threads, None))

    step("loading")
    sessions = [setting.session() for setting in settings]
    arrays = _inputs(settings[0].path, sessions[0], batch, data)
    feeds = [_feed(setting.path, session, arrays) for setting, session in zip(settings, sessions, strict=True)]
    samples = arrays[0].shape[0] if arrays and arrays[0].ndim else 1

    step(f"timing {runs} runs")
    calls_before = library_info().calls
    state_before = read_state()
    times_ms = _time_in_turns(settings, sessions, feeds, runs)
    state_after = read_state()  # at once: an idle CPU soon clocks down
    calls_after = library_info().calls
    del sessions
    isa_calls = {name: n - calls_before.get(name, 0) for name, n in calls_after.items()}

    profiles = []
    for setting, feed, times in zip(settings, feeds, times_ms, strict=True):
        step(f"measuring the memory of {setting.path}")
        memory = _measure_memory(setting, feed)
        step(f"timing the nodes of {setting.path}")
        nodes = _time_nodes(setting, feed, min(runs, MAX_NODE_RUNS))
        profiles.append(ModelProfile(setting.path, model_bytes(setting.path), _timing(times, samples), memory, nodes))

    return ProfileReport(
        model=profiles[0],
        compare=profiles[1] if len(profiles) > 1 else None,
        speedup=_speedup(times_ms[0], times_ms[1]) if len(profiles) > 1 else None,
        isa_calls={name: n for name, n in isa_calls.items() if n > 0},
        threads=threads,
        runs=runs,
        warmup_runs=WARMUP_RUNS,
        batch=samples,
        input_shapes={name: array.shape for name, array in feeds[0].items()},
        data=None if data is None else os.fspath(data),
        machine=Machine(cpu_name(), len(os.sched_getaffinity(0)), ort.__version__),
        board=read_board(state_before, state_after),
    )


def model_bytes(path: str | os.PathLike[str]) -> int:
    """Size of an .onnx file together with the external data files that it names, in bytes.

    A file that keeps its weights in another one has, per tensor, an `external_data` entry ("location", file name). The
    entry is found by its encoding, because parsing the file would need the onnx package.
    """
    path = Path(path)
    content = path.read_bytes()
    # StringStringEntryProto: field 1 (key), length 8, "location"; field 2 (value), length in one byte, the file name.
    names = {
        content[found.end() : found.end() + found[1][0]]
        for found in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])", content)
    }
    files = [path.parent / os.fsdecode(name) for name in names if b"\0" not in name]
    return len(content) + sum(file.stat().st_size for file in files if file.is_file())


def cpu_name() -> str:
    """The CPU's model name as Linux gives it (on ARM boards: the board's), or else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return entries.get("model name") or entries.get("Model") or platform.machine()


def _inputs(
    path: str, session: ort.InferenceSession, batch: int, data: str | os.PathLike[str] | None
) -> list[NDArray[Any]]:
    """One array per input of the model, in the order of its inputs."""
    infos = session.get_inputs()
    if data is not None:
        arrays = _read_arrays(Path(data))
        return [_sample(Path(data), arrays, info, len(infos) == 1, batch, path) for info in infos]
    rng = np.random.default_rng(0)
    result = []
    for info in infos:
        if info.type != "tensor(float)":
            raise InputError(f"{path}: input {info.name} is {info.type}: only float inputs can be random, give data")
        shape = list(info.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        elif shape and batch not in (1, shape[0]):
            raise InputError(f"{path}: input {info.name} has a fixed batch of {shape[0]}: batch {batch} does not fit")
        if not all(isinstance(size, int) for size in shape):
            raise InputError(f"{path}: input {info.name} has shape {_shape(info.shape)}: give data, to say how large")
        result.append(rng.standard_normal(shape, dtype=np.float32))
    return result


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name, or the one of an .npy file under the name ''."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a .npy or .npz file of plain arrays: {error}") from error


def _sample(
    path: Path, arrays: dict[str, NDArray[Any]], info: Any, only_input: bool, batch: int, model: str
) -> NDArray[Any]:
    """The first samples of the array in `path` that belongs to input `info` of the model."""
    if info.name not in arrays and (not only_input or not arrays):
        raise InputError(f"{path}: holds {', '.join(arrays) or 'no array'}, but {model} needs {info.name}")
    array = arrays[info.name] if info.name in arrays else next(iter(arrays.values()))
    fixed = info.shape[0] if info.shape and isinstance(info.shape[0], int) else None
    wanted = [None, *info.shape[1:]] if info.shape else []
    if not _fits(array.shape, wanted):
        raise InputError(
            f"{path}: shape {_shape(array.shape)} does not fit input {info.name} of {model}, {_shape(info.shape)}"
        )
    if fixed is not None and batch not in (1, fixed):
        raise InputError(f"{model}: input {info.name} has a fixed batch of {fixed}: batch {batch} does not fit")
    samples = fixed or batch
    if array.ndim and len(array) < samples:
        raise InputError(f"{path}: holds {len(array)} samples, fewer than the batch of {samples}")
    dtype = {"tensor(float)": "float32", "tensor(double)": "float64"}.get(info.type)
    dtype = dtype or info.type.removeprefix("tensor(").removesuffix(")")
    try:
        return np.ascontiguousarray(array[:samples] if array.ndim else array).astype(dtype, casting="same_kind")
    except TypeError:
        raise InputError(f"{path}: {array.dtype} does not fit input {info.name} of {model}, {info.type}") from None


def _feed(path: str, session: ort.InferenceSession, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs under the names that this model has for them: two exports of one network may name them differently."""
    infos = session.get_inputs()
    if len(infos) != len(arrays):
        raise InputError(f"{path}: has {len(infos)} inputs, the other model {len(arrays)}")
    for info, array in zip(infos, arrays, strict=True):
        if not _fits(array.shape, info.shape):
            raise InputError(
                f"{path}: input {info.name} is {_shape(info.shape)}, the other model's {_shape(array.shape)}"
            )
    return {info.name: array for info, array in zip(infos, arrays, strict=True)}


def _fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    """Whether a shape has the wanted rank and sizes; a name or None in `wanted` is any size."""
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or size == want for size, want in zip(shape, wanted, strict=True)
    )


def _shape(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


@contextmanager
def _running(setting: _Setting) -> Iterator[None]:
    """Turn onnxruntime's exceptions (their types are not public) into an error that names the model."""
    try:
        yield
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{setting.path}: onnxruntime cannot run it: {message}") from error


def _time_in_turns(
    settings: Sequence[_Setting],
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[dict[str, NDArray[Any]]],
    runs: int,
) -> NDArray[np.float64]:
    """Time of each run in ms, [models, runs]."""
    times = np.empty((len(sessions), runs))
    for setting, session, feed in zip(settings, sessions, feeds, strict=True):
        with _running(setting):
            for _ in range(WARMUP_RUNS):
                session.run(None, feed)
    for run in range(runs):
        for i, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            start = time.perf_counter_ns()
            session.run(None, feed)
            times[i, run] = (time.perf_counter_ns() - start) / 1e6
    return times


def _timing(times_ms: NDArray[np.float64], samples: int) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(times_ms, [10, 50, 90]))
    return Timing(median, p10, p90, samples / median * 1000)


def _speedup(model_ms: NDArray[np.float64], compare_ms: NDArray[np.float64]) -> Speedup:
    p10, p90 = (float(value) for value in np.percentile(compare_ms / model_ms, [10, 90]))
    return Speedup(float(np.median(compare_ms) / np.median(model_ms)), p10, p90)


def _time_nodes(setting: _Setting, feed: dict[str, NDArray[Any]], runs: int) -> tuple[NodeTime, ...]:
    with TemporaryDirectory() as directory:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory) / "profile")
        session = setting.session(options)
        for _ in range(WARMUP_RUNS + runs):
            session.run(None, feed)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return node_times(events, WARMUP_RUNS)


def node_times(events: Sequence[dict[str, Any]], warmup: int) -> tuple[NodeTime, ...]:
    """Read onnxruntime's profile (trace events; a node's kernel is one "..._kernel_time" event per run, "dur" in µs).

    Args:
        events: the parsed profile.
        warmup: events of each node to leave out from the start.
    """
    durations: dict[tuple[str, str], list[int]] = {}
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        node = (event["args"].get("node_index", ""), event["name"].removesuffix("_kernel_time"))
        durations.setdefault(node, []).append(event["dur"])
        last[node] = event["args"]
    medians = {node: float(np.median(times[warmup:])) / 1000 for node, times in durations.items() if times[warmup:]}
    total = sum(medians.values())
    return tuple(
        NodeTime(
            name=node[1],
            op_type=last[node].get("op_name", ""),
            median_ms=median,
            share=median / total if total else 0.0,
            output_shapes=tuple(
                tuple(shape) for output in last[node].get("output_type_shape", []) for shape in output.values()
            ),
        )
        for node, median in medians.items()
    )


def _measure_memory(setting: _Setting, feed: dict[str, NDArray[Any]]) -> Memory:
    """Run the model in a fresh process and ask that process for its peak memory."""
    code = "from bnn_deploy.profiling import _memory_process; _memory_process()"
    with TemporaryDirectory() as directory:
        inputs = Path(directory) / "inputs.npz"
        np.savez(inputs, *feed.values())
        task = json.dumps({"setting": asdict(setting), "names": list(feed), "inputs": str(inputs)})
        done = subprocess.run(
            # -P: the working directory may hold a source tree of bnn_deploy, which has no library
            [sys.executable, "-P", "-c", code, task],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["out of memory?"]
        raise SetupError(
            f"{setting.path}: the process that measures its memory ended with status {done.returncode}: {reason[0]}"
        )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _memory_process() -> None:
    """What the fresh process does: read the inputs, note the memory, load and run the model, print both numbers."""
    task = json.loads(sys.argv[1])
    with np.load(task["inputs"]) as arrays:
        feed = {name: arrays[f"arr_{i}"] for i, name in enumerate(task["names"])}
    # Start VmHWM anew: importing may have peaked higher than it left the process, and would hide a small model. Some
    # Linux kernels are built without this file; then the baseline is the peak of the import.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    baseline = _peak_rss()
    session = _Setting(**task["setting"]).session()
    for _ in range(MEMORY_RUNS):
        session.run(None, feed)
    print(json.dumps(asdict(Memory(baseline, _peak_rss()))))


def _peak_rss() -> int:
    """VmHWM in bytes; not ru_maxrss, which survives exec, so that a child may report its parent's."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise SetupError("/proc/self/status has no VmHWM: peak memory cannot be measured on this system")
    return int(match[1]) * 1024
