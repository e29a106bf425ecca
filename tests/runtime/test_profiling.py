"""What `profile` measures and reports. No test asserts a time: machines are busy."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.files import model_bytes
from bnn_deploy.progress import ProgressStep
from bnn_deploy.runtime import profiling
from bnn_deploy.runtime.profile_results import Memory
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import library_info
from support.small_models import save_binary, save_float


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return save_binary(tmp_path / "binary.onnx")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return save_float(tmp_path / "float.onnx")


def test_report_of_two_models(binary: Path, flat: Path) -> None:
    steps: list[str] = []
    report = profile(binary, flat, runs=7, batch=3, progress=steps.append)
    assert report.models == (report.model, *report.compare)
    (compared,) = report.compare
    assert report.input_shapes == {"x": (3, 1, 28, 28)}
    assert (report.threads, report.runs, report.batch, report.data) == (1, 7, 3, None)
    for item in report.models:
        (timing,) = item.timings
        assert (timing.batch, timing.threads) == (3, 1)
        assert item.cold_start.load_ms > 0 and item.cold_start.first_run_ms > 0
        assert 0 < timing.p10_ms <= timing.median_ms <= timing.p90_ms
        assert timing.samples_per_second == pytest.approx(3 / timing.median_ms * 1000)
        assert 0 < item.memory.baseline_bytes < item.memory.peak_bytes
        assert sum(node.share for node in item.nodes) == pytest.approx(1)
        assert sum(op.nodes for op in item.ops) == sum(kind.nodes for kind in item.kinds) == len(item.nodes)
        assert sum(node.share for node in item.dominant) >= 0.5 > sum(node.share for node in item.dominant[:-1])
    assert report.model.timing.speedup is None
    assert report.speedup is compared.timing.speedup is not None
    assert report.speedup.low is not None and report.speedup.high is not None
    assert report.speedup.low <= report.speedup.median <= report.speedup.high
    shapes = {node.op_type: node.output_shapes for node in report.model.nodes}
    assert shapes["BinaryConv"] == ((3, 500, 1, 1),)
    assert shapes["BinaryConvThreshold"] == ((3, 8, 8, 2),)
    assert "MatMul" in {op.name for op in compared.ops}
    assert steps[:2] == ["loading", "timing 7 runs"]
    shares = [step.share for step in steps if isinstance(step, ProgressStep)]
    assert shares == sorted(shares) and len(shares) == len(steps) and 0 <= shares[0] < shares[-1] < 1
    assert str(report).startswith(f"{binary}: ")
    again = json.loads(json.dumps(report.to_json()))
    assert again["model"]["memory"]["model_bytes"] == report.model.memory.model_bytes
    assert again["isa"] == again["bound"]["isa"] == library_info().selected
    assert again["speedup"] == again["compare"][0]["timing"]["speedup"]
    assert again["model"]["advice"]["half_filled"] == [node.name for node in report.model.half_filled]


def test_the_isa_is_the_one_that_ran(binary: Path, flat: Path) -> None:
    isas = library_info().isas
    assert "scalar" in isas
    for isa in isas:
        report = profile(binary, runs=2, isa=isa)
        assert report.isa == isa
        assert set(report.isa_calls) == {isa}
    float_only = profile(flat, runs=2)
    assert float_only.isa is None
    assert float_only.isa_calls == {}
    with pytest.raises(SetupError, match="BNN_DEPLOY_ISA"):
        profile(binary, runs=2, isa="mmx")


def test_the_compared_model_runs_without_our_kernels(binary: Path) -> None:
    report = profile(binary, binary, runs=2)
    (compared,) = report.compare
    assert {"BinaryConv", "Binarize"} <= {op.name for op in report.model.ops}
    assert {"BinaryConv", "Binarize"}.isdisjoint(op.name for op in compared.ops)


@dataclass
class FakeSession:
    """Notes its runs."""

    name: str
    log: list[str] = field(default_factory=list)

    def run(self, _: None, feed: dict[str, Any]) -> None:
        self.log.append(self.name)


def entrant(name: str, log: list[str], threads: int = 1) -> profiling._Entrant:
    return profiling._Entrant(profiling._Setting(name, False, threads, None), FakeSession(name, log), {})


def test_models_run_in_turns() -> None:
    log: list[str] = []
    times, cpu_share = profiling._time_in_turns([entrant("a", log), entrant("b", log), entrant("c", log)], 4)
    assert times.shape == (3, 4)
    assert log[3 * profiling.WARMUP_RUNS :] == [*"aa", *"bb", *"cc"] * 4  # the first of two is not timed
    log.clear()
    profiling._time_in_turns([entrant("a", log)], 4)
    assert log == ["a"] * (profiling.WARMUP_RUNS + 4)
    assert cpu_share is not None and 0 <= cpu_share <= 1


def test_timed_runs_tell_how_many_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two rounds; the timed run that follows has an untimed one before it."""
    log: list[str] = []
    monkeypatch.setattr(profiling, "TELL_S", -1.0)
    profiling._time_in_turns([entrant("a", log)], 3, lambda done: log.append(str(done)))
    assert "".join(log[profiling.WARMUP_RUNS :]) == "0aa1aa2aa"
    log.clear()
    monkeypatch.setattr(profiling, "TELL_S", 1e9)
    profiling._time_in_turns([entrant("a", log)], 3, lambda done: log.append(str(done)))
    assert "".join(log[profiling.WARMUP_RUNS :]) == "aaa"


def test_threads_of_another_session_go_to_sleep_before_a_timed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(profiling, "WARM_S", 0.0)
    monkeypatch.setattr(profiling.time, "sleep", lambda seconds: log.append("pause"))
    monkeypatch.setattr(profiling.time, "process_time", lambda: 0.0)
    one, other = entrant("1", log), entrant("2", log, threads=2)
    again = profiling._Entrant(other.setting, other.session, {})  # another batch size of the same session
    profiling._time_in_turns([one, other, again], 2)
    turn = ["pause", *"11", *"22", *"22"]  # each timed run is behind an untimed one
    assert log[3 * profiling.WARMUP_RUNS :] == turn * 2
    log.clear()
    assert profiling._time_in_turns([other, again], 1)[1] is None
    assert "pause" not in log


def test_waits_while_threads_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(profiling.time, "sleep", pauses.append)
    spun = iter([0.0, 0.02, 0.02, 0.022, 0.022, 0.022])
    monkeypatch.setattr(profiling.time, "process_time", lambda: next(spun))
    profiling._wait_for_idle_threads()
    assert pauses == [profiling.QUIET_S] * 3
    endless = iter(range(10**6))
    monkeypatch.setattr(profiling.time, "process_time", lambda: next(endless))
    profiling._wait_for_idle_threads()
    assert len(pauses) == 3 + profiling.MOST_PAUSES


def test_settings(binary: Path, flat: Path) -> None:
    report = profile(binary, [flat, binary], runs=2, batch=[1, 3], threads=[1, 2, 1])
    assert [item.path for item in report.models] == [str(binary), str(flat), str(binary)]
    for item in report.models:
        assert [(t.threads, t.batch) for t in item.timings] == [(1, 1), (1, 3), (2, 1), (2, 3)]
        assert [t.speedup is None for t in item.timings] == [item is report.model] * 4
    assert (report.batch, report.threads, report.bound.threads) == (1, 1, 1)
    assert report.input_shapes == {"x": (1, 1, 28, 28)}


def test_statistics_by_hand() -> None:
    model = np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    other = np.array([4.0, 4.0, 5.0, 3.0, 4.0])
    (first,), (second,) = profiling._timings([(8, 1), (8, 1)], np.stack([model, other]), 2)
    assert first.speedup is None and second.speedup is not None
    # Pairwise 4, 2, 5, 3, 4: sorted 2, 3, 4, 4, 5; the 10th percentile is 40 % of the way from 2 to 3.
    assert second.speedup.median == 4.0
    assert (second.speedup.p10, second.speedup.p90) == (pytest.approx(2.4), pytest.approx(4.6))
    assert (second.speedup.low, second.speedup.high) == (None, None)
    assert (second.median_ms, second.samples_per_second) == (4.0, 2000.0)
    assert (second.p10_ms, second.p90_ms) == (pytest.approx(3.4), pytest.approx(4.6))


def test_each_timing_is_compared_in_its_own_setting() -> None:
    settings = [(1, 1), (1, 1), (8, 1), (8, 1)]
    first, second = profiling._timings(settings, np.array([[1.0], [2.0], [10.0], [50.0]]), 2)
    assert [timing.median_ms for timing in first] == [1.0, 10.0]
    assert [timing.speedup and timing.speedup.median for timing in second] == [2.0, 5.0]


def test_memory_is_that_of_the_one_model(tmp_path: Path) -> None:
    ballast = np.ones(25_000_000)  # 200 MB in this process, which the measuring process must not inherit
    large = save_float(tmp_path / "large.onnx", hidden=500)  # 500 * 24 * 24 * 10 weights: 11.5 MB
    small = save_float(tmp_path / "small.onnx", hidden=2)
    report = profile(large, small, runs=1)
    (compared,) = report.compare
    assert report.model.file_bytes > 11_500_000
    assert report.model.memory.model_bytes > 11_500_000 > compared.memory.model_bytes
    assert report.model.memory.peak_bytes < ballast.nbytes


def test_cold_start_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading took 1 s and the first run 0.25 s; the model added 30 bytes to a process of 100."""
    moments, sizes = iter([5.0, 6.0, 6.25, 6.26, 6.27]), iter([100, 130])
    setting = {"path": "m.onnx", "kernels": True, "threads": 1, "isa": None}
    task = {"setting": setting, "names": ["x"], "inputs": str(tmp_path / "x.npz")}
    np.savez(tmp_path / "x.npz", np.zeros(3))
    monkeypatch.setattr(sys, "argv", ["-c", json.dumps(task)])
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(profiling, "peak_memory", lambda: next(sizes))
    monkeypatch.setattr(profiling, "reset_peak_memory", lambda: None)
    monkeypatch.setattr(profiling._Setting, "session", lambda self: SimpleNamespace(run=lambda names, feed: None))
    profiling._start_process()
    measured = json.loads(capsys.readouterr().out)
    assert measured["start"] == {"load_ms": pytest.approx(1000), "first_run_ms": pytest.approx(250)}
    assert measured["memory"] == {"baseline_bytes": 100, "peak_bytes": 130}
    assert Memory(**measured["memory"]).model_bytes == 30


def test_a_dead_memory_process_is_reported(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = profiling._Setting(str(binary), True, 1, "mmx")
    with pytest.raises(
        SetupError, match=r"binary\.onnx: the process that measures its memory ended with status 1: .*mmx"
    ):
        profiling._measure_start(setting, {"x": np.zeros((1, 1, 28, 28), np.float32)})


def test_nothing_is_left_behind(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    here = set(tmp_path.rglob("*"))
    profile(binary, runs=1)
    assert set(tmp_path.rglob("*")) == here


# --- inputs ---------------------------------------------------------------------------------------


def feed_of(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> np.ndarray:
    """The input that `profile` runs the model on."""
    seen: list[np.ndarray] = []

    def no_timing(entrants: Any, *_: Any) -> np.ndarray:
        seen.extend(entrants[0].feed.values())
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling, "_time_in_turns", no_timing)
    with pytest.raises(KeyboardInterrupt):
        profile(path, **options)
    return seen[0]


def test_data_files(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).standard_normal((10, 1, 28, 28)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "named.npz", labels=np.arange(10), x=images)
    np.savez(tmp_path / "unnamed.npz", images=images, labels=np.arange(10))
    np.save(tmp_path / "bytes.npy", np.full((10, 1, 28, 28), 200, np.uint8))
    for name in ("images.npy", "named.npz", "unnamed.npz"):
        feed = feed_of(binary, monkeypatch, data=tmp_path / name, batch=4)
        assert np.array_equal(feed, images[:4])
    feed = feed_of(binary, monkeypatch, data=tmp_path / "bytes.npy")
    assert feed.dtype == np.float32
    assert np.allclose(feed, 200 / 255)
    assert feed_of(binary, monkeypatch).shape == (1, 1, 28, 28)


def test_data_that_does_not_fit(binary: Path, tmp_path: Path) -> None:
    bad = {
        "wrong shape": (
            np.zeros((10, 28, 28), np.float32),
            r"\[10, 28, 28\] does not fit input x of .*, \[N, 1, 28, 28\]",
        ),
        "wrong size": (np.zeros((10, 1, 28, 27), np.float32), r"\[10, 1, 28, 27\] does not fit input x"),
        "too few": (np.zeros((3, 1, 28, 28), np.float32), "holds 3 samples, fewer than the batch of 4"),
        "complex": (np.zeros((4, 1, 28, 28), np.complex64), r"complex64 does not fit input x of .*, tensor\(float\)"),
        "pickle": (np.array([{}], dtype=object), r"not a \.npy or \.npz file of plain arrays"),
    }
    for name, (array, message) in bad.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match=message) as caught:
            profile(binary, data=tmp_path / f"{name}.npy", batch=4)
        assert str(caught.value).startswith(str(tmp_path / name))
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("text.npz", "empty.npy"):
        with pytest.raises(InputError, match=r"not a \.npy or \.npz file"):
            profile(binary, data=tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        profile(binary, data=tmp_path / "absent.npy")


def test_a_fixed_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_binary(tmp_path / "four.onnx", batch=4)
    assert feed_of(path, monkeypatch).shape == (4, 1, 28, 28)
    assert feed_of(path, monkeypatch, batch=4).shape == (4, 1, 28, 28)
    with pytest.raises(InputError, match="input x has a fixed batch of 4: batch 2 does not fit"):
        profile(path, batch=2)
    np.save(tmp_path / "ten.npy", np.zeros((10, 1, 28, 28), np.float32))
    assert feed_of(path, monkeypatch, data=tmp_path / "ten.npy").shape == (4, 1, 28, 28)
    with pytest.raises(InputError, match="fixed batch of 4"):
        profile(path, batch=2, data=tmp_path / "ten.npy")


def test_an_unknown_image_size_needs_data(tmp_path: Path) -> None:
    path = save_float(tmp_path / "float.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "W"
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"input x has shape \[N, 1, 28, W\]: give data"):
        profile(path)


def test_models_that_do_not_fit_each_other(binary: Path, tmp_path: Path) -> None:
    other = save_float(tmp_path / "rgb.onnx", channels=3)
    with pytest.raises(InputError, match=r"rgb\.onnx: input x is \[N, 3, 28, 28\], the other model's \[1, 1, 28, 28\]"):
        profile(binary, other)


@pytest.mark.parametrize("name", ["threads", "runs", "batch"])
def test_numbers_out_of_range(binary: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0: it must be at least 1"):
        profile(binary, **{name: 0})


def test_lists_of_numbers_out_of_range(binary: Path) -> None:
    for numbers in ([], [1, 0]):
        with pytest.raises(InputError, match="batch is 0: it must be at least 1"):
            profile(binary, batch=numbers)


def test_more_threads_than_make_sense(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, most in ((1, 16), (8, 32)):
        monkeypatch.setattr(profiling, "usable_cpus", lambda cpus=cpus: cpus)
        with pytest.raises(InputError, match=rf"threads is 300: at most {most} are measured .* use {cpus} CPU"):
            profile(binary, threads=[1, 300])


def test_bad_model_files(binary: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(binary.read_bytes()[:5000])
    for name in ("half.onnx", "absent.onnx"):
        with pytest.raises(InputError, match=re.escape(name)):
            profile(tmp_path / name)


def test_model_bytes_with_external_data(flat: Path, tmp_path: Path) -> None:
    assert model_bytes(flat) == flat.stat().st_size
    onnx.save(onnx.load(flat), tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin")
    sizes = [(tmp_path / name).stat().st_size for name in ("outside.onnx", "weights.bin")]
    assert model_bytes(tmp_path / "outside.onnx") == sum(sizes)
    assert sizes[1] > 100 * sizes[0]
