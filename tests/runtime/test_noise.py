"""When a profile says that its runs were disturbed. The numbers are made up: the machine of a test may be busy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bnn_deploy import cli
from bnn_deploy.cli import profile as command
from bnn_deploy.runtime import profile_results
from bnn_deploy.runtime.profile_results import (
    NOISY_INTERVAL,
    NOISY_SPREAD,
    NOISY_WAIT,
    ProfileReport,
    Speedup,
)
from bnn_deploy.runtime.profiling import profile
from support.small_models import save_binary, save_float


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of users, which tests/conftest.py lifts."""
    for name, value in (
        ("NOISY_SPREAD", NOISY_SPREAD),
        ("NOISY_WAIT", NOISY_WAIT),
        ("NOISY_INTERVAL", NOISY_INTERVAL),
    ):
        assert value < 10
        monkeypatch.setattr(profile_results, name, value)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    folder = tmp_path_factory.mktemp("noise")
    return profile(save_binary(folder / "binary.onnx"), save_float(folder / "float.onnx"), runs=1)


def report(measured: ProfileReport, p90_ms: float = 1.1, high: float = 2.1, cpu: float | None = 1.0) -> ProfileReport:
    """A profile whose runs take 1 ms to p90_ms; the other model's take twice as long, 1.9 to `high` times."""
    (timing,) = measured.model.timings
    model = replace(measured.model, timings=(replace(timing, p10_ms=1.0, median_ms=1.0, p90_ms=p90_ms),))
    ratio = Speedup(2.0, 1.9, high, 1.8, 2.2)
    other = replace(timing, p10_ms=2.0, median_ms=2.0, p90_ms=2.2, speedup=ratio)
    compared = replace(measured.compare[0], timings=(other,))
    return replace(measured, model=model, compare=(compared,), cpu_share=cpu)


def test_a_quiet_run_says_nothing(measured: ProfileReport) -> None:
    assert report(measured).noisy == ()
    assert report(measured, cpu=None).noisy == ()
    assert report(measured, p90_ms=1.5, cpu=0.9).noisy == ()
    assert "NOISY" not in str(report(measured))


def test_what_a_disturbed_run_says(measured: ProfileReport) -> None:
    assert report(measured, cpu=0.62).noisy == ("the timed runs had a CPU for only 62% of their time: others used it",)
    assert report(measured, p90_ms=4.0).noisy == (
        "the runs of binary.onnx with batch 1 and 1 thread took 1.000 to 4.000 ms (p10 to p90), 4.0 times as long",
    )
    assert report(measured, high=3.9).noisy == (
        "the speed-up over float.onnx with batch 1 and 1 thread is uncertain by 50%",
    )
    everything = report(measured, 4.0, 3.9, 0.62)
    assert len(everything.noisy) == 3 and "NOISY" in str(everything)
    assert everything.to_json()["noisy"] == list(everything.noisy)


def test_only_the_worst_setting_is_named(measured: ProfileReport) -> None:
    noisy = report(measured, p90_ms=4.0)
    worse = replace(noisy.model.timing, threads=2, p90_ms=5.0)
    noisy = replace(noisy, model=replace(noisy.model, timings=(noisy.model.timing, worse)))
    (reason,) = noisy.noisy
    assert "batch 1 and 2 threads took 1.000 to 5.000 ms" in reason and reason.endswith("(the worst of 2)")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_command_says_so_on_stderr(
    measured: ProfileReport, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "profile", lambda *args, **kwargs: report(measured, p90_ms=4.0))
    arguments = ["profile", str(save_binary(tmp_path / "m.onnx")), *options]
    result = CliRunner().invoke(cli.main, arguments, prog_name="bnn-deploy")
    assert result.exit_code == 0
    first, last = result.stderr.splitlines()
    assert first.startswith("NOISY: the runs of binary.onnx")
    assert last == "NOISY: close other programs, or give more runs, and measure again"
    assert options or "1.000 ms NOISY" in result.stdout
