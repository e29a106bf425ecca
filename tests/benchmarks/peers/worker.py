"""Holds engines in a separate process and answers requests: one line of JSON in, one line out.

    {"do": "versions", "module": M}                                  -> {"versions": {...}}
    {"do": "export", "module": M, "plan": PATH, "batch": 1, "output": PATH}      -> {}   (makes the engine's own file)
    {"do": "load", "module": M, "name": NAME, "model": PATH, ...}    -> {}   (other keys go to the module's load)
    {"do": "output", "name": NAME, "input": X.npy, "output": Y.npy}  -> {}
    {"do": "time", "name": NAME, "warm_ms": 2, "timed_ms": 10}       -> {"ms": [each run]}
    {"do": "unload", "name": NAME}                                   -> {}
    {"do": "cold_start", "module": M, "model": PATH, "input": X.npy, ...}        -> {"load_ms", "added_mb", "before_mb"}

Every engine is timed by the same loop here, so none pays for another's process, thread pool or allocator. An error is
answered with {"error": text}.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """One model, ready to run on one batch."""

    def output(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run on x [N, C, H, W] float32; return [N, ...] float32 (NCHW)."""
        ...

    def run(self) -> None:
        """Run again on the last input of `output`. Only `run` is timed."""
        ...


def time_runs(run: Callable[[], None], warm_ms: float, timed_ms: float) -> list[float]:
    """Run untimed for `warm_ms`, to refill the caches, then timed for `timed_ms`; return the ms of each run."""
    start = time.perf_counter_ns()
    while True:
        run()
        if time.perf_counter_ns() - start >= warm_ms * 1e6:
            break
    times = []
    total = 0
    while total < timed_ms * 1e6:
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
        total += times[-1]
    return [ns / 1e6 for ns in times]


def cold_start(load: Callable[[], Engine], x: NDArray[np.float32]) -> dict[str, float]:
    """Load an engine and run it once: the time, and the peak of this process's memory, in ms and 10^6 bytes."""
    # The peak of the imports may be above the process's size now, and would hide a small model.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    start = time.perf_counter_ns()
    load().output(x)
    ms = (time.perf_counter_ns() - start) / 1e6
    return {"load_ms": ms, "added_mb": (peak_memory() - before) / 1e6, "before_mb": before / 1e6}


def peak_memory() -> int:
    """VmHWM of this process in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def answer(engines: dict[str, Engine], request: dict[str, Any]) -> dict[str, Any]:
    """Execute one request and return its answer."""
    do = request.pop("do")
    if "module" in request:
        module = importlib.import_module(f"peers.{request.pop('module')}")
    if do == "versions":
        return {"versions": module.versions()}
    if do == "export":
        module.export(Path(request["plan"]), request["batch"], Path(request["output"]))
        return {}
    if do == "load":
        name, model = request.pop("name"), Path(request.pop("model"))
        engines[name] = module.load(model, **request)
        return {}
    if do == "cold_start":
        model, x = Path(request.pop("model")), np.load(request.pop("input"))
        return cold_start(lambda: module.load(model, **request), x)
    engine = engines[request["name"]]
    if do == "output":
        np.save(request["output"], engine.output(np.load(request["input"])))
        return {}
    if do == "time":
        return {"ms": time_runs(engine.run, request["warm_ms"], request["timed_ms"])}
    if do == "unload":
        del engines[request["name"]]
        return {}
    raise ValueError(f"unknown request {do}")


def main() -> None:
    # Answers go to the original stdout; stdout is redirected, as libraries print to it, from C++ too.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engines: dict[str, Engine] = {}
    for line in sys.stdin:
        try:
            result = answer(engines, json.loads(line))
        except Exception as error:
            text = str(error).strip().splitlines()
            result = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
        answers.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
