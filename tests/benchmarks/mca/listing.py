"""Machine code as a graph of basic blocks, and its loops."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnn_deploy.errors import InputError, SetupError

BRANCH = re.compile(r"(b|b\.\w+|cbz|cbnz|tbz|tbnz|j[a-z]+)$")
COMMENT = re.compile(r"//|\s#\s")
ARCHITECTURES = {62: "x86_64", 183: "aarch64"}  # e_machine of ELF


@dataclasses.dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """The target address of a branch inside a function; None for other instructions."""
        if not BRANCH.match(self.name) or self.operands.startswith("*"):
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
    return [Instruction(int(m[1], 16), m[2], COMMENT.split(m[3] or "")[0].strip()) for m in found if m]


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
                return block, inside if instruction.name in ("b", "jmp") else inside + after
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


def single_block_loops(code: Sequence[Instruction]) -> Iterable[tuple[int, int]]:
    """First and last index of every loop without another branch."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    for last, instruction in enumerate(code):
        first = index.get(instruction.target) if instruction.target is not None else None
        if first is not None and first < last and all(i.target is None for i in code[first:last]):
            yield first, last


def architecture(library: Path) -> str:
    """Of an ELF file: "x86_64" or "aarch64"."""
    if not library.is_file():
        raise InputError(f"{library}: no such file; build the library first")
    with library.open("rb") as file:
        header = file.read(20)
    found = ARCHITECTURES.get(int.from_bytes(header[18:], "little")) if header[:4] == b"\x7fELF" else None
    if found is None:
        raise InputError(f"{library}: not an ELF file for {' or '.join(ARCHITECTURES.values())}")
    return found


def disassemble(library: Path, *options: str) -> list[Instruction]:
    """The code of a library, by the first objdump that knows its architecture; `options` are objdump's."""
    arch = architecture(library)
    gnu = "objdump" if arch == platform.machine() else f"{arch}-linux-gnu-objdump"
    found = [path for tool in (gnu, "llvm-objdump-19", "llvm-objdump") if (path := shutil.which(tool))]
    if not found:
        raise SetupError(f"no objdump: install binutils-{arch.replace('_', '-')}-linux-gnu (Debian), or llvm")
    command = [found[0], "-d", "--no-show-raw-insn", *options, str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{library}: {found[0]} cannot read it: {done.stderr.strip().splitlines()[-1]}")
    return parse_listing(done.stdout)
