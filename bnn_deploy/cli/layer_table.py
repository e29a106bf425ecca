"""The conversion report as `convert` prints it: the outcome of each layer, its parts, and why layers stayed float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bnn_deploy.cli.console import explain, printable, show, table
from bnn_deploy.quantities import TIMES, human_bytes, human_count, plural

if TYPE_CHECKING:
    from bnn_deploy.inspection import Layer, ModelReport
    from bnn_deploy.report.summary import LayerReport, Report

_NOT_BINARY = ("float", "int8", "removed")

_NUMBERS = ("MACs", "before", "after", "smaller")


def print_layers(report: Report, before: ModelReport, after: ModelReport) -> None:
    """Print the report: sizes, the parts of the binary layers, and the reasons why the others are float."""
    _print_sizes(report.layers, before, after)
    found = [layer for layer in report.layers if layer.activation is not None or layer.status not in _NOT_BINARY]
    if found:
        _print_found(found)
    _print_zeros(report.layers)
    _print_float([layer for layer in report.layers if layer.reason is not None])
    suspicious = [layer for layer in report.layers if layer.binary_in_training]
    if suspicious:
        names = ", ".join(printable(layer.name) for layer in suspicious)
        reads = "reads a sign but stays" if len(suspicious) == 1 else "read a sign but stay"
        show(f"WARNING: {plural(len(suspicious), 'layer')} {reads} float, see above: {names}", result=True)
        show("")
    for name, count, channels in report.constant_channels:
        has = "has" if count == 1 else "have"
        show(f"note: {count} of {channels} channels of {printable(name)} always {has} the same bit")
    if report.constant_channels:
        show("")
    if report.not_fused:
        unfused = table("Not fused: computed by a node of its own, with the same result", ["node", "reason"])
        for decline in report.not_fused:
            unfused.add_row(f"{decline.op_type} {printable(decline.node)}", printable(decline.reason))
        show(unfused)
        show("")


def _print_sizes(layers: Sequence[LayerReport], before: ModelReport, after: ModelReport) -> None:
    """Print the outcome of each layer, and its size before and after."""
    columns = ["layer", "shape", "becomes", *_NUMBERS]
    sizes = table("Layers", columns, _NUMBERS, {"shape"}, optional=["MACs", "before", "shape"])
    floats, binaries = ({layer.name: layer for layer in report.layers} for report in (before, after))
    for layer in layers:
        old, new = floats.get(layer.name), binaries.get(layer.name)
        further = sum(part.constant_bytes for part in after.layers if part.part_of == layer.name)
        sizes.add_row(printable(layer.name), layer.shape, _becomes(layer), *_size_cells(old, new, further))
    show(sizes)
    show("")


def _becomes(layer: LayerReport) -> str:
    if layer.same_as is not None:
        return f"the same as {printable(layer.same_as)}"
    if layer.becomes is None:
        return layer.status
    if layer.status == "binary":
        return layer.becomes
    return f"{layer.becomes} ({layer.status})"


def _size_cells(old: Layer | None, new: Layer | None, further: int) -> tuple[str, str, str, str]:
    """MACs, bytes before and after, and their ratio; `further` bytes are those of further parts of the new layer."""
    macs = "?" if old is None or old.float_macs is None else human_count(old.float_macs)
    if old is None or new is None:
        return macs, "" if old is None else human_bytes(old.constant_bytes), "", ""
    sizes = old.constant_bytes, new.constant_bytes + further
    return macs, human_bytes(sizes[0]), human_bytes(sizes[1]), ratio(*sizes)


def ratio(before: int, after: int) -> str:
    """The factor by which a size shrank, or '=' if it is below 1.05."""
    return f"{before / after:.1f}{TIMES}" if after and before >= 1.05 * after else "="


def _print_found(layers: Sequence[LayerReport]) -> None:
    """Print the parts of these layers; a value that is the same for all is printed once, below the table."""
    columns: dict[str, Callable[[LayerReport], str]] = {
        "activation": lambda layer: layer.activation or "",
        "sign(0)": _zero,
        "padding": _padding,
        "weights": _weights,
        "scale": _scale,
        "fused in front": lambda layer: ", ".join(layer.binarisation),
        "fused behind": lambda layer: ", ".join(layer.fused),
    }
    cells = {name: [printable(cell(layer)) for layer in layers] for name, cell in columns.items()}
    common = {name: texts[0] for name, texts in cells.items() if len(layers) > 1 and len(set(texts)) == 1}
    own = [name for name in columns if name not in common]
    found = table("What they are made of", ["layer", *own])
    for i, layer in enumerate(layers):
        found.add_row(printable(layer.name), *(cells[name][i] for name in own))
    said = [f"{name}: {text}" for name, text in common.items() if text not in ("", "none")]
    if own:
        show(found)
    if said:
        which = f"In all {len(layers)} layers" if own else f"What all {len(layers)} layers are made of"
        show(f"{which}: {'; '.join(said)}.")
    if any(layer.binarisation or layer.fused for layer in layers):
        explain(
            "Fused in front: into the binarisation of its input; behind: into the layer; a sign at the end makes bits."
        )
    show("")


def _zero(layer: LayerReport) -> str:
    signs = {-1: "-1", 0: "0", 1: "+1", None: ""}
    source, converted = signs[layer.sign_of_zero], signs[layer.converted_sign_of_zero]
    return source if source == converted else f"{source}, here {converted}"


def _print_zeros(layers: Sequence[LayerReport]) -> None:
    """Print how often signs are exactly 0 in the source, where the converted model has +1."""
    counts = [(layer, layer.exact_zeros) for layer in layers if layer.exact_zeros is not None]
    if not counts:
        return
    inputs, samples = printable(counts[0][1].inputs), counts[0][1].samples
    said = [(layer, count) for layer, count in counts if count.zeros or layer.zero_cause]
    if said:
        rows = table("Signs of exactly 0, which are +1 here", ["layer", "exact zeros", "what makes them"])
        for layer, count in said:
            rows.add_row(printable(layer.name), str(count), layer.zero_cause or "rounding, or underflow")
        show(rows)
    if not any(count.zeros for _, count in counts):
        show(f"No sign in front of {plural(len(counts), 'binary layer')} is exactly 0 on {plural(samples, 'sample')}.")
    else:
        show("--sign-zero exact keeps the 0, at twice the cost of the layer.")
    show(f"Counted on {inputs}.")
    show("")


def _padding(layer: LayerReport) -> str:
    if not any(layer.pads):
        return layer.padding
    pads = str(layer.pads[0]) if len(set(layer.pads)) == 1 else ",".join(map(str, layer.pads))
    return f"{layer.padding}, {pads}" + ("" if layer.padded_by == layer.operator else f", by {layer.padded_by}")


def _weights(layer: LayerReport) -> str:
    zeros = f", {plural(layer.latent_zeros, 'latent zero')}" if layer.latent_zeros else ""
    return layer.weights + zeros


def _scale(layer: LayerReport) -> str:
    if layer.scale is None or layer.scale == (1, 1):
        return "none"
    low, high = (f"{value:.3g}" for value in layer.scale)
    return low if layer.scale[0] == layer.scale[1] else f"{low} to {high}"


def _print_float(layers: Sequence[LayerReport]) -> None:
    """Print each reason once, with its layers and its advice."""
    left = table("Not binary", ["layer", "reason, and what could be changed"])
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        groups.setdefault((layer.reason or "", layer.advice or ""), []).append(printable(layer.name))
    for (reason, advice), names in groups.items():
        left.add_row("\n".join(names), f"{printable(reason)}\n-> {printable(advice)}")
    if groups:
        show(left)
        show("")
