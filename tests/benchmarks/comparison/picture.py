"""The picture of a record: how many times faster than onnxruntime's fp32 each engine is on each network.

bnn-deploy's kernels are those of the record's first instruction set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from comparison.results import FLOAT, INT8, LARQ, OPENVINO, OURS, OURS_INT8
from comparison.tables import WRONG, by_run, results_of, where

COLOURS = {OURS: "#2f81f7", OURS_INT8: "#79b8ff", INT8: "#d29922", OPENVINO: "#a371f7", LARQ: "#3fb950"}
"""The engines that have bars, in this order."""

INK = "#6e7781"
"""Of text and axes: readable on white and on black, since the picture has no background."""

STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bnn-deploy",  # the same figures make the same file
    "font.size": 9,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "hatch.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture as SVG: one panel for the smallest batch and one for the largest."""
    results = results_of(record, "network")
    batches = sorted({result.batch for result in results})
    shown = list(dict.fromkeys([batches[0], batches[-1]]))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(shown), figsize=(10, 3.4), sharey=True, squeeze=False, layout="constrained"
        )
        for batch, axes in zip(shown, panels[0], strict=True):
            _panel(axes, {title: row for (title, b), row in by_run(results).items() if b == batch}, record["isas"][0])
            axes.set_title(f"batch {batch}")
        panels[0][0].set_ylabel("times onnxruntime fp32")
        engines = [engine for engine in COLOURS if any(result.engine == engine for result in results)]
        patches = [Patch(color=COLOURS[engine], label=engine) for engine in engines]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
        figure.suptitle(where(record, record["isas"][:1]), fontsize=9)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def _panel(axes: Axes, rows: dict[str, dict[tuple[str, str], Any]], isa: str) -> None:
    columns = {engine: (engine, isa if engine in (OURS, OURS_INT8) else "") for engine in COLOURS}
    present = [engine for engine, column in columns.items() if any(column in row for row in rows.values())]
    width = 0.85 / len(present)
    for place, engine in enumerate(present):
        for group, row in enumerate(rows.values()):
            mine, flat = row.get(columns[engine]), row.get((FLOAT, ""))
            if mine is None or flat is None:
                continue
            wrong = not (mine.right and flat.right)
            bars = axes.bar(
                group + (place - (len(present) - 1) / 2) * width,
                flat.median_ms / mine.median_ms,
                width * 0.92,
                color="none" if wrong else COLOURS[engine],
                edgecolor=COLOURS[engine],
                hatch="///" if wrong else None,
            )
            text = f"{flat.median_ms / mine.median_ms:.1f}{f' {WRONG}' if wrong else ''}"
            axes.bar_label(bars, [text], fontsize=7, padding=1, rotation=90 if wrong else 0)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(rows)), list(rows))
    axes.tick_params(axis="x", length=0)
