"""What the page says of numbers, by hand."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from bnn_deploy.page import plots, view
from bnn_deploy.page.record import RECORD_PARTS

Json = dict[str, Any]


def record(**parts: Json) -> Json:
    return {"sha256": "a" * 64, **dict.fromkeys(RECORD_PARTS), **parts}


def profile(**more: Any) -> Json:
    nodes = [
        {"name": "conv", "kind": "binary layer", "share": 0.5, "median_ms": 2.0, "macs": 6000, "bytes": 20}
        | {"gmacs_per_second": 800.0, "bound_share": 0.4},
        {"name": "fc", "kind": "float layer", "share": 0.25, "median_ms": 1.0, "macs": 1000, "bytes": 500}
        | {"gmacs_per_second": 30.0, "bound_share": 0.3},
        {"name": "relu", "kind": "other operator", "share": 0.25, "median_ms": 1.0, "macs": 0, "bytes": 80}
        | {"gmacs_per_second": None, "bound_share": None},
    ]
    timing = {"median_ms": 4.0, "p10_ms": 3.9, "p90_ms": 4.1}
    model = {
        "path": "m.onnx",
        "file_bytes": 1_000,
        "nodes": [{"op_type": "X", **node} for node in nodes],
        "timing": timing,
        "timings": [timing],
    }
    other = {**model, "path": "f.onnx", "file_bytes": 30_000, "timing": {**timing, "median_ms": 6.0}}
    return {
        "model": model,
        "compare": [other],
        "speedup": {"median": 1.5, "low": 1.4, "high": 1.6, "p10": 1.3, "p90": 1.7},
        "threads": 2,
        "batch": 3,
        "noisy": [],
        "throttled": [],
        "bound": {"binary_gmacs": 2000.0, "float_gmacs": 100.0, "memory_gbytes": 10.0},
        **more,
    }


def test_sizes_and_times_in_words() -> None:
    text = view.verdict(record(profile=profile())).text
    assert text == (
        "Its file is 30.0\N{MULTIPLICATION SIGN} smaller than that of f.onnx: 1.00 kB instead of 30.0 kB.",
        "It takes 4.000 ms for a batch of 3, 1.50\N{MULTIPLICATION SIGN} as fast as f.onnx in onnxruntime alone, "
        "on 2 threads.",
    )
    slower = profile(speedup={"median": 0.5}, noisy=["a busy machine"])
    slower["model"]["file_bytes"] = 60_000
    larger, took = view.verdict(record(profile=slower)).text
    assert "2.00\N{MULTIPLICATION SIGN} larger than that of f.onnx: 60.0 kB instead of 30.0 kB." in larger
    assert "2.00\N{MULTIPLICATION SIGN} slower than f.onnx" in took and took.endswith("was disturbed, see below.")
    before = {"before": {"file_bytes": 5_000}}
    assert (
        "5.0\N{MULTIPLICATION SIGN} smaller than that of the float model: "
        in view.verdict(record(profile=profile(), conversion=before)).text[0]
    )


def test_the_waterfall_begins_where_the_node_before_ended() -> None:
    rows = view.waterfall(record(profile=profile()))
    assert [(row["name"], row["start"], row["share"], row["kind"]) for row in rows] == [
        ("conv", 0, 0.5, "bits"),
        ("fc", 0.5, 0.25, ""),
        ("relu", 0.75, 0.25, ""),
    ]
    assert [(row["rate"], row["bound_share"]) for row in rows] == [("800.0", "40%"), ("30.0", "30%"), ("", "")]


def test_the_roofline() -> None:
    """Where layers and lines are, read back from the picture: both axes are logarithmic."""
    (svg,) = plots.pictures(record(profile=profile()), {"conv": 1}).values()
    told = re.findall(r"<title>(.*?)</title>", svg)
    assert told == ["conv: 800.0 GMAC/s, 300.0 MAC per byte", "fc: 30.0 GMAC/s, 2.0 MAC per byte"]
    number = r"([\d.]+)"
    lines = re.findall(rf'd="M {number} {number}\s+L {number} {number}\s*"[^>]*stroke-width: 1\.4', svg)
    binary, floats, memory = (tuple(map(float, found)) for found in lines)
    (left, top), (_, low) = binary[:2], floats[:2]
    across = (left - floats[0]) / math.log10((2000 / 10) / (100 / 10))  # of a decade, between where the roofs begin
    down = (low - top) / math.log10(2000 / 100)
    assert memory[2:] == binary[:2] and memory[0] < floats[0]
    assert (memory[2] - memory[0]) / across == pytest.approx((memory[1] - memory[3]) / down, rel=1e-3)
    dots = re.findall(rf'd="M {number} {number}\s*"[^>]*stroke-width: 1\.5', svg)
    for (x, y), macs_per_byte, rate in zip(dots, (300, 2), (800, 30), strict=True):
        assert float(x) == pytest.approx(left + across * math.log10(macs_per_byte / 200), abs=0.01)
        assert float(y) == pytest.approx(top + down * math.log10(2000 / rate), abs=0.01)
    for said in ("binary layers 2,000 GMAC/s", "float layers 100 GMAC/s", "memory 10 GB/s"):
        assert said in svg


def test_a_confusion_matrix_has_a_row_per_label() -> None:
    classes = [
        {"label": 0, "name": "", "samples": 5, "correct": 3},
        {"label": 1, "name": "dog", "samples": 4, "correct": 4},
    ]
    source = [{**entry, "correct": 5 - entry["label"]} for entry in classes]
    found = {
        "classification": [
            {"network": "reference", "classes": source, "confusion": []},
            {"network": "model", "classes": classes, "confusion": [[0, 0, 3], [0, 1, 2], [1, 1, 4]]},
        ],
        "class_names": ["cat"],
    }
    matrix = view.confusion(record(verification=found))
    assert matrix == {"names": ["cat", "1"], "rows": [[(3, 0.6), (2, 0.4)], [(0, 0.0), (4, 1.0)]]}
    assert view.class_table(record(verification=found)) == [
        {"name": "cat", "samples": 5, "source": 5, "model": 3},
        {"name": "dog", "samples": 4, "source": 4, "model": 4},
    ]


def test_the_commonest_confusions_of_many_classes() -> None:
    confusion = [[i, i, 9] for i in range(30)] + [[3, 4, 2], [5, 6, 7]]
    found = {"classification": [{"network": "model", "classes": [], "confusion": confusion}], "class_names": []}
    assert view.confusion(record(verification=found)) == {"pairs": [("5", "6", 7), ("3", "4", 2)]}


def layer(name: str, **more: Any) -> Json:
    form = dict.fromkeys(("kernel_shape", "strides", "pads", "dilations", "group", "pool_shape", "output_bits"))
    output = {"name": name, "shape": ["batch", 4], "dtype": "float32"}
    known = {"op_type": "X", "part_of": None, "source": name, "output": output, "constant_bytes": 0}
    return {"name": name, **form, **known, "binary_macs": 0, "float_macs": 0, "writes_bits": [], **more}


def inspection() -> Json:
    tensor = {"shape": ["batch", 4], "dtype": "float32"}
    layers = [
        layer("a", reads=["x"], writes=["t"], writes_bits=["t"], output_bits=40, constant_bytes=10),
        layer("a 2", reads=["t"], writes=["u", "v"], writes_bits=["v"], part_of="a", constant_bytes=5),
        layer("b", reads=["u", "v"], writes=["y"], constant_bytes=8),
    ]
    inputs, outputs = [{"name": "x", **tensor}], [{"name": "y", **tensor}]
    return {"path": "m.onnx", "file_bytes": 9, "inputs": inputs, "outputs": outputs, "layers": layers, "metadata": {}}


def compared(name: str, **more: Any) -> Json:
    form = {"kind": "floats", "passed": True, "differing": 0, "relative_error": 0.0, "values": 1, "quantized": False}
    return {"layer": name, "source": name, **form, "worst": "", "error": "", **more}


def test_each_layer_has_the_worst_of_its_states_and_its_own_time() -> None:
    layers = [
        compared("a", kind="bits"),
        compared("a 2", relative_error=2e-6),
        compared("a 2", kind="bits", differing=3),
        compared("b", passed=False),
        compared("b"),
    ]
    times = profile()
    times["model"]["nodes"][1]["name"] = "b"
    found = view.network(record(model=inspection(), verification={"layers": layers}, profile=times))
    shown = [(row.number, row.name, row.makes, row.output, row.state, row.said, row.ms) for row in found.rows]
    assert shown == [
        (None, "x", "floats", "N\N{MULTIPLICATION SIGN}4 float32", "", "", None),
        (1, "a", "bits", "N\N{MULTIPLICATION SIGN}40 bits", "equal", "equal", None),
        (2, "a 2", "both", "N\N{MULTIPLICATION SIGN}4 float32", "rounding", "3 bits by rounding", None),
        (3, "b", "floats", "N\N{MULTIPLICATION SIGN}4 float32", "failed", "FAILED", 1.0),
        (None, "y", "floats", "N\N{MULTIPLICATION SIGN}4 float32", "", "", None),
    ]
    assert found.bits == {"t", "v"}


def test_sizes_of_layers_are_those_of_all_their_parts() -> None:
    before = {"layers": [{"name": "a", "constant_bytes": 60}, {"name": "b", "constant_bytes": 6}]}
    conversion = {"before": before, "layers": [{"name": "a"}, {"name": "b"}, {"name": "gone"}]}
    found = view.layer_sizes(record(model=inspection(), conversion=conversion))
    assert {name: (size["before"], size["after"]) for name, size in found.items()} == {"a": (60, 15), "b": (6, 8)}
    assert found["a"]["after_share"] == pytest.approx(0.25) and found["b"]["before_share"] == pytest.approx(0.1)


def test_values_and_nodes_of_the_first_question() -> None:
    operators = [
        {"values": 10, "differing": {"p": 0, "q": 2}, "rounded": {"p": 1}},
        {"values": 5, "differing": {"p": 0, "q": 0}, "rounded": {}},
    ]
    found = view.operators(record(verification={"operators": operators}))
    assert found == {"differing": 1, "compared": 15, "rounded": 1}


def test_bars_beyond_the_tolerance_are_bad() -> None:
    edges = [0.0, 0.5, 1.0, 2.0]
    layers = [
        compared("a", histogram={"tolerance": 1.0, "edges": edges, "counts": [4, 3, 0, 0], "zeros": 0}),
        compared("b", histogram={"tolerance": 1.0, "edges": edges, "counts": [0, 0, 2, 1], "zeros": 0}, passed=False),
    ]
    (svg,) = plots.pictures(record(verification={"layers": layers}), {}).values()
    assert re.findall(r"<title>(.*?)</title>", svg) == [
        "a: 4, below 0.5 tolerances",
        "a: 3, 0.5 to 1 tolerances",
        "b: 2, 1 to 2 tolerances",
        "b: 1, from 2 on tolerances",
    ]
    bars = re.findall(r"<title>([ab]): .*?fill: var\(--(\w+)\)", svg, re.DOTALL)
    assert bars == [("a", "floats"), ("a", "floats"), ("b", "bad"), ("b", "bad")]
