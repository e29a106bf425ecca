"""What the NEON convolution kernel would reach on a Raspberry Pi 4 and 5, by the model of llvm-mca.

Takes the kernels' machine code from a built aarch64 library: finds the loops over 128-bit steps by
their population counts and backward branches, the loops around them, and the code that a 3x3
convolution runs through them, and gives that code to llvm-mca for Cortex-A72 and for Cortex-A76 (the
Neoverse N1 model, which is the same core, at four instructions per cycle). These are MODEL figures,
not measurements on a board: caches never miss and branches are always predicted.

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
import functools
import heapq
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnn_deploy.errors import BnnDeployError, InputError, SetupError

CHANNELS = (32, 64, 96, 128, 192, 256, 512)
TAPS = 3  # in a row and in a column of the kernel
BLOCK = 8  # output channels of a register tile
MODELS = {  # llvm-mca's options
    "cortex-a72": ("-mcpu=cortex-a72",),
    "cortex-a76": ("-mcpu=neoverse-n1", "-dispatch=4"),
}
MIN_LLVM = 19
# Larq Compute Engine 0.16, kernel 8x4x4, inner loop, by the same models: the best public figures.
# Larq has no kernel of its own for 96 channels.
LARQ = {32: (68.2, 73.0), 64: (81.8, 73.1), 96: None, **dict.fromkeys((128, 192, 256, 512), (85.3, 85.3))}
# memcpy's loop for long rows.
COPY = ["ldp q0, q1, [x1], #32", "stp q0, q1, [x0], #32", "subs x2, x2, #32", "b.hi 1f"]
COPY_BYTES = 32
CARRY_SAVE_WORDS = 72  # kMinWords of kernels/neon_dotprod.cc
PIXEL_BYTES = 20  # per pixel: window pointer, initial-sum pointer, number of products; looked up once

SELECTS = {"bsl", "bit", "bif"}
BRANCH = re.compile(r"(b|b\.\w+|cbz|cbnz|tbz|tbnz)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """The target address of a branch inside a function; None for other instructions."""
        if not BRANCH.match(self.name):
            return None
        return int(self.operands.split("<")[0].split(",")[-1].strip(), 16)

    @property
    def assembly(self) -> str:
        """Assembly for llvm-mca. Branches target a label ``1`` at the end; llvm-mca ignores branch targets."""
        operands = self.operands.split("<")[0].strip()
        if self.target is not None or self.name == "adrp":
            operands = ", ".join([*(part.strip() for part in operands.split(",")[:-1]), "1f"])
        return f"{self.name} {operands}"


def parse_listing(listing: str) -> list[Instruction]:
    """The instructions of an ``objdump -d --no-show-raw-insn`` listing, of GNU or of LLVM."""
    line = re.compile(r"\s*([0-9a-f]+):\s+([a-z][a-z0-9.]*)(?:\s+(.*))?$")
    found = (line.match(text) for text in listing.splitlines())
    return [Instruction(int(m[1], 16), m[2], (m[3] or "").split("//")[0].strip()) for m in found if m]


def count(instructions: Iterable[Instruction], name: str) -> int:
    return sum(instruction.name == name for instruction in instructions)


State = tuple[int, int, int]  # of a walk through a graph: (address, labels passed, vector eors passed)


def reachable(start: int, edges: dict[int, list[int]], without: set[int]) -> set[int]:
    found, todo = {start}, [start]
    while todo:
        for node in edges[todo.pop()]:
            if node not in found and node not in without:
                found.add(node)
                todo.append(node)
    return found


class Graph:
    """The code around a loop, as basic blocks. Some blocks have a one-letter label, such as ``V``."""

    def __init__(self, code: Sequence[Instruction], first: int, last: int, loops_around: int) -> None:
        """``code[first : last + 1]`` is the loop, inside ``loops_around`` others."""
        self._code = code
        self._index = {instruction.address: i for i, instruction in enumerate(code)}
        self.loop = code[first : last + 1]
        begin = self.loop[0].address
        self._starts = {code[0].address, begin, *(i.target for i in code if i.target is not None)}
        self._starts |= {b.address for a, b in itertools.pairwise(code) if a.target is not None or a.name == "ret"}
        self.headers = self._headers_around(begin)[:loops_around]
        if len(self.headers) < loops_around:
            raise InputError(f"the loop at {begin:#x} is inside {len(self.headers)} loops, not {loops_around}")
        self.labels: dict[int, str] = {}

    def block(self, address: int) -> tuple[list[Instruction], list[int]]:
        """The basic block at ``address`` and the addresses of its successors."""
        block: list[Instruction] = []
        for i in range(self._index[address], len(self._code)):
            instruction = self._code[i]
            block.append(instruction)
            if instruction.name == "ret":
                return block, []
            after = [self._code[i + 1].address] if i + 1 < len(self._code) else []
            if instruction.target is not None:
                inside = [instruction.target] if instruction.target in self._index else []
                return block, inside if instruction.name == "b" else inside + after
            if after and after[0] in self._starts:
                return block, after
        return block, []

    def _headers_around(self, address: int) -> list[int]:
        """The headers (first blocks) of the loops around the block at ``address``, innermost first.

        A loop is a strongly connected component; removing its header leaves the inner loops.
        """
        successors = {start: self.block(start)[1] for start in self._starts & set(self._index)}
        predecessors: dict[int, list[int]] = {start: [] for start in successors}
        for start, targets in successors.items():
            for target in targets:
                predecessors[target].append(start)
        headers: list[int] = []
        while True:
            component = reachable(address, successors, set(headers)) & reachable(address, predecessors, set(headers))
            if component == {address}:
                return headers[::-1]
            entries = [
                block for block in component if not component.issuperset(set(predecessors[block]) - set(headers))
            ]
            entries += [block for block in component if set(predecessors[block]) & set(headers)]
            if not entries:
                raise InputError(f"nothing leads into the loop around {address:#x}")
            headers.append(min(entries))

    def reachable_from(self, address: int) -> set[int]:
        return reachable(address, {start: self.block(start)[1] for start in self._starts & set(self._index)}, set())

    def cycle(self, start: int, order: str, differences: int) -> list[Instruction]:
        """The instructions of the shortest cycle through ``start`` with the labelled blocks in ``order``.

        The search ignores register values; ``differences`` is the number of vector eors in the cycle.
        """
        heap: list[tuple[int, State, State | None]] = [(0, (start, 0, 0), None)]
        came_from: dict[State, State | None] = {}
        while heap:
            length, state, previous = heapq.heappop(heap)
            address, position, done = state
            if state == (start, len(order), differences):
                return self._blocks_to(previous, came_from)
            label = self.labels.get(address)
            if state in came_from or (label is not None and order[position : position + 1] != label):
                continue
            came_from[state] = previous
            block, successors = self.block(address)
            done += sum(i.name == "eor" and i.operands.startswith("v") for i in block)
            if done <= differences:
                for successor in successors:
                    following = (successor, position + (label is not None), done)
                    heapq.heappush(heap, (length + len(block), following, state))
        raise InputError(f"no way through the tile at {start:#x} with the blocks {order}")

    def _blocks_to(self, state: State | None, came_from: dict[State, State | None]) -> list[Instruction]:
        blocks: list[list[Instruction]] = []
        while state is not None:
            blocks.append(self.block(state[0])[0])
            state = came_from[state]
        return [instruction for block in reversed(blocks) for instruction in block]


class Kernel(Graph):
    """The tile of the NEON unit, for ``pixels`` pixels and ``BLOCK`` channels.

    Labels: ``T`` begins a tile, ``R`` a run; ``V``, ``H`` and ``Q`` are steps of 128, 64 and 32 bits of a channel.
    The tile of a 3x3 convolution with 64 channels (3 runs of 6 words) passes ``TRVHRVHRVH``.
    """

    def __init__(self, code: Sequence[Instruction], first: int, last: int) -> None:
        super().__init__(code, first, last, loops_around=2)
        loop = self.loop
        accumulators = {i.operands.split(",")[0] for i in loop if i.name == "uadalp"}
        self.pixels = len(accumulators)
        if count(loop, "cnt") != BLOCK * self.pixels:
            raise InputError(
                f"the loop at {loop[0].address:#x} has {count(loop, 'cnt')} population counts for "
                f"{self.pixels} accumulators, not {BLOCK} for each: it is not one step of 128 bits"
            )
        begin = loop[0].address
        self.labels = {begin: "V", self.headers[0]: "R", self.headers[1]: "T"}
        for address in self.reachable_from(self.headers[1]):
            counts = count(self.block(address)[0], "cnt")
            if counts and address != begin:
                names = {BLOCK // 2 * self.pixels: "H", BLOCK // 4 * self.pixels: "Q"}
                self.labels[address] = names.get(counts, "?")

    def trace(self, words: int, runs: int) -> list[Instruction]:
        """The instructions from the start of a tile to the start of the next, for runs of ``words`` words."""
        steps = "V" * (words // 4) + "H" * (words // 2 % 2) + "Q" * (words % 2)
        return self.cycle(self.headers[1], "T" + ("R" + steps) * runs, BLOCK // 4 * self.pixels * words * runs)

    def run_of(self, trace: Sequence[Instruction]) -> Sequence[Instruction]:
        """The part of a trace from the start of its first run to the start of its second."""
        starts = [i for i, instruction in enumerate(trace) if self.labels.get(instruction.address) == "R"]
        return trace[starts[0] : starts[1]]


class CarrySaveKernel(Graph):
    """The tile of the dotprod unit. Labels: ``V`` is two adders for each of ``sums`` sums, ``L`` a last adder."""

    def __init__(self, code: Sequence[Instruction], first: int, last: int) -> None:
        super().__init__(code, first, last, loops_around=1)
        self.sums = len({i.operands.split(",")[0] for i in self.loop if i.name == "sdot"})
        if self._adders(self.loop) != 2:
            raise InputError(f"the loop at {self.loop[0].address:#x} is not two carry-save adders for each sum")
        for address in self.reachable_from(self.headers[0]):
            adders = self._adders(self.block(address)[0])
            if adders:
                self.labels[address] = {1: "L", 2: "V"}.get(adders, "?")

    def _adders(self, block: Sequence[Instruction]) -> float:
        return sum(instruction.name in SELECTS for instruction in block) / self.sums

    def trace(self, vectors: int) -> list[Instruction]:
        """The instructions from the start of a tile to the start of the next."""
        adders = (vectors - 1) // 2
        return self.cycle(self.headers[0], "V" * (adders // 2) + "L" * (adders % 2), self.sums * vectors)


def single_block_loops(code: Sequence[Instruction]) -> Iterable[tuple[int, int]]:
    """First and last index of every loop without another branch."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    for last, instruction in enumerate(code):
        first = index.get(instruction.target) if instruction.target is not None else None
        if first is not None and first < last and all(i.target is None for i in code[first:last]):
            yield first, last


@dataclasses.dataclass(frozen=True)
class Library:
    bits: Kernel  # for tiles with bit output
    floats: Kernel  # for tiles with sums for float output
    finish: list[Instruction]  # the loop from sums to floats, 4 per scvtf
    carry_save: CarrySaveKernel
    signs: list[Instruction]  # the loop from carry_save's sums to bits, 32 per iteration
    encode: list[Instruction]  # the loop of the prefix XORs, a vector per iteration


def find_kernels(code: Sequence[Instruction]) -> Library:
    """Locates the loops of the NEON kernels; raises InputError if the code has another form."""
    loops = [code[first : last + 1] for first, last in single_block_loops(code)]
    where = list(single_block_loops(code))
    steps = [at for at, loop in zip(where, loops, strict=True) if count(loop, "uadalp")]
    if not steps:
        raise InputError("no loop with cnt, addp and uadalp: not an aarch64 library with the NEON kernels")
    most = max(count(code[a : b + 1], "cnt") for a, b in steps)
    kernels = {}
    for a, b in steps:
        if count(code[a : b + 1], "cnt") == most:
            kernel = Kernel(code, a, b)
            kernels["bits" if count(kernel.trace(words=4, runs=1), "cmhi") else "floats"] = kernel
    if set(kernels) != {"bits", "floats"}:
        raise InputError(f"found the tiles {sorted(kernels)}: expected one for bits and one for floats")

    adders = [at for at, loop in zip(where, loops, strict=True) if count(loop, "sdot")]
    if not adders:
        raise InputError("no loop with cnt and sdot: the dotprod unit is missing")

    def smallest(what: str, names: set[str]) -> list[Instruction]:
        found = [list(loop) for loop in loops if names <= {instruction.name for instruction in loop}]
        if not found:
            raise InputError(f"no loop of {what}, with {', '.join(sorted(names))}")
        return min(found, key=len)

    return Library(
        kernels["bits"],
        kernels["floats"],
        smallest("the float output", {"scvtf", "trn1"}),
        CarrySaveKernel(code, *max(adders, key=lambda at: count(code[at[0] : at[1] + 1], "sdot"))),
        smallest("the signs", {"uzp2", "cmlt", "addp"}),
        smallest("prefix XORs", {"eor", "str"}),
    )


# --- the tools ----------------------------------------------------------------------------------


def disassemble(library: Path) -> list[Instruction]:
    """Disassembles with the first objdump that supports aarch64."""
    if not library.is_file():
        raise InputError(f"{library}: no such file; build the aarch64 library first and give it with --library")
    tools = ("aarch64-linux-gnu-objdump", "llvm-objdump-19", "llvm-objdump", "objdump")
    found = [path for tool in tools if (path := shutil.which(tool))]
    if not found:
        raise SetupError("no objdump: install binutils-aarch64-linux-gnu (Debian), or llvm")
    done = subprocess.run([found[0], "-d", "--no-show-raw-insn", str(library)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{library}: {found[0]} cannot read it: {done.stderr.strip().splitlines()[-1]}")
    return parse_listing(done.stdout)


@functools.cache
def llvm_mca() -> str:
    names = [f"llvm-mca-{version}" for version in range(MIN_LLVM, MIN_LLVM + 12)] + ["llvm-mca"]
    found = [path for name in names if (path := shutil.which(name))]
    if not found:
        raise SetupError(f"no llvm-mca: install llvm-{MIN_LLVM} (Debian) or later")
    text = subprocess.run([found[0], "--version"], capture_output=True, text=True).stdout
    check_version(found[0], text)
    return found[0]


def check_version(tool: str, text: str) -> None:
    """Raises SetupError if llvm-mca's models of these cores are older than the figures'."""
    version = re.search(r"LLVM version (\d+)", text)
    if version is None or int(version[1]) < MIN_LLVM:
        raise SetupError(f"{tool} is LLVM {version[1] if version else '?'}: install llvm-{MIN_LLVM} or later")


def parse_cycles(report: str) -> int:
    total = re.search(r"^Total Cycles:\s+(\d+)$", report, re.MULTILINE)
    if total is None:
        raise SetupError("llvm-mca printed no 'Total Cycles'")
    return int(total[1])


@functools.cache
def cycles(assembly: tuple[str, ...], model: str, iterations: int = 400) -> float:
    """Cycles per iteration of straight-line code that llvm-mca repeats ``iterations`` times."""
    command = [llvm_mca(), "-mtriple=aarch64", f"-iterations={iterations}", *MODELS[model]]
    done = subprocess.run(command, input="\n".join([*assembly, "1:"]), capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[0]}")
    return parse_cycles(done.stdout) / iterations


def cycles_of(code: Sequence[Instruction], model: str, iterations: int = 400) -> float:
    return cycles(tuple(instruction.assembly for instruction in code), model, iterations)


# --- the table ----------------------------------------------------------------------------------


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
    parts: dict[str, float]  # cycles per output pixel


def model_layer(library: Library, channels: int, model: str) -> Row:
    """A 3x3 convolution from ``channels`` to ``channels`` channels."""
    macs = channels * TAPS**2  # per pixel and output channel
    words = TAPS * channels // 32
    copy = cycles(tuple(COPY), model) / COPY_BYTES
    parts = {"copies of input and pointers": (channels / 8 + PIXEL_BYTES) * copy}
    parts["floats from sums"] = channels * cycles_of(library.finish, model) / (4 * count(library.finish, "scvtf"))
    carry_save = model == "cortex-a76" and TAPS * words >= CARRY_SAVE_WORDS
    if carry_save:
        adder = library.carry_save
        vectors = -(-TAPS * words // 4)
        inner_loop = 4 * adder.sums * 128 / cycles_of(adder.loop, model)
        parts["copies of windows"] = 16 * vectors * copy
        parts["prefix XORs"] = vectors * cycles_of(library.encode, model)
        parts["tiles"] = cycles_of(adder.trace(vectors), model, iterations=100) * channels / adder.sums
        parts["bits from sums"] = channels / 32 * cycles_of(library.signs, model)
        bits = sum(parts.values()) - parts["floats from sums"]
        floats = sum(parts.values()) - parts["bits from sums"]
    else:
        for name, kernel in (("to bits", library.bits), ("to sums", library.floats)):
            trace = kernel.trace(words, TAPS)
            tiles = channels / BLOCK / kernel.pixels  # per pixel
            parts["inner loops " + name] = TAPS * cycles_of(kernel.run_of(trace), model) * tiles
            parts["tiles " + name] = cycles_of(trace, model, iterations=100) * tiles
        inner_loop = macs * channels / parts["inner loops to bits"]
        bits = parts["tiles to bits"] + parts["copies of input and pointers"]
        floats = parts["tiles to sums"] + parts["floats from sums"] + parts["copies of input and pointers"]
    public = LARQ[channels]
    larq = None if public is None else public[list(MODELS).index(model)]
    total = macs * channels
    return Row(channels, model, carry_save, inner_loop, total / bits, total / floats, larq, parts)


def table(rows: Sequence[Row]) -> str:
    by_key = {(row.channels, row.model): row for row in rows}
    lines = [
        "Binary multiply-accumulates per cycle of a 3x3 convolution, C to C channels: MODEL figures of",
        "llvm-mca (no cache misses, perfect branch prediction), NOT measured on a board.",
        "",
        "| C | inner loop | | whole, bits out | | whole, float out | | Larq, inner loop | |",
        "|---|---|---|---|---|---|---|---|---|",
        "| |" + " A72 | A76 |" * 4,
    ]
    for channels in dict.fromkeys(row.channels for row in rows):
        pair = [by_key[channels, model] for model in MODELS]
        cells = [
            f"{getattr(row, name):.1f}{'*' * row.carry_save}"
            for name in ("inner_loop", "bits", "floats")
            for row in pair
        ]
        cells += ["-" if row.larq is None else f"{row.larq:.1f}" for row in pair]
        lines.append(f"| {channels} | {' | '.join(cells)} |")
    lines += ["", "* by carry-save addition, in the dotprod unit."]
    lines += ["Models: " + "; ".join(f"{name}: llvm-mca {' '.join(options)}" for name, options in MODELS.items())]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", type=Path, required=True, help="libbnn_deploy_ops.so for aarch64")
    parser.add_argument("--json", action="store_true", help="print JSON with the cycles of each part")
    options = parser.parse_args(arguments)
    try:
        library = find_kernels(disassemble(options.library))
        rows = [model_layer(library, channels, model) for channels in CHANNELS for model in MODELS]
    except BnnDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        note = "model figures of llvm-mca, not measured on a board"
        print(json.dumps({"note": note, "models": MODELS, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
