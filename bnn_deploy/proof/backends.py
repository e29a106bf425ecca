"""The backends of the proof: kernels of every ISA, function bodies in onnxruntime and in the ReferenceEvaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import one_line
from bnn_deploy.runtime.session import SPINNING, load_session

if TYPE_CHECKING:
    from onnx import ModelProto


Arrays = dict[str, NDArray[Any]]

Runner = Callable[[Arrays], list[NDArray[Any]]]
"""Runs a model on named inputs: its outputs in order."""


class RunError(Exception):
    """A backend cannot run a model on its inputs, or its output has another shape than the reference's."""


BATCH = 50
"""Samples that run at a time, at most."""

SLOW_SAMPLES = 100
"""Samples that the slow backends run, if nothing else is said."""

EVALUATOR_SAMPLES = 8
"""Samples that the ReferenceEvaluator runs, at most, if nothing else is said ..."""

EVALUATOR_SECONDS = 20.0
"""... and in this time."""

BATCH_BYTES = 32_000_000
"""The size of the reference's values of the samples that run at a time: it bounds the memory, whatever the network."""


_KERNELS = "kernels, "


def kernels_of(isa: str) -> str:
    """The name of the backend that runs the kernels of an instruction set."""
    return _KERNELS + isa


class Backends:
    """The backends by name; `make` gives the function that runs a model on one of them."""

    BODIES = "bodies, onnxruntime"
    EVALUATOR = "bodies, ReferenceEvaluator"
    SCALAR = kernels_of("scalar")

    def __init__(self, isas: Sequence[str], threads: int | None) -> None:
        self.isas = isas
        self.threads = threads
        self.onnxruntime = [self.BODIES, *map(kernels_of, isas)]
        self.own = self.onnxruntime[1 if isas else 0]
        """What runs a model with the library here: the kernels of the best instruction set, if it has kernels."""
        self.slow = {self.BODIES, self.SCALAR} - {self.own}
        """What takes many times as long as the other kernels: it computes with floats, or word by word."""
        self._parted: tuple[ModelProto, tuple[bytes | ModelProto, Arrays]] | None = None

    def make(self, model: ModelProto | str, backend: str) -> Runner:
        """A function that runs `model` on named inputs."""
        constants: Arrays = {}
        data: str | bytes | ModelProto = model  # a path stays one: a board has no onnx to change it with
        if backend in (self.BODIES, self.EVALUATOR) and not isinstance(model, str):
            data, constants = self._without_constants(model)
        if backend == self.EVALUATOR:
            from bnn_deploy.proof.evaluator import Evaluator

            evaluator = Evaluator(data)

            def evaluate(inputs: Arrays) -> list[NDArray[Any]]:
                try:
                    with np.errstate(all="ignore"):
                        outputs = evaluator.run(None, inputs | constants)
                except Exception as error:  # numpy and the evaluator raise many types for shapes that do not fit
                    raise RunError(one_line(error)) from error
                return [np.asarray(output) for output in outputs]

            return evaluate
        isa = None if backend == self.BODIES else backend.removeprefix(_KERNELS)
        data = data if isinstance(data, str | bytes) else data.SerializeToString()
        session = load_session(data, self.threads, isa=isa, kernels=isa is not None, options=lean_options())
        return lambda inputs: [np.asarray(output) for output in run_session(session, None, inputs | constants)]

    def _without_constants(self, model: ModelProto) -> tuple[bytes | ModelProto, Arrays]:
        """A model whose large weights, if it has some, are inputs, and these; both backends of bodies share them."""
        from bnn_deploy.proof.constants import has_large_bits, without_constants

        if self._parted is None or self._parted[0] is not model:
            self._parted = model, without_constants(model) if has_large_bits(model) else (model, {})
        return self._parted[1]

    def make_whole_bodies(self, model: bytes) -> ort.InferenceSession:
        """A session of a whole model with the function bodies, which computes its weights in each run."""
        return load_session(model, self.threads, kernels=False, fold=False, options=lean_options())


def one_by_one(run: Runner) -> Runner:
    """The same function, a sample at a time, which takes less memory: of tensors with a row for each sample."""

    def each(inputs: Arrays) -> list[NDArray[Any]]:
        count = len(next(iter(inputs.values())))
        found = [run({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(count)]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    return each


def lean_options() -> ort.SessionOptions:
    """Options for one of many sessions that run in turn."""
    options = ort.SessionOptions()
    # The arena would keep the memory of the largest batch, in each of them.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry(SPINNING, "0")  # the threads of the others would take the CPU from the one
    return options


def run_session(session: ort.InferenceSession, names: list[str] | None, inputs: Arrays) -> list[Any]:
    """Run a session.

    Raises:
        RunError: onnxruntime fails; the text is its message.
    """
    try:
        outputs: list[Any] = session.run(names, inputs)
    except Exception as error:  # onnxruntime's exception types are not public
        raise RunError(one_line(error)) from error
    return outputs
