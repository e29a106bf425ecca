"""onnxruntime's operators on ARM64: its matrix multiplication, found in its library, and bounds for the rest.

onnxruntime 1.27.0's wheel for aarch64 runs a float32 Conv as im2col and SGEMM, without blocked layouts: seen in the
graph that it optimised and in the code that ran, under emulation of a Cortex-A72. Every bound is favourable to it.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bnn_deploy.errors import InputError
from mca.layers import Window, copied
from mca.listing import Instruction, count, disassemble, single_block_loops
from mca.tool import cycles, cycles_of

LANES = 4
TILE_ROWS, TILE_COLUMNS = 4, 16  # of SGEMM's largest register tile
UNROLLED = 4  # products of a sum per iteration
FMLA_BY_ELEMENT = (0xFFC0F400, 0x4F801000)  # mask and value of fmla v.4s, v.4s, v.s[i]
NEAR = 0x800  # bytes: the loops of one function

LOOP = ("subs x2, x2, #32", "b.hi 1f")
BOUNDS = {  # loops over 8 floats
    "elementwise": ("ldp q0, q1, [x1], #32", "fmax v0.4s, v0.4s, v9.4s", "fmax v1.4s, v1.4s, v9.4s"),
    "add": ("ldp q0, q1, [x1], #32", "ldp q2, q3, [x3], #32", "fadd v0.4s, v0.4s, v2.4s", "fadd v1.4s, v1.4s, v3.4s"),
    "tap of a pool": ("ldp q0, q1, [x1], #32", "fmax v8.4s, v8.4s, v0.4s", "fmax v9.4s, v9.4s, v1.4s"),
}
STORE = "stp q0, q1, [x0], #32"
TRANSPOSE = (  # 4 x 4 floats
    *(f"ldr q{i}, [x1], #16" for i in range(4)),
    *(f"trn{1 + i % 2} v{4 + i}.4s, v{i // 2 * 2}.4s, v{i // 2 * 2 + 1}.4s" for i in range(4)),
    *(f"zip{1 + i % 2} v{8 + i}.2d, v{4 + i // 2}.2d, v{6 + i // 2}.2d" for i in range(4)),
    *(f"str q{8 + i}, [x0], #16" for i in range(4)),
    *LOOP,
)


@dataclasses.dataclass(frozen=True)
class Sgemm:
    tile: list[Instruction]  # the loop for TILE_ROWS x TILE_COLUMNS sums, UNROLLED products of each
    row: list[Instruction]  # for one row

    def product(self, rows: int, columns: int, depth: int, model: str) -> float:
        """Cycles of [rows, depth] x [depth, columns], without the start and end of tiles."""
        steps = -(-columns // TILE_COLUMNS) * depth / UNROLLED
        whole, rest = divmod(rows, TILE_ROWS)
        return steps * (whole * cycles_of(self.tile, model) + rest * cycles_of(self.row, model))

    def conv(self, window: Window, model: str) -> float:
        """Cycles of a convolution: im2col (1x1: none), a packed copy, SGEMM, bias and activation."""
        depth = window.channels * math.prod(window.kernel)
        copies = 1 if depth == window.channels and window.read == window.made else 2
        return (
            copies * copied(4 * depth * window.made, model)
            + self.product(window.outputs, window.made, depth, model)
            + floats("elementwise", window.outputs * window.made, model)
        )


def floats(bound: str, number: int, model: str) -> float:
    """Cycles of a pass over so many floats."""
    store = () if bound == "tap of a pool" else (STORE,)
    return number / 8 * cycles((*BOUNDS[bound], *store, *LOOP), model)


def pooled(taps: int, number: int, model: str) -> float:
    """Cycles of a pool with so many outputs."""
    return taps * floats("tap of a pool", number, model) + copied(4 * number, model) / 2


def transposed(number: int, model: str) -> float:
    """Cycles of a transposition of so many floats."""
    return number / 16 * cycles(TRANSPOSE, model)


def find_sgemm(path: Path) -> Sgemm:
    """The loops of onnxruntime's library, or of the one in its wheel."""
    if path.suffix != ".whl":
        return sgemm_loops(regions(path), path)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if "/onnxruntime_pybind11_state" in name]
        if not names:
            raise InputError(f"{path}: no onnxruntime_pybind11_state in this wheel")
        library = Path(wheel.extract(names[0], folder))
        return sgemm_loops(regions(library), path)


def sgemm_loops(parts: Iterable[Sequence[Instruction]], path: Path) -> Sgemm:
    """The first loops for 4 x 16 sums and for 1 x 16; `path` is named in the error."""
    found: dict[int, list[Instruction]] = {}
    for code in parts:
        for first, last in single_block_loops(code):
            loop = list(code[first : last + 1])
            adds = [i.operands.replace(" ", "").split(",") for i in loop if i.name == "fmla" and ".s[" in i.operands]
            rows = len({multiplier.split(".")[0] for _, _, multiplier in adds})  # a vector of a row each
            vectors = rows * TILE_COLUMNS // LANES
            if vectors and len(adds) == UNROLLED * vectors and len({sums for sums, _, _ in adds}) == vectors:
                found.setdefault(rows, loop)
    if not {TILE_ROWS, 1} <= set(found):
        raise InputError(f"{path}: no loops of SGEMM for {TILE_ROWS} and for 1 x {TILE_COLUMNS} sums in this library")
    return Sgemm(found[TILE_ROWS], found[1])


def regions(library: Path) -> Iterator[list[Instruction]]:
    """The code around multiply-adds by element: the whole of onnxruntime takes a minute."""
    address, code = text_section(library)
    mask, value = FMLA_BY_ELEMENT
    found = np.flatnonzero((np.frombuffer(code, "<u4") & mask) == value) * 4 + address
    for group in np.split(found, np.flatnonzero(np.diff(found) > NEAR) + 1):
        if len(group) >= UNROLLED * TILE_COLUMNS:
            start, stop = int(group[0]) - NEAR // 4, int(group[-1]) + NEAR // 4
            part = disassemble(library, f"--start-address={start}", f"--stop-address={stop}")
            if count(part, "fmla"):
                yield part


def text_section(library: Path) -> tuple[int, bytes]:
    """The address and the bytes of the executable section of a 64-bit ELF file that is the largest."""
    data = library.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 40)
    size, number = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(number)]
    code = [(length, address, offset) for _, _, flags, address, offset, length in sections if flags & 4]
    if not code:
        raise InputError(f"{library}: no code in this file")
    length, address, offset = max(code)
    return address, data[offset : offset + length // 4 * 4]
