"""What `profile` measures and reports. No test asserts a time: machines are busy."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.files import model_bytes
from bnn_deploy.runtime import profiling
from bnn_deploy.runtime.profiling import node_times, profile
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
    assert report.compare is not None
    assert report.speedup is not None
    assert report.input_shapes == {"x": (3, 1, 28, 28)}
    assert (report.threads, report.runs, report.batch, report.data) == (1, 7, 3, None)
    for item in (report.model, report.compare):
        timing = item.timing
        assert 0 < timing.p10_ms <= timing.median_ms <= timing.p90_ms
        assert timing.samples_per_second == pytest.approx(3 / timing.median_ms * 1000)
        assert 0 < item.memory.baseline_bytes < item.memory.peak_bytes
        assert sum(node.share for node in item.nodes) == pytest.approx(1)
        assert sum(op.nodes for op in item.ops) == len(item.nodes)
    assert report.speedup.median == pytest.approx(report.compare.timing.median_ms / report.model.timing.median_ms)
    shapes = {node.op_type: node.output_shapes for node in report.model.nodes}
    assert shapes["BinaryConv"] == ((3, 500, 1, 1),)
    assert shapes["BinaryConvThreshold"] == ((3, 8, 8, 2),)
    assert "MatMul" in {op.op_type for op in report.compare.ops}
    assert steps[:2] == ["loading", "timing 7 runs"]
    assert str(report).startswith(f"{binary}: ")
    again = json.loads(json.dumps(report.to_json()))
    assert again["model"]["memory"]["model_bytes"] == report.model.memory.model_bytes
    assert again["isa"] == library_info().selected


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
    assert report.compare is not None
    assert {"BinaryConv", "Binarize"} <= {op.op_type for op in report.model.ops}
    assert {"BinaryConv", "Binarize"}.isdisjoint(op.op_type for op in report.compare.ops)


@dataclass
class FakeSession:
    """Notes its runs."""

    name: str
    log: list[str] = field(default_factory=list)

    def run(self, _: None, feed: dict[str, Any]) -> None:
        self.log.append(self.name)


def test_models_run_in_turns() -> None:
    log: list[str] = []
    settings = [profiling._Setting(name, False, 1, None) for name in "ab"]
    times = profiling._time_in_turns(settings, [FakeSession("a", log), FakeSession("b", log)], [{}, {}], 4)
    assert times.shape == (2, 4)
    assert log[2 * profiling.WARMUP_RUNS :] == ["a", "b"] * 4
    assert log.count("a") == log.count("b") == profiling.WARMUP_RUNS + 4


def test_statistics_by_hand() -> None:
    model = np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    other = np.array([4.0, 4.0, 5.0, 3.0, 4.0])
    speedup = profiling._speedup(model, other)
    assert speedup.median == 4.0
    # Pairwise 4, 2, 5, 3, 4: sorted 2, 3, 4, 4, 5; the 10th percentile is 40 % of the way from 2 to 3.
    assert (speedup.p10, speedup.p90) == (pytest.approx(2.4), pytest.approx(4.6))
    timing = profiling._timing(other, samples=8)
    assert (timing.median_ms, timing.samples_per_second) == (4.0, 2000.0)
    assert (timing.p10_ms, timing.p90_ms) == (pytest.approx(3.4), pytest.approx(4.6))


def event(name: str, index: str, dur: int, op: str, shape: list[int], cat: str = "Node") -> dict[str, Any]:
    args = {"node_index": index, "op_name": op, "output_type_shape": [{"float": shape}]}
    return {"cat": cat, "name": name, "dur": dur, "args": args}


def test_node_times_by_hand() -> None:
    events = [event("run", "", 99_999, "", [], cat="Session")]
    for conv, relu in ((900, 700), (30, 10), (50, 10), (40, 30)):  # the first run is the warm-up
        events.append(event("conv_kernel_time", "0", conv, "Conv", [1, 2]))
        events.append(event("conv_fence_before", "0", 5000, "Conv", [1, 2]))
        events.append(event("same_kernel_time", "1", relu, "Relu", [3]))
        events.append(event("same_kernel_time", "2", 50, "Relu", [4]))  # another node of the same name
    nodes = node_times(events, warmup=1)
    assert [(node.name, node.op_type, node.median_ms, node.output_shapes) for node in nodes] == [
        ("conv", "Conv", 0.04, ((1, 2),)),
        ("same", "Relu", 0.01, ((3,),)),
        ("same", "Relu", 0.05, ((4,),)),
    ]
    assert [node.share for node in nodes] == [pytest.approx(share) for share in (0.4, 0.1, 0.5)]
    assert node_times(events, warmup=0)[0].median_ms == 0.045
    assert node_times([], warmup=1) == ()


def test_memory_is_that_of_the_one_model(tmp_path: Path) -> None:
    ballast = np.ones(25_000_000)  # 200 MB in this process, which the measuring process must not inherit
    large = save_float(tmp_path / "large.onnx", hidden=500)  # 500 * 24 * 24 * 10 weights: 11.5 MB
    small = save_float(tmp_path / "small.onnx", hidden=2)
    report = profile(large, small, runs=1)
    assert report.compare is not None
    assert report.model.file_bytes > 11_500_000
    assert report.model.memory.model_bytes > 11_500_000 > report.compare.memory.model_bytes
    assert report.model.memory.peak_bytes < ballast.nbytes


def test_a_dead_memory_process_is_reported(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = profiling._Setting(str(binary), True, 1, "mmx")
    with pytest.raises(
        SetupError, match=r"binary\.onnx: the process that measures its memory ended with status 1: .*mmx"
    ):
        profiling._measure_memory(setting, {"x": np.zeros((1, 1, 28, 28), np.float32)})


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

    def no_timing(settings: Any, sessions: Any, feeds: Any, runs: int) -> np.ndarray:
        seen.extend(feeds[0].values())
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
    assert np.all(feed == 200)
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
