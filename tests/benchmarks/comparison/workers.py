"""The processes that hold the engines: peers/worker.py, asked by lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from comparison.results import LARQ, OPENVINO

BENCHMARKS = Path(__file__).resolve().parents[1]
"""The folder that holds the package `peers`."""


class WorkerError(Exception):
    """A request to a worker failed."""


class Worker:
    """A process that holds engines; its requests are listed in peers/worker.py."""

    def __init__(self, python: str, paths: Sequence[str]) -> None:
        from support.python import command  # compare.py puts its folder on the path when it runs

        self.errors = TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            command("import runpy; runpy.run_module('peers.worker', run_name='__main__')", python),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
    """One worker per module of peers/: onnxruntime in this Python, OpenVINO and Larq in the Python of `--peers`.

    Attributes:
        by_module: the workers that have their engine, under their module's name.
        versions: of the engines and their libraries.
        left_out: for each engine that is not installed the reason.
    """

    def __init__(self, peers: str) -> None:
        own = [str(BENCHMARKS), *(path for path in sys.path if path)]
        other = [str(BENCHMARKS)] if peers != sys.executable else own
        self.commands = {"ort": (sys.executable, own), "openvino": (peers, other), "larq": (peers, other)}
        self.by_module = {"ort": self.fresh("ort")}
        self.versions: dict[str, str] = self.by_module["ort"].ask("versions", module="ort")["versions"]
        self.left_out: dict[str, str] = {}
        for module, label in (("openvino", OPENVINO), ("larq", LARQ)):
            worker = self.fresh(module)
            try:
                self.versions |= worker.ask("versions", module=module)["versions"]
                self.by_module[module] = worker
            except WorkerError as error:
                self.left_out[label] = str(error)
                worker.close()

    def fresh(self, module: str) -> Worker:
        """Another process for the module's engine; the caller closes it."""
        return Worker(*self.commands[module])

    def close(self) -> None:
        """End the processes."""
        for worker in self.by_module.values():
            worker.close()
