"""Sessions that are timed in turn, one thread, so that a change of the machine's clock meets them all alike.

Times are CPU times of the calling thread, which does all the work: other processes that take turns on the same core do
not count, and what is left of them are the caches and the clock.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.runtime.session import load_session

Key = TypeVar("Key", bound=Hashable)

SAMPLE_MS = 5
"""About the time of a sample: long against the clock's resolution, short against changes of the machine's speed."""


class Runner:
    """A session with bound tensors, so that a call's time is that of onnxruntime and the kernels."""

    def __init__(
        self, model: onnx.ModelProto, isa: str | None = None, feeds: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Load a model with one output.

        Args:
            model: the model.
            isa: the instruction set of the kernels; None takes the best.
            feeds: its inputs; None for random numbers, where they are float32 of fixed shapes.
        """
        self.session = load_session(model.SerializeToString(), threads=1, isa=isa)
        self.binding = self.session.io_binding()
        if feeds is None:
            rng = np.random.default_rng(1)
            feeds = {x.name: rng.standard_normal(x.shape).astype(np.float32) for x in self.session.get_inputs()}
        (output,) = self.session.get_outputs()
        (found,) = self.session.run([output.name], feeds)
        # The binding does not keep its tensors alive.
        self.values = [ort.OrtValue.ortvalue_from_numpy(x) for x in (*feeds.values(), found)]
        for name, value in zip(feeds, self.values, strict=False):
            self.binding.bind_ortvalue_input(name, value)
        self.binding.bind_ortvalue_output(output.name, self.values[-1])

    def milliseconds(self, calls: int) -> float:
        """The CPU time of a call, the mean of several in a row."""
        start = time.thread_time()
        for _ in range(calls):
            self.session.run_with_iobinding(self.binding)
        return (time.thread_time() - start) / calls * 1e3


def take_turns(runners: Mapping[Key, Runner], rounds: int) -> dict[Key, NDArray[np.float64]]:
    """The ms per call of each runner in each round, [rounds] float64."""
    calls = {
        key: max(1, round(SAMPLE_MS / min(runner.milliseconds(3) for _ in range(3)))) for key, runner in runners.items()
    }
    times: dict[Key, list[float]] = {key: [] for key in runners}
    for _ in range(rounds):
        for key, runner in runners.items():
            times[key].append(runner.milliseconds(calls[key]))
    return {key: np.array(found) for key, found in times.items()}


def percentiles(numbers: NDArray[np.float64], digits: int = 4) -> dict[str, float]:
    """The median and the 10th and 90th percentile."""
    p10, median, p90 = (round(float(found), digits) for found in np.percentile(numbers, [10, 50, 90]))
    return {"p10": p10, "median": median, "p90": p90}
