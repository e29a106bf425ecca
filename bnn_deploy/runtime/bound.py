"""What this machine reaches: the fastest layers measured here, and its memory bandwidth.

A bound to hold the layers of a model against, as in the roofline model (S. Williams, A. Waterman, D. Patterson,
Roofline: an insightful visual performance model for multicore architectures, CACM 52(4), 2009). It is measured with the
operators that models run on, so it is no theoretical peak: a layer may come out above it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

import numpy as np

from bnn_deploy.runtime.session import load_session

BINARY_MODEL, FLOAT_MODEL = "bound_binary.onnx", "bound_float.onnx"
"""The models that are timed, in the package: tests/support/bound_models.py makes them."""

BINARY_INPUT = (3, 18, 18, 32)
"""Bits of 1024 channels, 18x18 pixels, 3 images: 41 kB each. Long sums over data that stays in the caches are what the
kernels are fastest at; three images make the call's own time small."""

FLOAT_INPUT = (256, 512)

SECONDS = 0.05
"""Time to spend on each of the three."""

LEAST_RUNS = 5
"""Timed runs of each at least: the fastest of a few is hardly one that another program disturbed."""

COPY_BYTES = 128 * 2**20
"""Size of the array that is copied, where the machine's memory allows: more than most caches hold."""

COPY_SHARE = 16
"""The array has at most this part of the memory."""


@dataclass(frozen=True)
class Bound:
    """The highest rates measured on this machine, right after the timed runs and with as many threads.

    Attributes:
        isa: the instruction set that the binary layer ran on.
        threads: intra-op threads.
        binary_gmacs: 10^9 products of bits per second of the fastest binary layer measured: BinaryConvThreshold, 1024
            to 64 channels, 5x5, 18x18 pixels, no padding, 3 images.
        float_gmacs: 10^9 float32 multiply-accumulates per second of the fastest float layer measured: MatMul by
            onnxruntime, [256, 512] x [512, 512].
        memory_gbytes: 10^9 bytes per second read and written by copying `copy_bytes` by numpy with that many threads.
            The bytes are counted once where they are read and once where they are written, as in STREAM.
        copy_bytes: size of the copied array.
    """

    isa: str
    threads: int
    binary_gmacs: float
    float_gmacs: float
    memory_gbytes: float
    copy_bytes: int


def measure_bound(isa: str, threads: int, memory_bytes: int | None) -> Bound:
    """Measure the three rates, in a fraction of a second.

    Args:
        isa: the instruction set of the binary layer.
        threads: of each.
        memory_bytes: the machine's memory; None if it is unknown.

    Raises:
        SetupError: as `load_session`.
    """
    copied = COPY_BYTES if memory_bytes is None else min(COPY_BYTES, memory_bytes // COPY_SHARE)
    return Bound(
        isa=isa,
        threads=threads,
        binary_gmacs=_layer(BINARY_MODEL, BINARY_INPUT, threads, isa),
        float_gmacs=_layer(FLOAT_MODEL, FLOAT_INPUT, threads, None),
        memory_gbytes=_copy(copied, threads),
        copy_bytes=copied,
    )


def _layer(model: str, shape: tuple[int, ...], threads: int, isa: str | None) -> float:
    """10^9 multiply-accumulates per second of one of the two models, whose metadata has their number per sample."""
    content = (resources.files("bnn_deploy") / "_lib" / model).read_bytes()
    session = load_session(content, threads, isa=isa)
    macs = shape[0] * int(session.get_modelmeta().custom_metadata_map["macs_per_sample"])
    (info,) = session.get_inputs()
    rng = np.random.default_rng(0)
    if info.type == "tensor(uint32)":
        feed = {info.name: rng.integers(0, 2**32, shape, np.uint32)}
    else:
        feed = {info.name: rng.standard_normal(shape, np.float32)}
    return macs / _fastest(lambda: session.run(None, feed)) / 1e9


def _copy(size: int, threads: int) -> float:
    """10^9 bytes per second that are read and written by copying `size` bytes."""
    source = np.ones(size, np.uint8)
    target = np.zeros_like(source)
    target.fill(0)  # memory that nobody has written has no pages yet
    edges = [math.ceil(size * i / threads) for i in range(threads + 1)]
    parts = [slice(low, high) for low, high in pairwise(edges)]

    def copy(part: slice) -> None:
        np.copyto(target[part], source[part])  # without Python's lock

    with ThreadPoolExecutor(threads) as pool:
        return 2 * size / _fastest(lambda: list(pool.map(copy, parts))) / 1e9


def _fastest(call: Callable[[], object]) -> float:
    """The shortest time of a call, in seconds; the first one is not timed."""
    call()
    times: list[float] = []
    while len(times) < LEAST_RUNS or sum(times) < SECONDS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
