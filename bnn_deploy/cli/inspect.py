"""`bnn-deploy inspect`: the layers, shapes and sizes in a model file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnn_deploy.cli.console import explain, facts, print_json, printable, show, table
from bnn_deploy.cli.options import example
from bnn_deploy.quantities import exact_bytes, human_bytes, human_count, shape_text, tensor_text

if TYPE_CHECKING:  # the command loads onnx, its help must not
    from bnn_deploy.inspection import Layer, ModelReport, Tensor


@click.command(name="inspect", epilog=example("bnn-deploy inspect lenet5.onnx", in_demo=True))
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="MODEL.onnx")
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(model: Path, as_json: bool) -> None:
    """Show the layers of MODEL.onnx, converted or not: shapes, bits, multiply-accumulates (MACs) and bytes."""
    from bnn_deploy.inspection import inspect_model

    report = inspect_model(model)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)


def print_report(report: ModelReport) -> None:
    """Print the content of a model as tables on stdout."""
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

    batch = _batch(report)
    numbers = ["MACs", "bytes"]
    words = ["operator", "output", "window"]
    layers = table(None, ["layer", *words, *numbers], numbers, words, optional=["window"])
    for layer in report.layers:
        layers.add_row(
            printable(layer.name),
            printable(layer.op_type),
            printable(_output(layer, batch)),
            _window(layer),
            _macs(layer),
            human_bytes(layer.constant_bytes) if layer.constant_bytes else "",
        )
    layers.add_section()
    float_bytes = report.constant_bytes - report.binary_constant_bytes
    layers.add_row("binary", "", "", "", human_count(report.binary_macs), human_bytes(report.binary_constant_bytes))
    layers.add_row("float", "", "", "", human_count(report.float_macs), human_bytes(float_bytes))
    show(layers, result=True)
    show("")
    explain("Output: float32 if not stated, N is the batch. Window: kernel, s strides, p pads, d dilations, g groups.")
    if any(layer.pool_shape for layer in report.layers):
        explain("Window of a direct convolution: also that of the max pool behind it.")
    explain("MACs: multiply-accumulates per sample. Bytes: weights and other constants, shared ones once in the sums.")
    if report.uncounted:
        show(printable(f"Not in the totals, because a shape is unknown: {', '.join(report.uncounted)}."), result=True)


def _opsets(opsets: dict[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items())


def _tensor(tensor: Tensor) -> str:
    return f"{tensor.name} {shape_text(tensor.shape)} {tensor.dtype or 'of unknown type'}"


def _batch(report: ModelReport) -> str | None:
    """The symbolic name of the batch dimension."""
    shape = report.inputs[0].shape if report.inputs else None
    return shape[0] if shape and isinstance(shape[0], str) else None


def _output(layer: Layer, batch: str | None) -> str:
    """The first output, with N as the batch."""
    shape = layer.output.shape
    if shape is not None:
        shape = tuple("N" if size == batch and batch is not None else size for size in shape)
    return tensor_text(shape, layer.output.dtype, layer.output_bits)


def _window(layer: Layer) -> str:
    """The kernel's shape, and the strides, pads, dilations and groups that are not 1, 0, 1 and 1: "s2 p1"."""
    parts = [shape_text(layer.kernel_shape)] if layer.kernel_shape else []
    parts += _unusual((("s", layer.strides, 1), ("p", layer.pads, 0), ("d", layer.dilations, 1)))
    if layer.group is not None and layer.group != 1:
        parts.append(f"g{layer.group}")
    if layer.pool_shape and any(size != 1 for size in layer.pool_shape):
        pool = _unusual((("s", layer.pool_strides, 1), ("p", layer.pool_pads, 0)))
        parts += ["pool", shape_text(layer.pool_shape), *pool]
    return " ".join(parts)


def _unusual(values: Sequence[tuple[str, tuple[int, ...] | None, int]]) -> list[str]:
    """Letters and numbers, of the lists of which one differs from its default."""
    return [
        letter + (str(numbers[0]) if len(set(numbers)) == 1 else ",".join(map(str, numbers)))
        for letter, numbers, default in values
        if numbers and any(number != default for number in numbers)
    ]


def _macs(layer: Layer) -> str:
    if layer.binary_macs is None or layer.float_macs is None:
        return "?"
    count = layer.binary_macs + layer.float_macs  # one of them is 0
    return human_count(count) if count else ""
