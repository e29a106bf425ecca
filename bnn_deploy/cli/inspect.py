"""`bnn-deploy inspect`: what is in a model file."""

from __future__ import annotations

from pathlib import Path

import click

from bnn_deploy.cli.console import (
    exact_bytes,
    facts,
    human_bytes,
    human_count,
    print_json,
    printable,
    shape_text,
    show,
    table,
)
from bnn_deploy.inspection import Layer, ModelReport, Tensor, inspect_model


@click.command(name="inspect", short_help="Show a model's layers, shapes, bits, MACs and bytes.")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="MODEL.onnx")
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(model: Path, as_json: bool) -> None:
    """Show the layers of MODEL.onnx, converted or not: shapes, bits, multiply-accumulates (MACs) and bytes."""
    report = inspect_model(model)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)


def print_report(report: ModelReport) -> None:
    """Print what is in a model, as tables on stdout."""
    rows = [
        ("file", f"{report.path}, {exact_bytes(report.file_bytes)}"),
        ("format", f"ONNX IR {report.ir_version}, opsets {_opsets(report.opsets)}"),
        ("producer", report.producer or "not stated"),
        ("input", "; ".join(map(_tensor, report.inputs))),
        ("output", "; ".join(map(_tensor, report.outputs))),
    ]
    if report.functions:
        size = f"{exact_bytes(report.function_bytes)} of the file"
        rows.append(("functions", f"{', '.join(report.functions)}: {size}"))
    show(facts(rows + list(report.metadata.items())))
    show("")

    numbers = ["binary MACs", "float MACs", "constants"]
    layers = table(None, ["layer", "operator", "output", "window", *numbers], numbers)
    for layer in report.layers:
        layers.add_row(
            printable(layer.name),
            printable(layer.op_type),
            printable(_output(layer)),
            _window(layer),
            _macs(layer.binary_macs),
            _macs(layer.float_macs),
            human_bytes(layer.constant_bytes) if layer.constant_bytes else "",
        )
    layers.add_section()
    layers.add_row(
        "total",
        "",
        "",
        "",
        human_count(report.binary_macs),
        human_count(report.float_macs),
        human_bytes(report.constant_bytes),
    )
    show(layers)
    show("")
    show("MACs: multiply-accumulates per sample. Window: kernel, s strides, p pads, d dilations, g groups.")
    if report.uncounted:
        show(printable(f"Not in the totals, because a shape is unknown: {', '.join(report.uncounted)}."))


def _opsets(opsets: dict[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items())


def _tensor(tensor: Tensor) -> str:
    return f"{tensor.name} {shape_text(tensor.shape)} {tensor.dtype or 'of unknown type'}"


def _output(layer: Layer) -> str:
    """The stored shape; for bits with the number of channels in place of the words that hold them."""
    if layer.output_bits is None or layer.output.shape is None:
        return f"{shape_text(layer.output.shape)} {layer.output.dtype or '?'}"
    return f"{shape_text((*layer.output.shape[:-1], layer.output_bits))} bits"


def _window(layer: Layer) -> str:
    """Kernel, and whatever differs from stride 1, no padding, no dilation, one group."""
    parts = [shape_text(layer.kernel_shape)] if layer.kernel_shape else []
    for letter, values, default in (("s", layer.strides, 1), ("p", layer.pads, 0), ("d", layer.dilations, 1)):
        if values and any(value != default for value in values):
            parts.append(letter + (str(values[0]) if len(set(values)) == 1 else ",".join(map(str, values))))
    if layer.group is not None and layer.group != 1:
        parts.append(f"g{layer.group}")
    return " ".join(parts)


def _macs(count: int | None) -> str:
    return "?" if count is None else human_count(count) if count else ""
