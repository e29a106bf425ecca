"""tests/benchmarks/neon_model.py: the loops that it finds in a listing recorded from the built library."""

from __future__ import annotations

from pathlib import Path

import neon_model
import pytest
from mca import listing, neon, tool

from bnn_deploy.errors import InputError, SetupError

# The tile of one pixel and 8 channels with bit output, as objdump prints it (symbols and nops left out).
LISTING = """
    188c: str x21, [sp, #32]
    1890: ldr x0, [x9]
    1894: lsl x21, x10, #3
    1898: cmp x30, #0x0
    189c: b.le 1a40
    18a0: ldr x7, [x0, x10, lsl #3]
    18a4: mov x5, x19
    18a8: movi v16.4s, #0x0
    18ac: mov x3, x17
    18b0: ldr x4, [x5]
    18b4: add x4, x7, x4, lsl #2
    18b8: cmp x8, #0x3
    18bc: b.le 1a34
    18c0: mov x1, x4
    18c4: add x2, x6, x4
    18c8: mov x0, x3
    18d0: ldr q0, [x1], #16
    18d4: ldp q1, q7, [x0]
    18d8: ldp q4, q6, [x0, #32]
    18dc: ldp q2, q5, [x0, #64]
    18e0: ldp q3, q18, [x0, #96]
    18e4: add x0, x0, #0x80
    18e8: eor v1.16b, v0.16b, v1.16b
    18ec: eor v7.16b, v0.16b, v7.16b
    18f0: eor v4.16b, v0.16b, v4.16b
    18f4: eor v6.16b, v0.16b, v6.16b
    18f8: eor v2.16b, v0.16b, v2.16b
    18fc: eor v5.16b, v0.16b, v5.16b
    1900: eor v3.16b, v0.16b, v3.16b
    1904: eor v0.16b, v0.16b, v18.16b
    1908: cnt v1.16b, v1.16b
    190c: cnt v7.16b, v7.16b
    1910: cnt v4.16b, v4.16b
    1914: cnt v0.16b, v0.16b
    1918: cnt v6.16b, v6.16b
    191c: cnt v2.16b, v2.16b
    1920: cnt v5.16b, v5.16b
    1924: cnt v3.16b, v3.16b
    1928: addp v1.16b, v1.16b, v7.16b
    192c: addp v4.16b, v4.16b, v6.16b
    1930: addp v2.16b, v2.16b, v5.16b
    1934: addp v3.16b, v3.16b, v0.16b
    1938: addp v0.16b, v1.16b, v4.16b
    193c: addp v1.16b, v2.16b, v3.16b
    1940: addp v0.16b, v0.16b, v1.16b
    1944: uadalp v16.8h, v0.16b
    1948: cmp x1, x2
    194c: b.ne 18d0
    1950: add x3, x3, x14
    1954: mov x0, x15
    1958: cbnz x13, 19b8
    195c: cbnz x12, 1a08
    1960: add x5, x5, #0x8
    1964: cmp x11, x5
    1968: b.ne 18b0
    196c: ldp x0, x1, [x18]
    1970: ldr x0, [x0, x21]
    1974: ldr q0, [x0, x20]
    1978: ldr x0, [x18, #16]
    197c: cmhi v0.8h, v0.8h, v16.8h
    1980: madd x0, x10, x0, x1
    1984: add x10, x10, #0x1
    1988: and v0.16b, v0.16b, v17.16b
    198c: addp v0.8h, v0.8h, v0.8h
    1990: addp v0.8h, v0.8h, v0.8h
    1994: addp v0.8h, v0.8h, v0.8h
    1998: str b0, [x0, x16]
    199c: ldr x0, [x9, #8]
    19a0: cmp x0, x10
    19a4: b.gt 1890
    19a8: ldr x21, [sp, #32]
    19ac: ldp x19, x20, [sp, #16]
    19b0: ldp x29, x30, [sp], #48
    19b4: ret
    19b8: lsl x1, x0, #2
    19bc: add x0, x0, #0x2
    19c0: ldp q1, q3, [x3]
    19c4: ldr d0, [x4, x1]
    19c8: ldp q2, q4, [x3, #32]
    19cc: add x3, x3, #0x40
    19d0: dup v0.2d, v0.d[0]
    19d4: eor v1.16b, v0.16b, v1.16b
    19d8: eor v3.16b, v0.16b, v3.16b
    19dc: eor v2.16b, v0.16b, v2.16b
    19e0: eor v0.16b, v0.16b, v4.16b
    19e4: cnt v1.16b, v1.16b
    19e8: cnt v3.16b, v3.16b
    19ec: cnt v2.16b, v2.16b
    19f0: cnt v0.16b, v0.16b
    19f4: addp v1.16b, v1.16b, v3.16b
    19f8: addp v0.16b, v2.16b, v0.16b
    19fc: addp v0.16b, v1.16b, v0.16b
    1a00: uadalp v16.8h, v0.16b
    1a04: cbz x12, 1960
    1a08: ldr s0, [x4, x0, lsl #2]
    1a0c: ldp q1, q2, [x3]
    1a10: add x3, x3, #0x20
    1a14: dup v0.4s, v0.s[0]
    1a18: eor v1.16b, v0.16b, v1.16b
    1a1c: eor v0.16b, v0.16b, v2.16b
    1a20: cnt v1.16b, v1.16b
    1a24: cnt v0.16b, v0.16b
    1a28: addp v0.16b, v1.16b, v0.16b
    1a2c: uadalp v16.8h, v0.16b
    1a30: b 1960
    1a34: mov x0, #0x0
    1a38: cbz x13, 195c
    1a3c: b 19b8
    1a40: movi v16.4s, #0x0
    1a44: b 196c
"""
# The shape of the tile of the dotprod unit, with one sum.
CARRY_SAVE = """
 0fc: mov x4, x0
 100: mov x1, x4
 104: tbz x5, #0, 114
 108: eor v2.16b, v0.16b, v1.16b
 10c: b 120
 114: eor v3.16b, v0.16b, v1.16b
 118: eor v2.16b, v4.16b, v5.16b
 11c: and v3.16b, v3.16b, v2.16b
 120: cmp x3, #0x1
 124: b.le 15c
 130: eor v3.16b, v0.16b, v1.16b
 134: eor v4.16b, v5.16b, v6.16b
 138: bsl v3.16b, v4.16b, v2.16b
 13c: sdot v9.4s, v3.16b, v20.16b
 140: eor v3.16b, v0.16b, v1.16b
 144: eor v2.16b, v5.16b, v6.16b
 148: bif v4.16b, v2.16b, v3.16b
 14c: sdot v9.4s, v4.16b, v21.16b
 150: subs x3, x3, #0x2
 158: b.gt 130
 15c: cbz x6, 178
 160: eor v3.16b, v0.16b, v1.16b
 164: eor v4.16b, v5.16b, v6.16b
 168: bit v4.16b, v2.16b, v3.16b
 16c: sdot v9.4s, v4.16b, v20.16b
 178: str q9, [x7], #16
 17c: cmp x7, x8
 180: b.lt 100
 184: ret
"""
# The shape of the tile of the direct convolution, with 2 vectors of channels and 4 pixels.
DIRECT = """
 1fc: mov x4, x0
 200: ldp q16, q17, [x1]
 204: mov x4, #0x0
 208: ldp q4, q3, [x0]
 20c: ldr q0, [x5, x1]
 210: fmla v5.4s, v4.4s, v0.s[0]
 214: fmla v6.4s, v3.4s, v0.s[0]
 218: fmla v7.4s, v4.4s, v0.s[1]
 21c: fmla v8.4s, v3.4s, v0.s[1]
 220: fmla v9.4s, v4.4s, v0.s[2]
 224: fmla v10.4s, v3.4s, v0.s[2]
 228: fmla v11.4s, v4.4s, v0.s[3]
 22c: fmla v12.4s, v3.4s, v0.s[3]
 230: cmp x4, x3
 234: b.lt 208
 238: stp q5, q6, [x9]
 23c: cmp x7, x8
 240: b.lt 200
 244: ret
"""
# The same of bytes: each weight has two limbs.
DIRECT_BYTES = DIRECT.replace("fmla", "sdot").replace(".4s, v0.s[", ".16b, v0.4b[")
ELF = b"\x7fELF" + bytes(14)  # up to the architecture
STEP, HALF, QUARTER = 8, 4, 2  # population counts of a step for one pixel


def kernel(text: str = LISTING) -> neon.Kernel:
    code = listing.parse_listing(text)
    [(first, last)] = [loop for loop in listing.single_block_loops(code) if loop[1] - loop[0] > 8]
    return neon.Kernel(code, first, last)


def test_finds_the_loops_and_the_steps() -> None:
    found = kernel()
    assert found.pixels == 1
    assert found.labels == {0x1890: "T", 0x18B0: "R", 0x18D0: "V", 0x19B8: "H", 0x1A08: "Q"}


@pytest.mark.parametrize(("words", "counts"), [(3, 6), (6, 12), (9, 18), (12, 24), (48, 96), (1, 2)])
def test_trace_has_every_step_of_every_run(words: int, counts: int) -> None:
    """32 bits are 2 population counts, however they are split into steps."""
    found = kernel()
    trace = found.trace(words, runs=3)
    assert counts == STEP * (words // 4) + HALF * (words // 2 % 2) + QUARTER * (words % 2)
    assert listing.count(trace, "cnt") == 3 * counts
    assert listing.count(trace, "cmhi") == 1
    assert listing.count(found.run_of(trace), "cnt") == counts
    assert trace[0].address == 0x1890


def carry_save_kernel(text: str = CARRY_SAVE) -> neon.CarrySaveKernel:
    code = listing.parse_listing(text)
    [(first, last)] = listing.single_block_loops(code)
    return neon.CarrySaveKernel(code, first, last)


@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 5, 18, 36])
def test_carry_save_trace_has_every_vector(vectors: int) -> None:
    found = carry_save_kernel()
    assert (found.sums, found.labels) == (1, {0x130: "V", 0x160: "L"})
    trace = found.trace(vectors)
    assert listing.count(trace, "eor") == vectors
    assert listing.count(trace, "sdot") == (vectors - 1) // 2
    assert listing.count(trace, "and") == (vectors % 2 == 0)
    assert trace[-1].address == 0x180


def test_finds_the_tile_of_the_direct_convolution() -> None:
    found = neon.find_direct(listing.parse_listing(DIRECT))
    assert (found.group, found.sums, found.loop[0].address) == (1, 32, 0x208)
    assert [found.trace()[i].address for i in (0, -1)] == [0x200, 0x240]


def test_finds_the_tile_of_bytes_beside_that_of_floats() -> None:
    both = listing.parse_listing(DIRECT + DIRECT_BYTES.replace("\n ", "\n 1").replace("b.lt ", "b.lt 1"))
    found = neon.find_direct(both, "sdot")
    assert (found.group, found.sums, found.loop[0].address) == (4, 16, 0x1208)
    assert neon.find_direct(both).loop[0].address == 0x208


@pytest.mark.parametrize(("old", "new"), [("fmla v12", "fmul v12"), ("fmla v12", "fmla v11"), ("v0.s[3]", "v0.4s")])
def test_refuses_a_direct_convolution_of_another_form(old: str, new: str) -> None:
    assert old in DIRECT
    with pytest.raises(InputError, match="no loop of the direct convolution"):
        neon.find_direct(listing.parse_listing(DIRECT.replace(old, new)))


def test_refuses_carry_save_adders_of_another_form() -> None:
    with pytest.raises(InputError, match="0x130 is not two carry-save adders"):
        carry_save_kernel(CARRY_SAVE.replace("bif", "orr"))
    with pytest.raises(InputError, match="no way through the tile at 0x100"):
        carry_save_kernel(CARRY_SAVE.replace("tbz x5, #0, 114", "b 114")).trace(3)


def test_branches_get_a_label_that_llvm_mca_knows() -> None:
    assembly = [instruction.assembly for instruction in kernel().trace(words=6, runs=1)]
    assert "b.ne 1f" in assembly
    assert "cbnz x13, 1f" in assembly
    assert not any("<" in line or "0x18" in line for line in assembly)


def test_reads_the_listing_of_llvm_objdump() -> None:
    text = "    19a4:      \tb.ne\t0x1890 <f+0x4>\n    19b4:      \tret"
    code = listing.parse_listing(text)
    assert [(i.address, i.name, i.target) for i in code] == [(0x19A4, "b.ne", 0x1890), (0x19B4, "ret", None)]


def test_reads_a_listing_of_x86() -> None:
    text = "  4004:\tmov    0x95f(%rip),%rax        # 99fd0 <f>\n  400e:\tje     4004 <f+0x4>\n  4010:\tjmp    *%rax"
    code = listing.parse_listing(text)
    assert [i.assembly for i in code] == ["mov 0x95f(%rip),%rax", "je 1f", "jmp *%rax"]
    assert [i.target for i in code] == [None, 0x4004, None]
    assert list(listing.single_block_loops(code)) == [(0, 1)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cnt v3.16b, v3.16b", "mov v3.16b, v3.16b", "7 population counts for 1 accumulators"),
        ("1968: b.ne 18b0", "1968: b.ne 1970", "is inside 1 loops, not 2"),
        ("1958: cbnz x13, 19b8", "1958: cbnz x13, 195c", None),  # the code no longer reaches the half steps ...
    ],
)
def test_refuses_a_loop_of_another_form(old: str, new: str, message: str | None) -> None:
    assert old in LISTING
    text = LISTING.replace(old, new, 1)
    if message is None:  # ... from a run with whole steps
        assert kernel(text).trace(words=2, runs=1)
        with pytest.raises(InputError, match="no way through the tile at 0x1890 with the blocks TRVHRVHRVH"):
            kernel(text).trace(words=6, runs=3)
    else:
        with pytest.raises(InputError, match=message):
            kernel(text)


def test_a_library_without_the_kernels_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no loop with cnt, addp and uadalp"):
        neon.find_kernels(listing.parse_listing(LISTING.replace("uadalp", "uaddlp")))
    with pytest.raises(InputError, match=r"found the tiles \['bits'\]"):
        neon.find_kernels(listing.parse_listing(LISTING))
    assert neon_model.main(["--library", str(tmp_path / "absent.so")]) == 2
    assert "absent.so: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"MZ" + ELF[2:] + b"\xb7\0", ELF + b"\xf3\0"])  # nothing, Windows, RISC-V
def test_what_is_no_library_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"library.so: not an ELF file for x86_64 or aarch64"):
        listing.disassemble(path)


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(ELF + (183).to_bytes(2, "little"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no objdump: install binutils-aarch64-linux-gnu"):
        listing.disassemble(library)
    tool.llvm_mca.cache_clear()
    with pytest.raises(SetupError, match="no llvm-mca: install llvm-19"):
        tool.llvm_mca()


def test_an_old_llvm_mca_is_refused() -> None:
    tool.check_version("llvm-mca", "Debian LLVM version 19.1.7\n  Optimized build.")
    with pytest.raises(SetupError, match="llvm-mca is LLVM 14: install llvm-19 or later"):
        tool.check_version("llvm-mca", "Debian LLVM version 14.0.6")


def test_reads_the_cycles_of_a_report() -> None:
    report = "Iterations:        400\nInstructions:      41600\nTotal Cycles:      19218\nTotal uOps:        46400\n"
    assert tool.parse_cycles(report) == 19218
    with pytest.raises(SetupError, match="Total Cycles"):
        tool.parse_cycles(report.replace("Cycles", "cycles"))
