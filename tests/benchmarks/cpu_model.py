"""Which CPU gets which kernels, and how many multiply-accumulates per cycle, by the model of llvm-mca.

    python tests/benchmarks/cpu_model.py --x86-64 build/libbnn_deploy_ops.so --aarch64 build-arm64/libbnn_deploy_ops.so
    python tests/benchmarks/cpu_model.py --x86-64 ... --aarch64 ... --write docs/cpus.md

The loops are those of the libraries, found in their machine code. MODEL figures, not measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mca import x86
from mca.listing import disassemble
from mca.neon import BLOCK, find_kernels
from mca.tool import MODELS, cycles, cycles_of
from mca.x86 import UnitLoop

from bnn_deploy.errors import BnnDeployError
from bnn_deploy.files import write_files
from bnn_deploy.system import library_name


@dataclasses.dataclass(frozen=True)
class Cpu:
    """`model` is llvm-mca's; `unit` the best of custom_ops/kernels/isas.inc that the CPU can run."""

    name: str
    model: str
    unit: str
    remark: str = ""


PORTS = "by ports the loop allows {}: llvm-mca adds the load's latency to chains of vpternlogd, so trust it less"
CPUS = (
    Cpu("Haswell", "haswell", "avx2"),
    Cpu("Skylake-X, Cascade Lake", "skylake-avx512", "avx512bw", PORTS.format(385)),
    Cpu(
        "Ice Lake, Sapphire Rapids",
        "icelake-server",
        "avx512",
        f"{PORTS.format(410)}; of two 512-bit FMA units it has one",
    ),
    Cpu("Alder Lake", "alderlake", "avx2", "its performance cores"),
    Cpu("Zen 2", "znver2", "avx2"),
    Cpu("Zen 3", "znver3", "avx2"),
    Cpu("Zen 4", "znver4", "avx512"),
    Cpu("Zen 5", "znver5", "avx512", "LLVM 19 has Zen 4's model for it; by its four 512-bit ports the loop allows 819"),
    Cpu("Cortex-A53", "cortex-a53", "neon", "works in order: it waits for each load that misses a cache"),
    Cpu("Cortex-A72", "cortex-a72", "neon"),
    Cpu("Cortex-A76", "cortex-a76", "neon_dotprod", "windows of fewer than 72 words by the unit neon"),
)

PAGE = """\
# Which CPU gets what

What `python tests/benchmarks/cpu_model.py --x86-64 LIBRARY --aarch64 LIBRARY --write docs/cpus.md` wrote.

The library takes the best unit of kernels that the CPU can run; BNN_DEPLOY_ISA forces another. The table has
multiply-accumulates per cycle of one core: **binary** of the unit's fastest inner loop, as it is in the built library,
and **fp32** of fused multiply-adds alone, the most that any float kernel can reach. They are **model figures** of
llvm-mca, not measurements: caches never miss, branches are always predicted, and what a layer does outside its inner
loop is not in them. Whole layers and networks are measured in [benchmarks.md](benchmarks.md), and modelled for ARM in
[raspberry-pi.md](raspberry-pi.md).

{table}
"""
HEADINGS = ("CPU", "llvm-mca", "unit", "binary", "fp32", "binary / fp32", "remark")


@dataclasses.dataclass(frozen=True)
class Figures:
    """Multiply-accumulates per cycle of a CPU, rounded as they are printed."""

    cpu: Cpu
    binary: float
    fp32: float


def page(rows: Sequence[Figures]) -> str:
    """The text of docs/cpus.md."""
    lines = [HEADINGS, ["---"] * len(HEADINGS)]
    for row in rows:
        cpu = row.cpu
        numbers = (f"{row.binary:.1f}", f"{row.fp32:.1f}", f"{row.binary / row.fp32:.1f}")
        lines.append([cpu.name, f"`{' '.join(MODELS[cpu.model][1:])}`", cpu.unit, *numbers, cpu.remark])
    return PAGE.format(table="\n".join(f"| {' | '.join(line)} |".replace("  |", " |") for line in lines))


def read_page(text: str) -> list[Figures]:
    """The figures that a page holds."""
    found = {}
    for line in text.splitlines():
        cells = re.split(r" *\| *", line.strip("| "))
        if len(cells) >= 6 and cells[0] not in (HEADINGS[0], "---"):
            found[cells[0]] = float(cells[3]), float(cells[4])
    return [Figures(cpu, *found[cpu.name]) for cpu in CPUS if cpu.name in found]


def multiply_adds(model: str) -> float:
    """fp32 multiply-accumulates per cycle: independent fused multiply-adds on registers, of the best width."""
    if model.startswith("cortex"):
        code = [f"fmla v{16 + i}.4s, v0.4s, v{1 + i % 8}.4s" for i in range(16)]
        return 16 * 4 / cycles(tuple(code), model)
    rates = []
    for register, lanes in (("ymm", 8), ("zmm", 16)):
        if register == "zmm" and not any(cpu.model == model and cpu.unit.startswith("avx512") for cpu in CPUS):
            continue
        code = [f"vfmadd231ps %{register}0, %{register}1, %{register}{4 + i}" for i in range(12)]
        rates.append(12 * lanes / cycles(tuple(code), model))
    return max(rates)


def loops(x86_64: Path, aarch64: Path) -> dict[str, list[UnitLoop]]:
    """The inner loops of each unit."""
    code = disassemble(x86_64)
    found = {unit: x86.find_loops(code, unit) for unit in x86.SHAPES}
    library = find_kernels(disassemble(aarch64))
    kernel, adder = library.bits[max(library.bits)], library.carry_save[max(library.carry_save)]
    found["neon"] = [UnitLoop(list(kernel.loop), 128 * BLOCK * kernel.pixels)]
    found["neon_dotprod"] = [UnitLoop(list(adder.loop), 4 * 128 * adder.sums)]
    return found


def model(found: dict[str, list[UnitLoop]]) -> list[Figures]:
    """The rows of the page."""
    rows = []
    for cpu in CPUS:
        binary = max(loop.macs / cycles_of(loop.code, cpu.model) for loop in found[cpu.unit])
        rows.append(Figures(cpu, round(binary, 1), round(multiply_adds(cpu.model), 1)))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--x86-64", type=Path, required=True, help=f"{library_name('linux')} for x86-64")
    parser.add_argument("--aarch64", type=Path, required=True, help=f"{library_name('linux')} for aarch64")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page, too")
    options = parser.parse_args(arguments)
    try:
        text = page(model(loops(options.x86_64, options.aarch64)))
        if options.write:
            write_files({options.write: text.encode()})
    except BnnDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
