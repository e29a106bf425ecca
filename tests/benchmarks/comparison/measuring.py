"""Checks the engines' values, then times them in turns; starts them cold; proves the networks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from comparison.results import FLOAT, OURS, OURS_INT8, ColdStart, Proof, Result, relative_errors
from comparison.workers import Worker, WorkerError, Workers
from comparison.workloads import CHECKED_SAMPLES, Candidate, Workload

WARM_MS, TIMED_MS = 3.0, 10.0
"""Milliseconds of untimed and of timed runs in an engine's turn; at least one run of each."""

BATCH_ROUNDS = 10
"""Maximum number of turns per engine for batches above 1, whose runs are long."""

COLD_STARTS = 5
"""Maximum number of processes per engine and network whose start is measured."""

QUIET_S = 0.05
"""Pause before a turn with several threads: the last engine's idle threads spin for a while before they sleep."""

SUFFIXES = {"openvino": ".xml", "larq": ".tflite"}
"""Of the files that the modules with an `export` make."""


@dataclass(frozen=True)
class Entrant:
    """A candidate in a process, with its number of threads, and its instruction set if it is ours."""

    candidate: Candidate
    worker: Worker
    threads: int
    isa: str = ""

    @property
    def name(self) -> str:
        """Its name in its worker."""
        return f"{self.candidate.engine} {self.isa} {self.threads}"


class Outputs:
    """Computes the workload's samples on the engines, batch by batch."""

    def __init__(self, workload: Workload, batch: int, workers: Workers, folder: Path) -> None:
        self.batch, self.workers, self.folder = batch, workers, folder
        self.inputs = []
        for i in range(-(-CHECKED_SAMPLES // batch)):
            self.inputs.append(folder / f"x{i}.npy")
            np.save(self.inputs[-1], workload.inputs[i * batch : (i + 1) * batch])
        self.references: dict[Path, NDArray[np.float32]] = {}

    def file(self, candidate: Candidate) -> Path:
        """The file that the engine loads; OpenVINO's and Larq's are made for the batch, once."""
        if candidate.module == "ort":
            return candidate.model
        made = self.folder / f"{candidate.model.stem}_{self.batch}{SUFFIXES[candidate.module]}"
        if not made.is_file():
            worker = self.workers.by_module[candidate.module]
            worker.ask("export", module=candidate.module, plan=candidate.model, batch=self.batch, output=made)
        return made

    def load(self, entrant: Entrant) -> None:
        """Load the model under the entrant's name."""
        candidate = entrant.candidate
        entrant.worker.ask(
            "load",
            module=candidate.module,
            name=entrant.name,
            model=self.file(candidate),
            batch=self.batch,
            threads=entrant.threads,
            **candidate.options,
            **({"isa": entrant.isa} if entrant.isa else {}),
        )

    def of(self, entrant: Entrant) -> NDArray[np.float32]:
        """A loaded model's values on all samples, [samples, ...]."""
        y = self.folder / "y.npy"
        values = []
        for x in self.inputs:
            entrant.worker.ask("output", name=entrant.name, input=x, output=y)
            values.append(np.load(y))
        return np.concatenate(values)

    def reference(self, model: Path) -> NDArray[np.float32]:
        """The values of a float model in onnxruntime, one thread."""
        if model not in self.references:
            worker = self.workers.by_module["ort"]
            entrant = Entrant(Candidate("reference", "ort", model, model, 0.0, 1.0), worker, 1)
            self.load(entrant)
            self.references[model] = self.of(entrant)
            worker.ask("unload", name=entrant.name)
        return self.references[model]


def measure(
    workload: Workload, batch: int, threads: int, isas: Sequence[str], rounds: int, workers: Workers, folder: Path
) -> tuple[list[Result], dict[str, str]]:
    """Check every engine's values, then time them in turns.

    Args:
        workload: a layer or a network.
        batch: samples per run.
        threads: of every engine.
        isas: instruction sets that bnn-deploy is forced to; the first one alone with int8 edges.
        rounds: turns of each engine.
        workers: the engines' processes.
        folder: for files; those of OpenVINO and Larq stay for `cold_starts`.

    Returns:
        The results, and for each engine without results the reason.
    """
    forced = {OURS: isas, OURS_INT8: isas[:1]}
    entrants = [
        Entrant(candidate, workers.by_module[candidate.module], threads, isa)
        for candidate in workload.candidates
        if candidate.module in workers.by_module
        for isa in forced.get(candidate.engine, [""])
    ]
    return race(entrants, Outputs(workload, batch, workers, folder), workload, rounds)


def measure_threads(
    workload: Workload, batch: int, counts: Sequence[int], isa: str, rounds: int, workers: Workers, folder: Path
) -> tuple[list[Result], dict[str, str]]:
    """bnn-deploy and onnxruntime's fp32 with each number of threads, each in a process of its own; as `measure`."""
    with ExitStack() as processes:
        entrants = [
            Entrant(workload.candidate(engine), processes.enter_context(workers.fresh("ort")), count, forced)
            for engine, forced in ((OURS, isa), (FLOAT, ""))
            for count in counts
        ]
        return race(entrants, Outputs(workload, batch, workers, folder), workload, rounds)


def race(
    entrants: Sequence[Entrant], outputs: Outputs, workload: Workload, rounds: int
) -> tuple[list[Result], dict[str, str]]:
    """Check the entrants' values and time them in turns; results, and the reasons where there are none."""
    errors: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for entrant in entrants:
        try:
            outputs.load(entrant)
            values = outputs.of(entrant)
        except WorkerError as error:
            failed[f"{entrant.name.strip()}: {workload.title}, batch {outputs.batch}"] = str(error)
            continue
        errors[entrant.name] = relative_errors(values, outputs.reference(entrant.candidate.reference))
    running = [entrant for entrant in entrants if entrant.name in errors]
    times: dict[str, list[float]] = {entrant.name: [] for entrant in running}
    pause = QUIET_S if any(entrant.threads > 1 for entrant in running) else 0
    for turn in range(rounds):
        first = turn % len(running)
        for entrant in running[first:] + running[:first]:
            time.sleep(pause)
            times[entrant.name] += entrant.worker.ask("time", name=entrant.name, warm_ms=WARM_MS, timed_ms=TIMED_MS)[
                "ms"
            ]
    results = []
    for entrant in running:
        entrant.worker.ask("unload", name=entrant.name)
        p10, median, p90 = (float(value) for value in np.percentile(times[entrant.name], [10, 50, 90]))
        results.append(
            Result(
                workload=workload.title,
                kind=workload.kind,
                batch=outputs.batch,
                engine=entrant.candidate.engine,
                isa=entrant.isa,
                threads=entrant.threads,
                median_ms=median,
                p10_ms=p10,
                p90_ms=p90,
                runs=len(times[entrant.name]),
                errors=errors[entrant.name],
                tolerance=entrant.candidate.tolerance,
                share=entrant.candidate.share,
            )
        )
    return results, failed


def cold_starts(
    workload: Workload, engines: Sequence[str], isa: str, rounds: int, workers: Workers, folder: Path
) -> list[ColdStart]:
    """Load the engines' models and run each once, one sample, one thread, in processes that end then; in turns.

    Args:
        workload: a network.
        engines: of ENGINES, those whose values were checked.
        isa: the instruction set of bnn-deploy's kernels.
        rounds: processes per engine.
        workers: tell how processes are started.
        folder: that of `measure`.
    """
    outputs = Outputs(workload, 1, workers, folder)
    answers: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine, found in answers.items():
            candidate = workload.candidate(engine)
            options = candidate.options | ({"isa": isa, "checked": True} if engine in (OURS, OURS_INT8) else {})
            with workers.fresh(candidate.module) as worker:
                found.append(
                    worker.ask(
                        "cold_start",
                        module=candidate.module,
                        model=outputs.file(candidate),
                        input=outputs.inputs[0],
                        batch=1,
                        threads=1,
                        **options,
                    )
                )
    return [
        ColdStart(
            workload.title,
            engine,
            *(float(np.median([answer[key] for answer in found])) for key in ("load_ms", "added_mb", "before_mb")),
        )
        for engine, found in answers.items()
    ]


def prove(workload: Workload, isas: Sequence[str]) -> Proof:
    """`bnn_deploy.verify` of a network against its float ONNX file."""
    from bnn_deploy.proof.verification import verify

    ours = workload.candidate(OURS)
    with TemporaryDirectory() as folder:
        data = Path(folder) / "inputs.npy"
        np.save(data, workload.inputs[:CHECKED_SAMPLES])
        found = verify(ours.model, ours.reference, data=data, reference_samples=0, isas=isas, threads=1)
    layers = [layer for layer in found.layers if layer.kind == "bits"]
    bits, differ = sum(layer.values for layer in layers), sum(layer.differing for layer in layers)
    return Proof(workload.title, found.passed, CHECKED_SAMPLES, list(isas), bits, differ)
