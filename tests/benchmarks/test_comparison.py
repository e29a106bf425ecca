"""What tests/benchmarks/comparison writes of a record: summary, tables, page, picture. All numbers here are made up."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from comparison.page import BEGIN, END, PAGES, page, with_summary
from comparison.picture import draw
from comparison.results import FLOAT, INT8, LARQ, OPENVINO, OURS
from comparison.tables import WRONG, report, summary

CPU = "Some CPU (family 1, model 2)"
ROOT = Path(__file__).parents[2]
MS = {OURS: 1.0, FLOAT: 9.0, INT8: 3.0, OPENVINO: 2.0, LARQ: 8.0}


def result(workload: str, batch: int, engine: str, **changes: Any) -> dict[str, Any]:
    isa = "avx2" if engine == OURS else ""
    ms = MS[engine] * batch
    figures = {"workload": workload, "kind": "network", "batch": batch, "engine": engine, "isa": isa, "threads": 1}
    figures |= {"median_ms": ms, "p10_ms": ms * 0.9, "p90_ms": ms * 1.1, "runs": 5}
    return figures | {"errors": [0.0] * 16, "tolerance": 1e-4, "share": 0.25} | changes


@pytest.fixture
def record() -> dict[str, Any]:
    """A run on two networks and a layer: batches 1, 8 and 64, one and two threads."""
    results = [
        result(workload, batch, engine) for workload in ("LeNet-5", "NIN") for batch in (1, 8, 64) for engine in MS
    ]
    threads = [
        result("NIN", 1, engine, threads=count, median_ms=MS[engine] / count)
        for engine in (OURS, FLOAT)
        for count in (1, 2)
    ]
    starts = [
        {"workload": "NIN", "engine": engine, "load_ms": 10 * ms, "added_mb": ms, "before_mb": 50.0}
        for engine, ms in MS.items()
    ]
    proof = {"workload": "NIN", "passed": True, "samples": 16, "isas": ["avx2"], "bits": 123456, "bits_differ": 0}
    return {
        "results": [result("3x3, 64@56x56", 1, engine, kind="layer") for engine in MS] + results,
        "thread_results": threads,
        "cold_starts": starts,
        "proofs": [proof],
        "left_out": {},
        "date": "2026-01-02",
        "commit": "0123abc",
        "command": "python tests/benchmarks/compare.py",
        "minutes": 12.3,
        "machine": {"cpu": CPU, "cpus": 2, "system": "Linux 6"},
        "versions": {"bnn_deploy": "0.1.0"},
        "isas": ["avx2"],
        "threads": [1, 2],
        "rounds": 40,
        "load_before": 0.1,
        "load_after": 1.0,
    }


def corrupted(record: dict[str, Any], engine: str) -> dict[str, Any]:
    """The record with wrong values of an engine on NIN with batch 64: 3 of 16 samples are right, and 4 are needed."""
    record = copy.deepcopy(record)
    for figures in record["results"]:
        if (figures["workload"], figures["batch"], figures["engine"]) == ("NIN", 64, engine):
            figures["errors"] = [0.0] * 3 + [0.2] * 13
    return record


def rows(text: str) -> dict[str, list[str]]:
    """First cells, joined by the second -> the others, of all rows of the first table in a text."""
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {f"{row[0]} {row[1]}": row[2:] for row in cells}


def test_summary_has_the_smallest_and_the_largest_batch(record: dict[str, Any]) -> None:
    text = summary(record)
    assert text.startswith(f"How many times faster bnn-deploy is ({CPU}, avx2 kernels, 1 thread, 2026-01-02):\n")
    found = rows(text)
    assert found.pop(" batch") == [FLOAT, INT8, OPENVINO, LARQ]
    found.pop(next(name for name in found if name.startswith("-")))
    ratios = ["9.00", "3.00", "2.00", "8.00"]
    assert found == {"LeNet-5 1": ratios, "LeNet-5 64": ratios, "NIN 1": ratios, "NIN 64": ratios}
    assert text.endswith("`verify` PASSED on all of them: 0 of 123,456 bits differ (avx2 kernels).")
    assert WRONG not in text and WRONG not in report(record)


def test_wrong_values_of_a_peer_show_everywhere(record: dict[str, Any], tmp_path: Path) -> None:
    wrong = corrupted(record, OPENVINO)
    text = summary(wrong)
    assert rows(text)["NIN 64"] == ["9.00", "3.00", f"2.00 {WRONG}", "8.00"]
    assert f"{WRONG}: not the network's values ({OPENVINO} on NIN)." in text
    assert text.count(WRONG) == 2
    assert f"128.000 {WRONG} values" in report(wrong) and f"2.00 {WRONG}" in report(wrong)
    draw(wrong, tmp_path / "wrong.svg")
    draw(record, tmp_path / "right.svg")
    assert f"4.5 {WRONG}" in (tmp_path / "wrong.svg").read_text()
    assert WRONG not in (tmp_path / "right.svg").read_text()


def test_wrong_values_of_ours_mark_the_whole_row(record: dict[str, Any]) -> None:
    text = summary(corrupted(record, OURS))
    assert rows(text)["NIN 64"] == [f"{ratio} {WRONG}" for ratio in ("9.00", "3.00", "2.00", "8.00")]
    assert f"({OURS} on NIN)" in text


def test_a_failed_proof_shows(record: dict[str, Any]) -> None:
    record["proofs"].append({**record["proofs"][0], "workload": "LeNet-5", "passed": False, "bits_differ": 7})
    assert summary(record).endswith("`verify` FAILED on LeNet-5: 7 of 246,912 bits differ (avx2 kernels).")


def test_each_instruction_set_has_its_row_and_its_column(record: dict[str, Any]) -> None:
    record["isas"] = ["avx2", "scalar"]
    slower = {"isa": "scalar", "median_ms": 4.5}
    record["results"] += [result(workload, 1, OURS, **slower) for workload in ("LeNet-5", "NIN")]
    text = summary(record)
    assert "avx2, scalar kernels" in text
    assert re.search(r"\| NIN +\| +1 \| +scalar \| +2\.00 \| +0\.67 \| +0\.44 \| +1\.78 \|", text)
    assert "| bnn-deploy, avx2 | bnn-deploy, scalar |" in report(record)
    assert "How many times faster bnn-deploy, scalar is" in report(record)


def test_engine_that_is_missing_leaves_a_gap(record: dict[str, Any], tmp_path: Path) -> None:
    record["results"] = [r for r in record["results"] if (r["engine"], r["workload"]) != (LARQ, "NIN")]
    record["left_out"] = {"Larq: NIN, batch 1": "RuntimeError: no"}
    assert rows(summary(record))["NIN 1"] == ["9.00", "3.00", "2.00", "-"]
    assert "Left out, Larq: NIN, batch 1: RuntimeError: no" in report(record)
    draw(record, tmp_path / "picture.svg")


def test_threads_and_cold_starts_have_their_tables(record: dict[str, Any]) -> None:
    text = report(record)
    assert re.search(r"\| NIN +\| +1 \| +bnn-deploy \| +1\.000 right \| +0\.500 right \| +2\.00 \|", text)
    load, memory = text.split("### Cold start and memory")[1].split("### Versions")[0].split("\n| NIN")[1:]
    assert load.split()[:2] == ["|", "10.0"] and memory.split()[:2] == ["|", "1.0"]
    assert re.search(r"\| before: engine imported \| +50\.0 \|", text)


def test_every_page_is_there_and_leads_to_the_others(record: dict[str, Any]) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert {path.name for path in docs.glob("benchmarks*.md")} == set(PAGES)
    for name in PAGES:
        links = {other for other in PAGES if f"]({other})" in page(record, name)}
        assert links == {other for other in PAGES if f"]({other})" in (docs / name).read_text()}
        assert links == set(PAGES) - {name}


def test_page_begins_with_the_summary_and_ends_with_all_figures(record: dict[str, Any]) -> None:
    text = page(record, "benchmarks_avx2.md")
    marks = [
        "# Benchmarks on AVX2",
        summary(record),
        "](benchmarks_avx2.svg)",
        "commit 0123abc, in 12 minutes",
        "python tests/benchmarks/compare.py --write docs/benchmarks_avx2.md\n",
        "## How it is measured",
    ]
    marks += [
        "## Results",
        "### Networks",
        "### Layers",
        "### Threads",
        "### Cold start",
        "### All figures",
        "</details>",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    parts = text.split("\n\n")
    for table in tables[:-1]:
        assert CPU in parts[parts.index(table) - 1] and "avx2 kernels" in parts[parts.index(table) - 1]


def test_picture_is_the_same_for_the_same_record_and_has_no_background(record: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw(record, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = (tmp_path / "one.svg").read_text()
    words = {element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")}
    assert {"LeNet-5", "NIN", "batch 1", "batch 64", OURS, INT8, OPENVINO, LARQ, "9.0", "3.0"} <= words
    assert "#ffffff" not in text and "#000000" not in text


def test_summary_takes_its_place_in_the_readme(record: dict[str, Any]) -> None:
    readme = f"before\n{BEGIN}old{END}\nafter\n"
    assert with_summary(readme, record) == f"before\n{BEGIN}{summary(record)}{END}\nafter\n"
    with pytest.raises(ValueError, match="no place for the summary"):
        with_summary("before\nafter\n", record)


def test_readme_and_page_have_the_same_summary() -> None:
    """README.md has the rows of the best instruction set; the page names it in a column more if it has several."""
    _, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    found, end, _ = rest.partition(END)
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert end
    rows = [row for row in _rows(found) if row[1].isdigit()]
    assert rows
    of_page = [row for row in _rows(text.partition("![")[0]) if row[1].isdigit()]
    best = of_page[0][2] if len(of_page[0]) > len(rows[0]) else None
    assert rows == [row[:2] + row[3:] if best else row for row in of_page if best in (None, row[2])]
    assert ("](benchmarks.svg)" in text) == (ROOT / "docs" / "benchmarks.svg").is_file()


def _rows(text: str) -> list[list[str]]:
    """The cells of the rows of tables."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_readmes_summary_is_of_the_best_instruction_set(record: dict[str, Any]) -> None:
    of_one = record | {"isas": record["isas"][:1]}
    several = record | {"isas": [*record["isas"], "another"]}
    readme = f"{BEGIN}{END}"
    assert with_summary(readme, several) == with_summary(readme, of_one)
    assert summary(several) != summary(of_one)
