"""The numbers that `profile` prints, by hand: ratios, shares, rates, and advice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bnn_deploy.cli.profile import print_report
from bnn_deploy.quantities import TIMES
from bnn_deploy.runtime.profile_results import (
    ColdStart,
    Memory,
    ModelProfile,
    NodeTime,
    ProfileReport,
    Speedup,
    Timing,
)
from bnn_deploy.runtime.profiling import profile
from support.small_models import save_binary


def node(name: str, kind: str, ms: float, rate: float | None = None, unused: float | None = None) -> NodeTime:
    """A node of a model whose nodes take 1 ms; the bound is 200 GMAC/s."""
    macs, bound = (None, None) if rate is None else (round(rate * ms * 1e6), rate / 200)
    channels = None if unused is None else 20
    return NodeTime(
        name, "Op", kind, ms, ms, ((1, 2),), ("uint32",), (40,), macs, 3_000_000, channels, unused, rate, 1.5, bound
    )


MODEL = ModelProfile(
    "a/model.onnx",
    1_000,
    (Timing(4, 1, 2.0, 1.5, 2.5, 2000.0), Timing(8, 1, 4.0, 3.5, 4.5, 2000.0)),
    ColdStart(12.0, 0.5),
    Memory(60_000_000, 90_000_000),
    (
        node("conv", "binary layer", 0.5, 100.0, 0.375),
        node("fc", "float layer", 0.3, 10.0),
        node("relu", "other operator", 0.2),
    ),
)
"""The profiled model."""

FASTER, SLOWER = Speedup(0.5, 0.4, 0.6, 0.3, 0.7), Speedup(3.0, 2.5, 3.5, 2.0, 4.0)


def other(name: str, size: int, ratio: Speedup) -> ModelProfile:
    """A compared model, whose times are by a ratio those of MODEL."""
    timings = [replace(timing, median_ms=timing.median_ms * ratio.median, speedup=ratio) for timing in MODEL.timings]
    return replace(MODEL, path=name, file_bytes=size, timings=tuple(timings))


OTHERS = other("faster.onnx", 500, FASTER), other("slower.onnx", 30_000, SLOWER)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    measured = profile(save_binary(tmp_path_factory.mktemp("profile") / "binary.onnx"), runs=1)
    return replace(measured, model=MODEL, compare=OTHERS, batch=4, runs=9)


def lines(report: ProfileReport, capsys: pytest.CaptureFixture[str], **more: bool) -> list[str]:
    """What is printed, with one space between the cells."""
    print_report(report, **more)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_ratios_and_times(report: ProfileReport, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(report, capsys)
    for line in (
        "median 2.000 ms 1.000 ms 6.000 ms",
        "p10 to p90 1.500 to 2.500 ms 1.500 to 2.500 ms 1.500 to 2.500 ms",
        f"model.onnx is 2.00{TIMES} slower 3.00{TIMES} faster",
        f"95 % interval 0.40 to 0.60{TIMES} 2.50 to 3.50{TIMES}",
        f"p10 to p90 of pairs 0.30 to 0.70{TIMES} 2.00 to 4.00{TIMES}",
        "samples per second 2,000 2,000 2,000",
        "cold start: load 12.00 ms 12.00 ms 12.00 ms",
        "first run 0.500 ms 0.500 ms 0.500 ms",
        "file 1.00 kB 500 B 30.0 kB",
        f"model.onnx is 2.00{TIMES} larger 30.00{TIMES} smaller",
        "added by the model 30.0 MB 30.0 MB 30.0 MB",
        "batch 8, 1 thread 4.000 2,000 2.000 0.50 (0.40 to 0.60) 12.00 3.00 (2.50 to 3.50)",
    ):
        assert line in found


def test_nodes(report: ProfileReport, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(report, capsys)
    for line in (
        f"conv Op 1{TIMES}40 bits 0.500 50.0% 100.0 50%",
        f"binary layers 1 0.500 50.0% 2.00{TIMES} as fast",
        f"other operators 1 0.200 20.0% 1.25{TIMES} as fast",
        f"Half of the time or more: conv (50.0%), together 50.0%; without them 2.00{TIMES} as fast.",
        "Layers on floats: fc (30.0%).",
        "Not part of a layer: 1 Op (20.0%).",
        "Words of 32 bits that the channels do not fill: conv (20 channels, 37.5% unused).",
    ):
        assert line in found
    assert f"conv Op 1{TIMES}40 bits 0.500 50.0% 50.0 M 1.5 100.0 50%" in lines(report, capsys, verbose=True)
