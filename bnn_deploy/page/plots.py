"""The pictures of the page, as SVG in the colours of the page.

matplotlib draws them: it is well kept, has the axes that a roofline needs, and its SVG is plain shapes and text, which
need no script and print. Libraries that draw in the browser would bring megabytes of script into the page. A picture is
drawn in the colours of a light screen; in its SVG these are replaced by the page's CSS variables, and its texts get the
page's font, so that it follows light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from bnn_deploy.page.colours import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": COLOURS["muted"][0],
    "axes.facecolor": "none",
    "axes.labelcolor": COLOURS["muted"][0],
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": COLOURS["line"][0],
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "text.color": COLOURS["ink"][0],
    "text.parse_math": False,  # names from files may have dollars
    "xtick.color": COLOURS["muted"][0],
    "xtick.labelsize": 8.5,
    "ytick.color": COLOURS["muted"][0],
    "ytick.labelsize": 8.5,
}

_WIDTH = 5.0
"""Of a picture, in inches of 72 units: on a phone its text is then as large as it is drawn."""


def pictures(record: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, str]:
    """The pictures that can be drawn of a record: name -> SVG.

    Args:
        record: see `record`.
        numbers: name of a layer -> its number in the network.
    """
    import matplotlib

    result = {}
    with matplotlib.rc_context(_STYLE):
        proof = record["verification"] or {"layers": []}
        layers = [layer for layer in proof["layers"] if layer["histogram"]["tolerance"]]  # 0 is no unit of distances
        bits = [layer for layer in layers if layer["kind"] != "floats" and any(layer["histogram"]["counts"])]
        floats = [layer for layer in layers if layer["kind"] == "floats"]
        if bits:
            result["margins"] = _histograms("margins", bits, "bits", "margin of a bit that differs, in tolerances")
        if floats:
            result["errors"] = _histograms("errors", floats, "floats", "error of a float, in tolerances")
        profile = record["profile"]
        if profile is not None and profile.get("bound"):
            result |= _roofline(profile, numbers)
    return result


def _histograms(name: str, layers: Sequence[Mapping[str, Any]], kind: str, label: str) -> str:
    """A row per layer: how many values lie how far from the tolerance, which is 1 on the common axis."""
    figure, axes = _figure(0.75 + 0.3 * len(layers))
    # The bins are those of `proof.histogram`: one power of two each, the first down to 0, the last without end.
    powers = [
        round(math.log2(edge / layers[0]["histogram"]["tolerance"])) for edge in layers[0]["histogram"]["edges"][1:]
    ]
    powers = [powers[0] - 1, *powers]
    most = max(max(layer["histogram"]["counts"]) for layer in layers)
    titles = {}
    for row, layer in enumerate(layers):
        counts = layer["histogram"]["counts"]
        base = len(layers) - 1 - row
        axes.plot([powers[0], powers[-1] + 1], [base, base], color=COLOURS["line"][0], linewidth=0.6, zorder=0)
        for power, count in zip(powers, counts, strict=True):
            if count:
                colour = COLOURS["bad" if power > 0 or (power == 0 and not layer["passed"]) else kind][0]
                # Counts reach from one to hundreds of millions: a bar is as high as their logarithm.
                height = 0.12 + 0.7 * math.log1p(count) / math.log1p(max(most, 2))
                (bar,) = axes.bar(power, height, width=0.9, bottom=base, align="edge", color=colour, linewidth=0)
                bar.set_gid(f"{name}-{row}-{power}")
                where = f"{2.0**power:.2g} to" if power > powers[0] else "below"  # the first bin begins at 0
                where = f"from {2.0**power:.2g} on" if power == powers[-1] else f"{where} {2.0 ** (power + 1):.2g}"
                titles[f"{name}-{row}-{power}"] = f"{layer['layer']}: {count:,}, {where} tolerances"
    axes.axvline(0, color=COLOURS["muted"][0], linewidth=1.0, linestyle=(0, (4, 2)))
    axes.set_xlim(powers[0], powers[-1] + 1)
    axes.set_ylim(-0.1, len(layers))
    axes.set_yticks([i + 0.3 for i in range(len(layers))], [_short(layer["layer"]) for layer in reversed(layers)])
    ticks = [10.0**power for power in range(-4, 3)]
    axes.set_xticks([math.log2(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    return _svg(figure, name, label, titles)


def _roofline(profile: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, str]:
    """Every layer's rate over its multiply-accumulates per byte, under what the machine allows."""
    bound = profile["bound"]
    nodes = [node for node in profile["model"]["nodes"] if node["gmacs_per_second"] and node["bytes"]]
    if not nodes:
        return {}
    figure, axes = _figure(3.6)
    points = [(node["macs"] / node["bytes"], node["gmacs_per_second"], node) for node in nodes]
    memory = bound["memory_gbytes"]
    roofs = [("binary_gmacs", "bits", "binary layers"), ("float_gmacs", "floats", "float layers")]
    left = min(*(x for x, _, _ in points), bound["float_gmacs"] / memory) / 2
    right = max(*(x for x, _, _ in points), bound["binary_gmacs"] / memory) * 4
    for key, kind, said in roofs:
        knee = bound[key] / memory
        style = (0, (5, 2)) if kind == "bits" else "-"
        axes.plot([knee, right], [bound[key]] * 2, color=COLOURS[kind][0], linewidth=1.4, linestyle=style)
        text = f"{said} {bound[key]:,.0f} GMAC/s"
        axes.annotate(
            text, (right, bound[key]), (-2, 3), textcoords="offset points", ha="right", color=COLOURS[kind][0]
        )
    knee = bound["binary_gmacs"] / memory
    axes.plot([left, knee], [left * memory, knee * memory], color=COLOURS["muted"][0], linewidth=1.4)
    lowest = min(y for _, y, _ in points) / 3
    start = 1.5 * max(left, lowest / memory)
    said = f"memory {memory:,.0f} GB/s"
    axes.annotate(
        said, (start, start * memory), (6, 0), textcoords="offset points", va="top", color=COLOURS["muted"][0]
    )
    titles = {}
    for i, (x, y, node) in enumerate(points):
        binary = node["kind"] == "binary layer"
        colour = COLOURS["bits" if binary else "floats"][0]
        (dot,) = axes.plot(x, y, marker="s" if binary else "o", markersize=5, color=colour, clip_on=False)
        dot.set_gid(f"roofline-{i}")
        titles[f"roofline-{i}"] = f"{node['name']}: {y:,.1f} GMAC/s, {x:,.1f} MAC per byte"
        if node["name"] in numbers:
            axes.annotate(str(numbers[node["name"]]), (x, y), (4, 3), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, place: f"{value:,g}")
        axis.set_minor_formatter(lambda value, place: "")
    axes.set_xlim(left, right)
    axes.set_ylim(lowest, bound["binary_gmacs"] * 3)
    axes.grid(True, which="major")
    axes.set_axisbelow(True)
    axes.set_xlabel("multiply-accumulates per byte")
    axes.set_ylabel("GMAC/s")
    return {"roofline": _svg(figure, "roofline", "roofline of this machine with the layers of the model", titles)}


def _short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= 24 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}{name[-12:]}"


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


_COLOUR = re.compile("|".join(light for light, _ in COLOURS.values()))
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}
_FONT = re.compile(r"font: [^;]*?([\d.]+px)[^;]*")
_REFERENCE = re.compile(r"#([-\w]+)")


def _svg(figure: Figure, name: str, label: str, titles: Mapping[str, str]) -> str:
    """The SVG element of a picture, in the page's colours and font.

    Args:
        figure: the picture.
        name: what its ids begin with, so that no two pictures of the page have the same.
        label: what it shows, for those who hear the page.
        titles: gid of a shape -> what is shown while the pointer is on it.
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(file.getvalue())
    used = {
        found for element in root.iter() for value in element.attrib.values() for found in _REFERENCE.findall(value)
    }
    for element in list(root.iter()):
        for style in element.findall("{*}style"):  # it would be the whole page's; page.css has it
            element.remove(style)
        element.tag = _local(element.tag)
        found = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        title = titles.get(found.get("id", ""))
        if title is not None:
            shown = ElementTree.Element("title")
            shown.text = title
            element.insert(0, shown)
        if found.get("id") not in used:
            found.pop("id", None)
        for key, value in found.items():
            if key == "style":
                value = _FONT.sub(r"font-size: \1", _COLOUR.sub(lambda match: _VARIABLES[match[0]], value))
            element.set(key, value)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """The name of an element or attribute without its namespace, which HTML knows by itself."""
    return name.rpartition("}")[2]
