"""The inner loops of the x86-64 units of a built library."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bnn_deploy.errors import InputError
from mca.listing import Instruction, count

LONGEST = 600  # instructions of a loop


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a unit's loops are known: those with the most `marks` among the loops with registers `of`.

    They do `macs` binary multiply-accumulates per instruction `counted`.
    """

    marks: str
    of: str
    counted: str
    macs: int


SHAPES = {
    "avx2": Shape("vpavgb", "%ymm", "vpshufb", 256),  # a nibble of 32 channels of two pixels
    "avx512bw": Shape("vpternlogd", "%zmm", "vpshufb", 8192),  # of 32 bytes of 64 channels, counted by two lookups
    "avx512": Shape("vpternlogd", "%zmm", "vpopcntd", 1024),  # two words of 16 channels
}


@dataclasses.dataclass(frozen=True)
class UnitLoop:
    code: list[Instruction]
    macs: int  # per iteration


def find_loops(code: Sequence[Instruction], unit: str) -> list[UnitLoop]:
    """The innermost loops of a unit with the most marks.

    A loop may branch forwards, around work for the next iteration.
    """
    shape = SHAPES[unit]
    index = {instruction.address: i for i, instruction in enumerate(code)}
    found: list[list[Instruction]] = []
    for last, instruction in enumerate(code):
        first = index.get(instruction.target) if instruction.target is not None else None
        if first is None or not first < last < first + LONGEST:
            continue
        loop = list(code[first : last + 1])
        backwards = [i for i in loop if i.target is not None and i.target <= i.address]
        works = count(loop, shape.marks) and count(loop, shape.counted)
        if len(backwards) == 1 and works and any(shape.of in i.operands for i in loop):
            found.append(loop)
    if not found:
        raise InputError(f"no loop of the unit {unit}, with {shape.marks} and registers {shape.of}")
    most = max(count(loop, shape.marks) for loop in found)
    return [
        UnitLoop(loop, shape.macs * count(loop, shape.counted)) for loop in found if count(loop, shape.marks) == most
    ]
