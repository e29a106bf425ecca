"""Measure models: time, memory, and the time of each node. Needs onnxruntime and numpy only: it runs on a board."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.files import model_bytes, temporary_folder
from bnn_deploy.runtime.inputs import feed_of, session_inputs
from bnn_deploy.runtime.machine import cpu_name, read_board, read_state
from bnn_deploy.runtime.profile_results import Machine, Memory, ModelProfile, NodeTime, ProfileReport, Speedup, Timing
from bnn_deploy.runtime.session import library_info, load_session
from bnn_deploy.system import peak_memory, reset_peak_memory, usable_cpus

WARMUP_RUNS = 5
"""Untimed runs of each model before the timed ones: the first ones allocate memory and fill the caches."""

MAX_NODE_RUNS = 100
"""Runs under onnxruntime's profiler, at most: it writes one event per node and run."""

MEMORY_RUNS = 3
"""Runs in the process that measures memory; onnxruntime's arena has reached its size after the first."""


@dataclass(frozen=True)
class _Setting:
    """The arguments of one model's session, in this or another process."""

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
    """Measure a model with the C++ kernels and, to compare, another model in onnxruntime alone.

    Both sessions live in this process and run on the same input with the same number of threads, in turns (A B A B),
    so that other load on the machine affects both. Memory and the per-node times are measured separately.

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
        SetupError: as `load_session`; or the process that measures memory failed.
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
    arrays = session_inputs(settings[0].path, sessions[0], batch, data)
    feeds = [feed_of(setting.path, session, arrays) for setting, session in zip(settings, sessions, strict=True)]
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
        machine=Machine(cpu_name(), usable_cpus(), ort.__version__),
        board=read_board(state_before, state_after),
    )


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
    with temporary_folder() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        session = setting.session(options)
        for _ in range(WARMUP_RUNS + runs):
            session.run(None, feed)
        try:
            events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # onnxruntime does not say so
            raise SetupError(f"{folder}: onnxruntime's profile is not whole: is the disk full?") from error
    return node_times(events, WARMUP_RUNS)


def node_times(events: Sequence[dict[str, Any]], warmup: int) -> tuple[NodeTime, ...]:
    """Read onnxruntime's profile (trace events; a node's kernel is one "..._kernel_time" event per run, "dur" in µs).

    Args:
        events: the parsed profile.
        warmup: number of first events of each node to skip.
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
    # Without the working directory, which may hold a source tree of bnn_deploy without the compiled library; `-P` does
    # so since Python 3.11 only.
    code = (
        "import sys; sys.path[:] = [path for path in sys.path if path]; "
        "from bnn_deploy.runtime.profiling import _memory_process; _memory_process()"
    )
    with temporary_folder() as folder:
        inputs = folder / "inputs.npz"
        np.savez(inputs, *feed.values())
        task = json.dumps({"setting": asdict(setting), "names": list(feed), "inputs": str(inputs)})
        done = subprocess.run(
            [sys.executable, "-c", code, task],
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
    """Body of the fresh process: read the inputs, note the memory, load and run the model, print both numbers."""
    task = json.loads(sys.argv[1])
    with np.load(task["inputs"]) as arrays:
        feed = {name: arrays[f"arr_{i}"] for i, name in enumerate(task["names"])}
    # The imports' peak may be above the process's current size, and would hide a small model. Where it cannot be reset,
    # the baseline is that peak.
    reset_peak_memory()
    baseline = peak_memory()
    session = _Setting(**task["setting"]).session()
    for _ in range(MEMORY_RUNS):
        session.run(None, feed)
    print(json.dumps(asdict(Memory(baseline, peak_memory()))))
