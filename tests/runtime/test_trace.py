"""The trace that `profile` writes: the Trace Event Format, and times that fit each other."""

from __future__ import annotations

import copy
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.errors import InputError
from bnn_deploy.runtime.profiling import WARMUP_RUNS, profile
from bnn_deploy.runtime.trace import trace_events
from support.small_models import save_binary, save_float


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("trace")
    models = save_binary(folder / "binary.onnx"), save_float(folder / "float.onnx")
    profile(*models, runs=3, trace=folder / "trace.json")
    return json.loads((folder / "trace.json").read_text())


def problems(trace: dict[str, Any]) -> list[str]:
    """Breaches of the format, and nodes outside of runs or longer than them."""
    found = []
    events = trace["traceEvents"]
    names = {event["pid"] for event in events if event["ph"] == "M" and event["name"] == "process_name"}
    for event in events:
        if event["ph"] == "M":
            continue
        if event["ph"] != "X" or not isinstance(event["name"], str) or not isinstance(event["args"], dict):
            found.append(f"{event} is no complete event")
        if not all(isinstance(event[key], int) and event[key] >= 0 for key in ("ts", "dur", "pid", "tid")):
            found.append(f"{event} has no integer times or places")
        if event["pid"] not in names:
            found.append(f"{event} belongs to no named process")
    for process in names:
        own = [event for event in events if event["pid"] == process and event["ph"] == "X"]
        runs = [event for event in own if event["name"] == "model_run"]
        nodes = [event for event in own if event["cat"] == "node"]
        if len(runs) != WARMUP_RUNS + 3:
            found.append(f"{len(runs)} runs")
        inside = 0
        for run in runs:
            end = run["ts"] + run["dur"]
            of_run = [event for event in nodes if run["ts"] <= event["ts"] <= end]
            inside += len(of_run)
            # A begin and a duration are each cut to whole microseconds.
            if sum(event["dur"] for event in of_run) > run["dur"] + 1 + len(of_run):
                found.append("the nodes of a run take longer than it")
        if inside != len(nodes):
            found.append(f"{len(nodes) - inside} nodes outside of all runs")
    return found


METADATA = {"process_name": ("name", str), "process_sort_index": ("sort_index", int)}
"""The metadata events that the format knows and the trace has: the argument that each must have, and its type."""


def breaches(trace: dict[str, Any]) -> list[str]:
    """Breaches of the Trace Event Format, and of what Perfetto wants besides: it drops such events or shows no name.

    Times are in µs, and may be fractions. Process and thread 0 are Perfetto's idle ones. Of two events of a thread that
    begin together, the one that holds the other comes first: Perfetto keeps the order of the file then.
    """
    found = []
    if trace.keys() != {"traceEvents", "displayTimeUnit"} or trace["displayTimeUnit"] not in ("ms", "ns"):
        found.append("not the format's JSON object")
    seen: list[dict[str, Any]] = []
    for event in trace["traceEvents"]:
        kind, name, args = (event.get(key) for key in ("ph", "name", "args"))
        if not (isinstance(name, str) and name and isinstance(args, dict)):
            found.append(f"{event} has no name or no arguments")
        elif kind == "M":
            key, type_ = METADATA.get(name, ("", object))
            if event.keys() != {"ph", "name", "pid", "args"} or set(args) != {key} or type(args[key]) is not type_:
                found.append(f"{event} is no metadata of a process")
        elif kind != "X" or event.keys() != {"ph", "name", "cat", "ts", "dur", "pid", "tid", "args"}:
            found.append(f"{event} is no complete event")
        elif not all(type(event[key]) in (int, float) and event[key] >= 0 for key in ("ts", "dur")):
            found.append(f"{event} has no times")
        else:
            before = [e for e in seen if (e["pid"], e["tid"], e["ts"]) == (event["pid"], event["tid"], event["ts"])]
            if any(e["dur"] < event["dur"] for e in before):
                found.append(f"{event} comes behind what it holds")
            seen.append(event)
        if not all(type(event[key]) is int and event[key] > 0 for key in ("pid", "tid") if key != "tid" or kind != "M"):
            found.append(f"{event} belongs to no process or thread")
    return found


def test_the_format_is_perfettos(trace: dict[str, Any]) -> None:
    assert breaches(trace) == []


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("X", "ph", "B"),
        ("X", "name", ""),
        ("X", "ts", "12"),
        ("X", "dur", None),
        ("X", "dur", -1),
        ("X", "pid", 0),
        ("X", "tid", "main"),
        ("X", "args", []),
        ("X", "stack", []),
        ("M", "name", "process"),
        ("M", "args", {"name": 5}),
        ("M", "ts", 0),
        ("M", "pid", 0),
    ],
)
def test_a_breach_of_the_format_is_seen(trace: dict[str, Any], kind: str, key: str, value: object) -> None:
    damaged = copy.deepcopy(trace)
    next(event for event in damaged["traceEvents"] if event["ph"] == kind)[key] = value
    assert len(breaches(damaged)) == 1


def test_what_comes_behind_what_it_holds_is_seen(trace: dict[str, Any]) -> None:
    outer = next(event for event in trace["traceEvents"] if event["ph"] == "X")
    inner = {**outer, "name": "inner", "dur": 0}
    assert breaches({**trace, "traceEvents": [outer, inner]}) == []
    assert len(breaches({**trace, "traceEvents": [inner, {**outer, "dur": 1}]})) == 1


def overlaps(events: list[dict[str, Any]]) -> list[str]:
    """Complete events of a thread that are neither within nor behind another one, each pair against each."""
    found = []
    for event, other in combinations((event for event in events if event["ph"] == "X"), 2):
        (low, high), (begin, end) = ((one["ts"], one["ts"] + one["dur"]) for one in (event, other))
        place = [(one["pid"], one["tid"]) for one in (event, other)]
        if place[0] == place[1] and (low < begin < high < end or begin < low < end < high):
            found.append(f"{event['name']} and {other['name']} overlap")
    return found


def test_no_two_events_overlap(trace: dict[str, Any]) -> None:
    """Perfetto drops what overlaps; a node may come out to end behind its run, as both are cut to microseconds."""
    assert overlaps(trace["traceEvents"]) == []
    run = {"cat": "Session", "name": "model_run", "ts": 10, "dur": 20, "tid": 7}
    node = {"cat": "Node", "name": "conv_kernel_time", "ts": 12, "dur": 19, "tid": 7, "args": {"op_name": "Conv"}}
    other = {**node, "tid": 8, "dur": 30}
    behind = {**run, "name": "next", "ts": 30}
    fence = {**node, "name": "conv_fence_before", "dur": 1}  # of older versions
    events = trace_events([("m.onnx", [node, behind, fence, run, other])])["traceEvents"]
    found = [(e["name"], e["ts"], e["dur"], e["tid"]) for e in events if e["ph"] == "X"]
    assert found == [("model_run", 10, 20, 1), ("conv", 12, 30, 2), ("conv", 12, 18, 1), ("next", 30, 20, 1)]
    longer = [{**event, "dur": event["dur"] + 1} if event.get("ts") == 12 else event for event in events]
    assert overlaps(longer) == ["model_run and conv overlap", "conv and next overlap"]


def test_the_trace_is_one(trace: dict[str, Any]) -> None:
    assert trace["displayTimeUnit"] == "ms"
    assert problems(trace) == []
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names == ["binary.onnx", "float.onnx"]
    conv = [event for event in trace["traceEvents"] if event["name"] == "conv2"]
    assert len(conv) == WARMUP_RUNS + 3
    assert conv[0]["args"]["op_name"] == "BinaryConvThreshold"


def test_what_is_wrong_is_seen(trace: dict[str, Any]) -> None:
    def wrong(key: str, value: Any) -> list[str]:
        damaged = copy.deepcopy(trace)
        event = next(event for event in damaged["traceEvents"] if event.get("cat") == "node")
        event[key] = value
        return problems(damaged)

    assert wrong("ph", "B") and wrong("ts", 1.5) and wrong("pid", 3)
    assert wrong("dur", 10**9) == ["the nodes of a run take longer than it"]
    assert wrong("ts", 0) == ["1 nodes outside of all runs"]


def test_the_model_itself_is_not_overwritten(tmp_path: Path) -> None:
    model = save_binary(tmp_path / "binary.onnx")
    with pytest.raises(InputError, match=r"binary\.onnx is the model"):
        profile(model, runs=1, trace=model)
    with pytest.raises(InputError, match="does not exist"):
        profile(model, runs=1, trace=tmp_path / "absent" / "trace.json")
