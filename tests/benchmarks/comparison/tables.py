"""The record of a run as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from comparison.results import ENGINES, OURS, OURS_INT8, PEERS, ColdStart, Proof, Result

WRONG = "WRONG"
"""Marks each figure of an engine whose values are not those of its reference."""

Column = tuple[str, str]
"""An engine and its instruction set."""


def table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; the first row is the heading, all columns but the first `texts` are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|" + "|".join("-" * (w + 2) if i < texts else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def where(record: dict[str, Any], isas: Sequence[str], threads: int = 1) -> str:
    """The CPU, bnn-deploy's instruction sets and the number of threads: what stands beside every table."""
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{record['machine']['cpu']}, {', '.join(isas)} kernels, {counted}"


def results_of(record: dict[str, Any], kind: str) -> list[Result]:
    """The record's results on layers or on networks."""
    return [result for result in map(_result, record["results"]) if result.kind == kind]


def summary(record: dict[str, Any]) -> str:
    """How many times faster bnn-deploy is, on networks, with the smallest and the largest batch; and the proof."""
    results = results_of(record, "network")
    if not results:
        return ""
    batches = sorted({result.batch for result in results})
    chosen = [result for result in results if result.batch in (batches[0], batches[-1])]
    peers = [(peer, "") for peer in PEERS if any(result.engine == peer for result in chosen)]
    several = len(record["isas"]) > 1
    rows = [["", "batch", *(["kernels"] if several else []), *(engine for engine, _ in peers)]]
    for (title, batch), row in by_run(chosen).items():
        for isa in record["isas"]:
            ratios = [ratio(row.get((OURS, isa)), row.get(peer)) for peer in peers]
            rows.append([title, str(batch), *([isa] if several else []), *ratios])
    place = where(record, record["isas"], record["threads"][0])
    parts = [f"How many times faster bnn-deploy is ({place}, {record['date']}):", table(rows)]
    if any(not result.right for result in chosen):
        wrong = {f"{result.engine} on {result.workload}": None for result in chosen if not result.right}
        parts.append(f"{WRONG}: not the network's values ({', '.join(wrong)}).")
    proofs = [Proof(**proof) for proof in record["proofs"]]
    if proofs:
        parts.append(_verdict(proofs))
    return "\n\n".join(parts)


def _verdict(proofs: Sequence[Proof]) -> str:
    failed = [proof.workload for proof in proofs if not proof.passed]
    verdict = f"FAILED on {', '.join(failed)}" if failed else "PASSED on all of them"
    bits, differ = sum(proof.bits for proof in proofs), sum(proof.bits_differ for proof in proofs)
    isas = dict.fromkeys(isa for proof in proofs for isa in proof.isas)
    return f"`verify` {verdict}: {differ} of {bits:,} bits differ ({', '.join(isas)} kernels)."


def report(record: dict[str, Any]) -> str:
    """All tables of the record but the summary."""
    parts = []
    for kind, title in (("network", "Networks"), ("layer", "Layers, float in, float out")):
        results = results_of(record, kind)
        if results:
            parts += [f"### {title}", *_speeds(results, record)]
    if record["thread_results"]:
        parts += ["### Threads", *_threads([_result(r) for r in record["thread_results"]], record)]
    if record["cold_starts"]:
        parts += ["### Cold start and memory", *_cold([ColdStart(**start) for start in record["cold_starts"]], record)]
    parts += ["### Versions", "\n".join(f"* {name} {version}" for name, version in record["versions"].items())]
    parts += [f"Left out, {name}: {reason}" for name, reason in record["left_out"].items()]
    parts += ["### All figures", "<details><summary>Every engine's times and errors</summary>", _all_figures(record)]
    return "\n\n".join([*parts, "</details>"]) + "\n"


def by_run(results: Sequence[Result]) -> dict[tuple[str, int], dict[Column, Result]]:
    """(workload, batch) -> the results of its engines."""
    found: dict[tuple[str, int], dict[Column, Result]] = {}
    for result in results:
        found.setdefault((result.workload, result.batch), {})[result.engine, result.isa] = result
    return found


def ratio(mine: Result | None, other: Result | None) -> str:
    """How many times faster `mine` is, marked where values are wrong; "-" where one of them is missing."""
    if mine is None or other is None:
        return "-"
    text = f"{other.median_ms / mine.median_ms:.2f}"
    return text if mine.right and other.right else f"{text} {WRONG}"


def _speeds(results: list[Result], record: dict[str, Any]) -> Iterator[str]:
    columns = [
        (engine, isa)
        for engine in ENGINES
        for isa in (*record["isas"], "")
        if any((result.engine, result.isa) == (engine, isa) for result in results)
    ]
    runs = by_run(results)
    place = where(record, record["isas"], record["threads"][0])

    def filled(shown: Sequence[Column], cell: Callable[[dict[Column, Result], Column], str]) -> str:
        rows = [["", "batch", *(_heading(column, columns) for column in shown)]]
        for (title, batch), row in runs.items():
            rows.append([title, str(batch), *(cell(row, column) for column in shown)])
        return table(rows)

    yield f"Median ms per run ({place}), and whether the values are right:"
    yield filled(columns, lambda row, column: _ms(row[column]) if column in row else "-")
    ours = [column for column in columns if column[0] in (OURS, OURS_INT8)]
    others = [column for column in columns if column not in ours]
    for mine in ours:
        yield f"How many times faster {_heading(mine, columns)} is (ratio of the medians; {place}):"
        yield filled(others, lambda row, column, mine=mine: ratio(row.get(mine), row.get(column)))


def _heading(column: Column, columns: Sequence[Column]) -> str:
    """The engine's name, with its instruction set where it has several columns."""
    engine, isa = column
    return f"{engine}, {isa}" if sum(other == engine for other, _ in columns) > 1 else engine


def _ms(result: Result) -> str:
    digits = 4 if result.median_ms < 0.1 else 3
    return f"{result.median_ms:.{digits}f} {'right' if result.right else f'{WRONG} values'}"


def _threads(results: list[Result], record: dict[str, Any]) -> Iterator[str]:
    counts = record["threads"]
    rows = [["", "batch", "engine"]]
    rows[0] += [f"ms, {count}" for count in counts]
    rows[0] += [f"times, {count}" for count in counts[1:]]
    runs: dict[tuple[str, int, str], dict[int, Result]] = {}
    for result in results:
        runs.setdefault((result.workload, result.batch, result.engine), {})[result.threads] = result
    for (title, batch, engine), by_count in runs.items():
        times = [_ms(by_count[count]) if count in by_count else "-" for count in counts]
        ratios = [ratio(by_count.get(count), by_count.get(counts[0])) for count in counts[1:]]
        rows.append([title, str(batch), engine, *times, *ratios])
    place = f"{record['machine']['cpu']}, {record['machine']['cpus']} CPUs, {record['isas'][0]} kernels"
    yield f"Median ms per run by number of threads, and how many times faster than with {counts[0]} ({place}):"
    yield table(rows)


def _cold(starts: list[ColdStart], record: dict[str, Any]) -> Iterator[str]:
    engines = [engine for engine in ENGINES if any(start.engine == engine for start in starts)]
    cells: dict[str, dict[str, ColdStart]] = {}
    for start in starts:
        cells.setdefault(start.workload, {})[start.engine] = start

    def filled(cell: Callable[[ColdStart], str]) -> list[list[str]]:
        rows = [["", *engines]]
        for title, row in cells.items():
            rows.append([title, *(cell(row[engine]) if engine in row else "-" for engine in engines)])
        return rows

    place = f"{where(record, record['isas'][:1])}, batch 1"
    yield f"Load: ms from the model's file to the end of the first run ({place}):"
    yield table(filled(lambda start: f"{start.load_ms:.1f}"))
    before = [np.median([start.before_mb for start in starts if start.engine == engine]) for engine in engines]
    yield f"Peak memory that loading and the first run add to the process, in MB, and what it had before ({place}):"
    yield table(
        [*filled(lambda start: f"{start.added_mb:.1f}"), ["before: engine imported", *(f"{mb:.1f}" for mb in before)]]
    )


def _all_figures(record: dict[str, Any]) -> str:
    rows = [["", "engine", "batch", "threads", "median ms", "p10", "p90", "runs", "error", "allowed", "within"]]
    for r in map(_result, [*record["results"], *record["thread_results"]]):
        engine = f"{r.engine}, {r.isa}" if r.isa else r.engine
        times = [f"{ms:.4f}" for ms in (r.median_ms, r.p10_ms, r.p90_ms)]
        within = f"{r.within} of {len(r.errors)}"
        errors = [f"{np.median(r.errors):.1e}", f"{r.tolerance:g}", within]
        rows.append([r.workload, engine, str(r.batch), str(r.threads), *times, str(r.runs), *errors])
    return table(rows, texts=2)


def _result(figures: dict[str, Any]) -> Result:
    return Result(**figures)
