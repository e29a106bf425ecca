"""What the machine reaches: the models that are timed, and the shape of the result. No test asserts a rate."""

from __future__ import annotations

from importlib import resources

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnn_deploy.inspection import inspect_model
from bnn_deploy.runtime import bound
from bnn_deploy.runtime.session import library_info, load_session
from support import bound_models


def packaged(name: str) -> bytes:
    return (resources.files("bnn_deploy") / "_lib" / name).read_bytes()


@pytest.mark.parametrize("name", bound_models.MODELS)
def test_the_files_are_what_the_script_makes(name: str) -> None:
    made, model = bound_models.MODELS[name](), onnx.load_model_from_string(packaged(name))
    assert made.graph.node == model.graph.node
    assert made.metadata_props == model.metadata_props
    for ours, theirs in zip(made.graph.initializer, model.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))


@pytest.mark.parametrize("name", bound_models.MODELS)
def test_the_files_state_their_multiply_accumulates(name: str) -> None:
    report = inspect_model(name, packaged(name))
    assert report.metadata["macs_per_sample"] == str(report.binary_macs + report.float_macs)


def test_the_binary_layer_runs_on_the_instruction_set() -> None:
    for isa in library_info().isas:
        before = library_info().calls[isa]
        session = load_session(packaged(bound.BINARY_MODEL), 1, isa=isa)
        session.run(None, {"x": np.zeros(bound.BINARY_INPUT, np.uint32)})
        assert library_info().calls[isa] > before


def test_rates_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """If each of them took a quarter of a second."""
    monkeypatch.setattr(bound, "_fastest", lambda call: 0.25)
    found = bound.measure_bound("scalar", 1, 64 * 2**20)
    assert found.binary_gmacs == pytest.approx(3 * 14 * 14 * 64 * 5 * 5 * 1024 / 0.25 / 1e9)
    assert found.float_gmacs == pytest.approx(256 * 512 * 512 / 0.25 / 1e9)
    assert found.memory_gbytes == pytest.approx(2 * 4 * 2**20 / 0.25 / 1e9)  # read and written


def test_every_rate_is_measured() -> None:
    before = library_info().calls
    found = bound.measure_bound("scalar", 2, 64 * 2**20)
    assert {isa for isa, calls in library_info().calls.items() if calls > before[isa]} == {"scalar"}
    assert (found.isa, found.threads, found.copy_bytes) == ("scalar", 2, 4 * 2**20)
    assert min(found.binary_gmacs, found.float_gmacs, found.memory_gbytes) > 0
    assert bound.COPY_BYTES == 128 * 2**20


def test_a_copy_copies_all(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(bound.np, "copyto", lambda target, source: copied.append(source.size))
    bound._copy(1001, 3)
    assert sum(copied[:3]) == 1001 and len(copied) % 3 == 0


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [0.03, 0.02, 0.01, 0.02, 0.03, 0.04]
    moments = iter([moment for i, span in enumerate(spans) for moment in (i, i + span)])
    monkeypatch.setattr(bound.time, "perf_counter", lambda: next(moments))
    calls: list[None] = []
    assert bound._fastest(lambda: calls.append(None)) == pytest.approx(0.01)
    assert len(calls) == 1 + 5  # the first is not timed; then both the time and the number are reached
