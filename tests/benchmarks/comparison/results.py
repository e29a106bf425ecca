"""The engines' names, and what is found about them: times, errors, cold starts, proofs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OURS, OURS_INT8 = "bnn-deploy", "bnn-deploy, int8 edges"
FLOAT, INT8 = "onnxruntime fp32", "onnxruntime int8"
OPENVINO, LARQ = "OpenVINO binary", "Larq"
ENGINES = [OURS, OURS_INT8, FLOAT, INT8, OPENVINO, LARQ]
"""All engines, in the order of the tables."""

PEERS = [FLOAT, INT8, OPENVINO, LARQ]
"""The engines that bnn-deploy is compared with."""


@dataclass(frozen=True)
class Result:
    """One engine's figures on one workload; times in ms per run (one run is one batch).

    Attributes:
        workload: its title.
        kind: "layer" or "network".
        batch: samples per run.
        engine: one of ENGINES.
        isa: the instruction set of bnn-deploy's kernels; "" for other engines.
        threads: of the engine.
        median_ms: of all timed runs.
        p10_ms: their 10th percentile.
        p90_ms: their 90th percentile.
        runs: number of timed runs.
        errors: relative error of each checked sample, see `relative_errors`.
        tolerance: largest relative error of a correct sample.
        share: minimum share of samples within the tolerance.
    """

    workload: str
    kind: str
    batch: int
    engine: str
    isa: str
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    errors: list[float]
    tolerance: float
    share: float

    @property
    def within(self) -> int:
        """The number of samples whose relative error is within the tolerance."""
        return sum(error <= self.tolerance for error in self.errors)

    @property
    def right(self) -> bool:
        """Whether the engine computes the reference's values."""
        return self.within >= self.share * len(self.errors)


@dataclass(frozen=True)
class ColdStart:
    """What an engine needs until it has its first result, in a fresh process; medians of several processes.

    Attributes:
        workload: the network's title.
        engine: one of ENGINES.
        load_ms: from the model's file to the end of the first run; the engine is imported before.
        added_mb: how much loading and the first run raise the process's peak memory (VmHWM), in 10^6 bytes.
        before_mb: the process's memory before, with the engine imported.
    """

    workload: str
    engine: str
    load_ms: float
    added_mb: float
    before_mb: float


@dataclass(frozen=True)
class Proof:
    """What `bnn_deploy.verify` says of a network against its float ONNX file.

    Attributes:
        workload: the network's title.
        passed: its verdict.
        samples: number of inputs.
        isas: the instruction sets whose kernels ran.
        bits: bits compared with the float model's signs, each layer fed with the float model's own activations.
        bits_differ: those that differ.
    """

    workload: str
    passed: bool
    samples: int
    isas: list[str]
    bits: int
    bits_differ: int


def relative_errors(y: NDArray[np.float32], reference: NDArray[np.float32]) -> list[float]:
    """|y - reference| / |reference - its mean| (Euclidean norms) per sample; infinite where a value is not finite."""
    y, reference = y.reshape(len(y), -1), reference.reshape(len(reference), -1)
    if y.shape != reference.shape:
        return [float("inf")] * len(reference)
    spread = np.linalg.norm(reference - reference.mean(axis=1, keepdims=True), axis=1)
    errors = np.linalg.norm(y - reference, axis=1) / spread
    return [float(error) if np.isfinite(error) else float("inf") for error in errors]
