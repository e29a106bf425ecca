"""What the NEON convolution kernel would reach on Raspberry Pis 3 to 5, by the model of llvm-mca.

Takes the kernels' machine code from a built aarch64 library: finds the loops over 128-bit steps by
their population counts and backward branches, the loops around them, and the code that a 3x3
convolution runs through them, and gives that code to llvm-mca for Cortex-A53, Cortex-A72 and
Cortex-A76 (the Neoverse N1 model, which is the same core, at four instructions per cycle). These are
MODEL figures, not measurements on a board: caches never miss and branches are always predicted; and
the Cortex-A53, which works in order, would wait for each load that comes late.

The inner loop of the NEON unit is one run (a row of three taps, contiguous in memory) with all its
pointer arithmetic. The inner loop of the dotprod unit, for long windows on Cortex-A76, is two
carry-save adders. The whole tile adds the other costs of a layer with as many output channels: start
and end of the register tile, reduction, output as bits or as float32, the copy of the padded input
and, for the dotprod unit, of the windows.

    python tests/benchmarks/neon_model.py --library build-arm64/libbnn_deploy_ops.so
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mca.layers import Window, binary_conv, by_carry_save
from mca.listing import disassemble
from mca.neon import BLOCK, Library, find_kernels
from mca.tool import ARM, cycles_of

from bnn_deploy.errors import BnnDeployError
from bnn_deploy.system import library_name

CHANNELS = (32, 64, 96, 128, 192, 256, 512)
TAPS = 3  # in a row and in a column of the kernel
# Larq Compute Engine 0.16, kernel 8x4x4, inner loop, by the same models: the best public figures.
# Larq has no kernel of its own for 96 channels.
LARQ = {
    "cortex-a72": {32: 68.2, 64: 81.8, **dict.fromkeys((128, 192, 256, 512), 85.3)},
    "cortex-a76": {32: 73.0, 64: 73.1, **dict.fromkeys((128, 192, 256, 512), 85.3)},
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Binary multiply-accumulates per cycle of a layer with as many output as input channels."""

    channels: int
    model: str
    carry_save: bool  # whether the dotprod unit runs the layer
    inner_loop: float
    bits: float
    floats: float
    larq: float | None
    parts: dict[str, dict[str, float]]  # cycles per output pixel, with output as bits and as floats


def model_layer(library: Library, channels: int, model: str) -> Row:
    """A 3x3 convolution from ``channels`` to ``channels`` channels."""
    pixels = max(library.bits)
    window = Window(channels, channels, (TAPS, TAPS), pixels, pixels)
    carry_save = by_carry_save(window, model)
    if carry_save:
        adder = library.carry_save[max(library.carry_save)]
        inner_loop = 4 * adder.sums * 128 / cycles_of(adder.loop, model)
    else:
        kernel = library.bits[pixels]
        run = kernel.run_of(kernel.trace(window.words, TAPS))
        inner_loop = BLOCK * pixels * TAPS * channels / cycles_of(run, model)
    parts = {
        output: {name: cycles / pixels for name, cycles in binary_conv(library, window, floats, model).items()}
        for output, floats in (("bits", False), ("floats", True))
    }
    bits, floats = (window.macs / pixels / sum(parts[output].values()) for output in ("bits", "floats"))
    larq = LARQ.get(model, {}).get(channels)
    return Row(channels, model, carry_save, inner_loop, bits, floats, larq, parts)


def table(rows: Sequence[Row]) -> str:
    by_key = {(row.channels, row.model): row for row in rows}
    names = [name.removeprefix("cortex-").upper() for name in (*ARM, *ARM, *ARM, *LARQ)]
    lines = [
        "Binary multiply-accumulates per cycle of a 3x3 convolution, C to C channels: MODEL figures of",
        "llvm-mca (no cache misses, perfect branch prediction), NOT measured on a board.",
        "",
        "| C | inner loop | | | whole, bits out | | | whole, float out | | | Larq, inner loop | |",
        "|---" * (len(names) + 1) + "|",
        f"| | {' | '.join(names)} |",
    ]
    for channels in dict.fromkeys(row.channels for row in rows):
        found = [by_key[channels, model] for model in ARM]
        cells = [
            f"{getattr(row, name):.1f}{'*' * row.carry_save}"
            for name in ("inner_loop", "bits", "floats")
            for row in found
        ]
        cells += ["-" if row.larq is None else f"{row.larq:.1f}" for row in found if row.model in LARQ]
        lines.append(f"| {channels} | {' | '.join(cells)} |")
    lines += ["", "* by carry-save addition, in the dotprod unit."]
    lines += ["Models: " + "; ".join(f"{name}: llvm-mca {' '.join(options[1:])}" for name, options in ARM.items())]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", type=Path, required=True, help=f"{library_name('linux')} for aarch64")
    parser.add_argument("--json", action="store_true", help="print JSON with the cycles of each part")
    options = parser.parse_args(arguments)
    try:
        library = find_kernels(disassemble(options.library))
        rows = [model_layer(library, channels, model) for channels in CHANNELS for model in ARM]
    except BnnDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        note = "model figures of llvm-mca, not measured on a board"
        print(json.dumps({"note": note, "models": ARM, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
