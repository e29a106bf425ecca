"""The loops of the NEON units of a built aarch64 library."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bnn_deploy.errors import InputError
from mca.listing import Graph, Instruction, count, single_block_loops

BLOCK = 8  # output channels of a register tile
LANES = 4  # floats in a vector
SELECTS = {"bsl", "bit", "bif"}


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


class DirectKernel(Graph):
    """The tile of the direct convolution. Its loop is ``group`` taps of ``sums`` sums: one of floats, four of bytes."""

    def __init__(self, code: Sequence[Instruction], first: int, last: int) -> None:
        super().__init__(code, first, last, loops_around=1)
        self.labels = {self.loop[0].address: "V"}
        limbs = 2  # of a weight that bytes are multiplied by
        self.group = 4 if count(self.loop, "sdot") else 1
        self.sums = LANES * (count(self.loop, "fmla") + count(self.loop, "sdot") // limbs)

    def trace(self) -> list[Instruction]:
        """The instructions from the start of a tile of one group of taps to the start of the next tile."""
        return self.cycle(self.headers[0], "V", 0)


@dataclasses.dataclass(frozen=True)
class Library:
    bits: dict[int, Kernel]  # number of pixels -> the tile with bit output
    floats: dict[int, Kernel]  # likewise, with sums for float output
    finish: list[Instruction]  # the loop from sums to floats, 4 per scvtf
    carry_save: dict[int, CarrySaveKernel]  # number of sums -> the tile
    signs: list[Instruction]  # the loop from carry_save's sums to bits, 32 per iteration
    encode: list[Instruction]  # the loop of the prefix XORs, a vector per iteration
    binarize: list[Instruction]  # the loop from floats [C, pixels] to bits, 4 per fcmge
    binarize_rows: list[Instruction]  # the same from floats [pixels, C]


def find_kernels(code: Sequence[Instruction]) -> Library:
    """Locates the loops of the NEON kernels; raises InputError if the code has another form."""
    where = list(single_block_loops(code))
    loops = [code[first : last + 1] for first, last in where]
    steps = [at for at, loop in zip(where, loops, strict=True) if count(loop, "uadalp")]
    if not steps:
        raise InputError("no loop with cnt, addp and uadalp: not an aarch64 library with the NEON kernels")
    kernels: dict[str, dict[int, Kernel]] = {}
    for at in steps:
        kernel = Kernel(code, *at)
        output = "bits" if count(kernel.trace(words=4, runs=1), "cmhi") else "floats"
        kernels.setdefault(output, {})[kernel.pixels] = kernel
    if set(kernels) != {"bits", "floats"}:
        raise InputError(f"found the tiles {sorted(kernels)}: expected some for bits and some for floats")

    adders = [
        CarrySaveKernel(code, *at)
        for at, loop in zip(where, loops, strict=True)
        if SELECTS & {i.name for i in loop} and count(loop, "sdot")
    ]
    if not adders:
        raise InputError("no loop with cnt and sdot: the dotprod unit is missing")

    def smallest(what: str, names: set[str], but: set[str] = frozenset(), times: int = 1) -> list[Instruction]:
        """The shortest loop with these instructions, with the first of them several times, without `but`."""
        found = [list(loop) for loop in loops if names <= (has := {i.name for i in loop}) and not but & has]
        found = [loop for loop in found if count(loop, min(names)) >= times]
        if not found:
            raise InputError(f"no loop of {what}, with {', '.join(sorted(names))}")
        return min(found, key=len)

    return Library(
        kernels["bits"],
        kernels["floats"],
        smallest("the float output", {"scvtf", "trn1"}),
        {kernel.sums: kernel for kernel in adders},
        smallest("the signs", {"uzp2", "cmlt", "addp"}),
        smallest("prefix XORs", {"eor", "str"}),
        smallest("signs of planes", {"fcmge", "shl", "orr"}, but={"fabs"}, times=4),
        smallest("signs of rows", {"fcmge", "uzp1", "addp"}),
    )


def find_direct(code: Sequence[Instruction], name: str = "fmla") -> DirectKernel:
    """Locates the register tile of most channels of the direct convolution of floats, or of bytes (name: sdot).

    Its loop has as many sums as multiply-adds, each of a vector of weights by one number of a vector of pixels.
    """
    found = {}
    for first, last in single_block_loops(code):
        adds = [i.operands.split(", ") for i in code[first:last] if i.name == name and i.operands.endswith("]")]
        sums, weights = ({operands[k] for operands in adds} for k in (0, 1))
        if len(adds) >= 8 and len(sums) == len(adds):
            found[first, last] = (len(sums), len(weights))
    if not found:
        raise InputError(f"no loop of the direct convolution, with {name} by element: the library has none")
    return DirectKernel(code, *max(found, key=lambda at: found[at]))
