"""Measure models: time, memory, and the time of each node. Needs onnxruntime and numpy only: it runs on a board."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.files import model_bytes, model_sha256, require_outputs, temporary_folder, write_files
from bnn_deploy.progress import Progress, ProgressStep
from bnn_deploy.runtime.bound import measure_bound
from bnn_deploy.runtime.inputs import feed_of, session_inputs
from bnn_deploy.runtime.machine import cpu_name, read_board, read_state
from bnn_deploy.runtime.node_times import Event, node_times
from bnn_deploy.runtime.profile_results import (
    ColdStart,
    Machine,
    Memory,
    ModelProfile,
    ProfileReport,
    Speedup,
    Timing,
)
from bnn_deploy.runtime.session import library_info, load_session
from bnn_deploy.runtime.statistics import median_interval
from bnn_deploy.runtime.trace import trace_events
from bnn_deploy.system import peak_memory, reset_peak_memory, usable_cpus

ModelPath = str | os.PathLike[str]
"""A file, as it is given."""

WARMUP_RUNS = 5
"""Untimed runs of each model before the timed ones: the first ones allocate memory and fill the caches."""

MAX_NODE_RUNS = 100
"""Runs under onnxruntime's profiler, at most: it writes one event per node and run."""

MEMORY_RUNS = 3
"""Runs in the process that measures memory; onnxruntime's arena has reached its size after the first."""

MAX_THREADS, MAX_THREADS_PER_CPU = 16, 4
"""Most threads that are measured: the first, or the second times the CPUs of this process, if that is more."""

QUIET_S, MOST_PAUSES = 0.02, 50
"""After a run with several threads, before another session's: length and largest number of pauses until this process
takes no CPU any more, because idle threads spin for a while (20 ms of CPU time) before they sleep."""

WARM_S = 0.003
"""Time of untimed runs after such a pause: they wake the session's threads and the CPU's clock."""


@dataclass(frozen=True)
class _Setting:
    """The arguments of one model's session, in this or another process."""

    path: str
    kernels: bool
    threads: int
    isa: str | None

    def session(self, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
        return load_session(self.path, self.threads, isa=self.isa, kernels=self.kernels, options=options)


@dataclass(frozen=True)
class _Entrant:
    """A session that is timed with one batch size.

    Attributes:
        setting: its session's.
        session: the session; other batch sizes have the same one.
        feed: the inputs.
    """

    setting: _Setting
    session: ort.InferenceSession
    feed: dict[str, NDArray[Any]]

    @property
    def samples(self) -> int:
        """Samples per run."""
        first = next(iter(self.feed.values()), None)
        return first.shape[0] if first is not None and first.ndim else 1

    def run(self) -> None:
        """Run the model once."""
        self.session.run(None, self.feed)


def profile(
    model: ModelPath,
    compare: ModelPath | Sequence[ModelPath] | None = None,
    *,
    threads: int | Sequence[int] = 1,
    runs: int = 50,
    batch: int | Sequence[int] = 1,
    data: ModelPath | None = None,
    isa: str | None = None,
    trace: ModelPath | None = None,
    progress: Progress | None = None,
) -> ProfileReport:
    """Measure a model with the C++ kernels and, to compare, other models in onnxruntime alone.

    All sessions live in this process and run on the same input in turns (A A B B C C A A ..., of which every second one
    is timed), so that other load on the machine affects all of them. Of several batch sizes and numbers of threads,
    every combination takes its turn, and the first one is the setting of all else: memory, cold starts, nodes and the
    machine's bound, measured separately.

    Args:
        model: path of the .onnx file.
        compare: paths of .onnx files to compare with, usually the float model.
        threads: intra-op threads, one number or several.
        runs: timed runs of each model in each setting.
        batch: samples per run, where the model leaves its batch dimension open; one number or several.
        data: a path as `load_data` takes it, to take the first `batch` samples of each input from. Images that nothing
            says how to normalise become x / 255. None draws float inputs from a standard normal distribution.
        isa: force an instruction set, as `load_session`.
        trace: file to write the runs of the nodes to, in the Trace Event Format that Perfetto and Chrome's
            chrome://tracing show; one process per model.
        progress: called with the name of each step as it begins, a `ProgressStep`; during the timed runs, too, between
            two of them.

    Raises:
        InputError: a file cannot be used, the data or the models' inputs do not fit, a number is out of range.
        SetupError: as `load_session`; or the process that measures memory failed.
    """
    batches, counts = _numbers("batch", batch), _numbers("threads", threads)
    _numbers("runs", runs)
    if max(counts) > most_threads():
        raise InputError(
            f"threads is {max(counts)}: at most {most_threads()} are measured on this machine, where this process "
            f"may use {usable_cpus()} CPU(s)"
        )
    paths = [os.fspath(path) for path in (model, *_several(compare))]
    require_outputs({"trace": trace}, {"data": data, **{f"model {path}": path for path in paths}})

    def step(what: str, share: float) -> None:
        if progress is not None:
            progress(ProgressStep(what, share))

    step("loading", 0.0)
    entrants = _entrants(paths, counts, batches, data, isa)

    step(f"timing {runs} runs", _TIMED[0])
    calls_before = library_info().calls
    state_before = read_state()
    begin, end = _TIMED
    times_ms, cpu_share = _time_in_turns(
        entrants, runs, lambda done: step(f"timing {runs} runs, {done} done", begin + (end - begin) * done / runs)
    )
    state_after = read_state()  # at once: an idle CPU soon clocks down
    calls_after = library_info().calls
    isa_calls = {name: n - calls_before.get(name, 0) for name, n in calls_after.items()}
    board = read_board(state_before, state_after)

    first = [(entrant.setting, entrant.feed) for entrant in entrants[: len(paths)]]
    timings = _timings([(entrant.samples, entrant.setting.threads) for entrant in entrants], times_ms, len(paths))
    samples = entrants[0].samples
    del entrants  # a session's threads would take CPUs from what follows
    step("measuring what the machine reaches", end)
    bound = measure_bound(isa or library_info().selected, counts[0], board.memory_bytes)
    profiles, traced = [], []
    for i, ((setting, feed), found) in enumerate(zip(first, timings, strict=True)):
        share = _MODELS_FROM + (1 - _MODELS_FROM) * i / len(first)
        step(f"measuring the start and the memory of {setting.path}", share)
        start, memory = _measure_start(setting, feed)
        step(f"timing the nodes of {setting.path}", share + (1 - _MODELS_FROM) / 2 / len(first))
        events = _run_nodes(setting, feed, min(runs, MAX_NODE_RUNS))
        nodes = node_times(events, WARMUP_RUNS, setting.path, samples, bound)
        traced.append((setting.path, events))
        size, digest = model_bytes(setting.path), model_sha256(setting.path)
        profiles.append(ModelProfile(setting.path, size, found, start, memory, nodes, digest))
    if trace is not None:
        write_files({trace: json.dumps(trace_events(traced)).encode()})

    return ProfileReport(
        model=profiles[0],
        compare=tuple(profiles[1:]),
        isa_calls={name: n for name, n in isa_calls.items() if n > 0},
        threads=counts[0],
        batch=samples,
        runs=runs,
        warmup_runs=WARMUP_RUNS,
        input_shapes={name: array.shape for name, array in first[0][1].items()},
        data=None if data is None else os.fspath(data),
        machine=Machine(cpu_name(), usable_cpus(), ort.__version__),
        board=board,
        bound=bound,
        cpu_share=cpu_share,
    )


def most_threads() -> int:
    """The largest number of threads that `profile` takes on this machine."""
    return max(MAX_THREADS, MAX_THREADS_PER_CPU * usable_cpus())


def _numbers(name: str, value: int | Sequence[int]) -> list[int]:
    """One number or several, without repetitions.

    Raises:
        InputError: one of them is below 1, or there is none.
    """
    numbers = list(dict.fromkeys(value if isinstance(value, Iterable) else [value]))
    for number in numbers or [0]:
        if number < 1:
            raise InputError(f"{name} is {number}: it must be at least 1")
    return numbers


def _several(paths: ModelPath | Sequence[ModelPath] | None) -> Sequence[ModelPath]:
    """None, one path, or several."""
    if paths is None:
        return ()
    return (paths,) if isinstance(paths, str | os.PathLike) else paths


def _entrants(
    paths: Sequence[str], counts: Sequence[int], batches: Sequence[int], data: ModelPath | None, isa: str | None
) -> list[_Entrant]:
    """Every model in every setting; the models in one setting are neighbours, and so are settings with one session."""
    arrays: dict[int, list[NDArray[Any]]] = {}
    entrants = []
    for threads in counts:
        settings = [_Setting(path, i == 0, threads, isa if i == 0 else None) for i, path in enumerate(paths)]
        sessions = [setting.session() for setting in settings]
        for batch in batches:
            if batch not in arrays:
                arrays[batch] = session_inputs(paths[0], sessions[0], batch, data)
            for setting, session in zip(settings, sessions, strict=True):
                entrants.append(_Entrant(setting, session, feed_of(setting.path, session, arrays[batch])))
    return entrants


@contextmanager
def _running(setting: _Setting) -> Iterator[None]:
    """Turn onnxruntime's exceptions (their types are not public) into an error that names the model."""
    try:
        yield
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{setting.path}: onnxruntime cannot run it: {message}") from error


_TIMED, _MODELS_FROM = (0.05, 0.6), 0.7
"""The shares of a profile at which the timed runs begin and end, and at which the models' start and nodes begin."""

TELL_S = 1.0
"""Seconds after which the timed runs tell how many are done: too seldom to count."""


def _time_in_turns(
    entrants: Sequence[_Entrant], runs: int, tell: Callable[[int], None] | None = None
) -> tuple[NDArray[np.float64], float | None]:
    """Time of each run in ms, [entrants, runs], and the CPU's share of it, see `ProfileReport.cpu_share`.

    Where several take turns, every timed run has an untimed one of the same entrant before it: it brings back into the
    caches what the others have displaced, so that a model's time is that of running it again and again, as it is when
    it is measured alone. After a session with several threads there is a pause, in which these go to sleep. `tell` is
    called with the number of rounds that are done, each TELL_S; untimed runs follow on it, too.
    """
    times = np.empty((len(entrants), runs))
    for entrant in entrants:
        with _running(entrant.setting):
            for _ in range(WARMUP_RUNS):
                entrant.run()
    alone = wall = 0.0
    before, told = entrants[-1], time.monotonic()
    for run in range(runs):
        late = tell is not None and time.monotonic() - told > TELL_S
        if tell is not None and late:
            tell(run)
            told = time.monotonic()
        for i, entrant in enumerate(entrants):
            if before.setting.threads > 1 and before.session is not entrant.session:
                _wait_for_idle_threads()
                awake = time.perf_counter() + WARM_S
                while time.perf_counter() < awake:
                    entrant.run()
            if late or len(entrants) > 1:
                entrant.run()
            cpu = time.thread_time()
            start = time.perf_counter_ns()
            entrant.run()
            times[i, run] = (time.perf_counter_ns() - start) / 1e6
            if entrant.setting.threads == 1:
                alone += time.thread_time() - cpu
                wall += times[i, run] / 1e3
            before = entrant
    return times, min(alone / wall, 1.0) if wall else None


def _wait_for_idle_threads() -> None:
    """Sleep until the threads of the session that ran last sleep, too."""
    for _ in range(MOST_PAUSES):
        before = time.process_time()
        time.sleep(QUIET_S)
        if time.process_time() - before < 0.05 * QUIET_S:
            return


def _timings(
    settings: Sequence[tuple[int, int]], times_ms: NDArray[np.float64], models: int
) -> list[tuple[Timing, ...]]:
    """The timings of each model, one per setting.

    Args:
        settings: samples and threads of each entrant; the models of one setting are neighbours, the first one first.
        times_ms: [entrants, runs].
        models: the number of models.
    """
    found: list[list[Timing]] = [[] for _ in range(models)]
    for i, ((samples, threads), times) in enumerate(zip(settings, times_ms, strict=True)):
        first = times_ms[i - i % models]
        speedup = None if i % models == 0 else _speedup(first, times)
        p10, median, p90 = (float(value) for value in np.percentile(times, [10, 50, 90]))
        found[i % models].append(Timing(samples, threads, median, p10, p90, samples / median * 1000, speedup))
    return [tuple(timings) for timings in found]


def _speedup(model_ms: NDArray[np.float64], compare_ms: NDArray[np.float64]) -> Speedup:
    ratios = compare_ms / model_ms
    p10, median, p90 = (float(value) for value in np.percentile(ratios, [10, 50, 90]))
    low, high = median_interval(ratios) or (None, None)
    return Speedup(median, low, high, p10, p90)


def _run_nodes(setting: _Setting, feed: dict[str, NDArray[Any]], runs: int) -> list[Event]:
    """Run a model under onnxruntime's profiler, and return its events."""
    with temporary_folder() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        session = setting.session(options)
        for _ in range(WARMUP_RUNS + runs):
            session.run(None, feed)
        try:
            events: list[Event] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # onnxruntime does not say so
            raise SetupError(f"{folder}: onnxruntime's profile is not whole: is the disk full?") from error
    return events


def _measure_start(setting: _Setting, feed: dict[str, NDArray[Any]]) -> tuple[ColdStart, Memory]:
    """Run the model in a fresh process and ask that process for its times and its peak memory."""
    # Without the working directory, which may hold a source tree of bnn_deploy without the compiled library; `-P` does
    # so since Python 3.11 only.
    code = (
        "import sys; sys.path[:] = [path for path in sys.path if path]; "
        "from bnn_deploy.runtime.profiling import _start_process; _start_process()"
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
    measured = json.loads(done.stdout.splitlines()[-1])
    return ColdStart(**measured["start"]), Memory(**measured["memory"])


def _start_process() -> None:
    """Body of the fresh process: read the inputs, note the memory, load and run the model, print the numbers."""
    task = json.loads(sys.argv[1])
    with np.load(task["inputs"]) as arrays:
        feed = {name: arrays[f"arr_{i}"] for i, name in enumerate(task["names"])}
    # The imports' peak may be above the process's current size, and would hide a small model. Where it cannot be reset,
    # the baseline is that peak.
    reset_peak_memory()
    baseline = peak_memory()
    moments = [time.perf_counter()]
    session = _Setting(**task["setting"]).session()
    moments.append(time.perf_counter())
    for _ in range(MEMORY_RUNS):
        session.run(None, feed)
        moments.append(time.perf_counter())
    load, first, *_ = (float(span) * 1e3 for span in np.diff(moments))
    memory = Memory(baseline, peak_memory())
    print(json.dumps({"start": asdict(ColdStart(load, first)), "memory": asdict(memory)}))
