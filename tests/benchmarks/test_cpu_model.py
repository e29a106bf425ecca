"""tests/benchmarks/cpu_model.py: the loops of the x86-64 units, and the page that it writes."""

from __future__ import annotations

import re
from pathlib import Path

import cpu_model
import pytest
from cpu_model import CPUS, Figures
from mca import x86
from mca.listing import parse_listing

from bnn_deploy.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
# A loop with a branch forwards, as avx2's, inside a loop; and a smaller one of the same kind.
LISTING = """
 100: xor %eax,%eax
 104: jle 114 <f+0x14>
 108: vpshufb (%rsi),%ymm1,%ymm2
 10c: vpavgb %ymm1,%ymm2,%ymm3
 110: vpshufb (%rsi),%ymm1,%ymm2
 114: vpavgb %ymm1,%ymm2,%ymm3
 118: dec %rcx
 11c: jne 104 <f+0x4>
 120: dec %rdx
 124: jne 100 <f>
 128: vpshufb (%rsi),%ymm1,%ymm2
 12c: vpavgb %ymm1,%ymm2,%ymm3
 130: jne 128 <f+0x28>
 134: ret
"""


def test_finds_the_innermost_largest_loop() -> None:
    (found,) = x86.find_loops(parse_listing(LISTING), "avx2")
    assert (found.code[0].address, found.code[-1].address) == (0x104, 0x11C)
    assert found.macs == 2 * 256


def test_the_fastest_loop_of_a_unit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_model, "cycles_of", lambda code, _: len(code))
    monkeypatch.setattr(cpu_model, "multiply_adds", lambda _: 1.0)
    code = parse_listing(LISTING)
    found = {cpu.unit: [x86.UnitLoop(code[:length], 100) for length in (4, 2, 5)] for cpu in CPUS}
    assert {row.binary for row in cpu_model.model(found)} == {50.0}


@pytest.mark.parametrize(("old", "new"), [("vpavgb", "vpaddb"), ("ymm", "xmm"), ("jne", "jmp *%rax #")])
def test_refuses_a_library_without_the_loop(old: str, new: str) -> None:
    with pytest.raises(InputError, match="no loop of the unit avx2, with vpavgb and registers %ymm"):
        x86.find_loops(parse_listing(LISTING.replace(old, new)), "avx2")


def test_every_cpu_has_a_unit_of_the_library() -> None:
    listed = re.findall(r"^BNN_DEPLOY_ISA\((\w+), \w+, (\w+)", (ROOT / "custom_ops/kernels/isas.inc").read_text(), re.M)
    assert {cpu.unit for cpu in CPUS} == {unit for unit, architecture in listed if architecture != "any"}
    assert set(x86.SHAPES) == {unit for unit, architecture in listed if architecture == "x86_64"}


def test_the_page_is_what_the_script_writes() -> None:
    text = (ROOT / "docs" / "cpus.md").read_text()
    rows = cpu_model.read_page(text)
    assert [row.cpu for row in rows] == list(CPUS)
    assert cpu_model.page(rows) == text
    row = next(line for line in text.splitlines() if line.startswith("| Zen 5"))
    *_, ratio, remark = row.split(" | ")
    for changed in (row.replace(ratio, "99.9"), row.replace("avx512", "avx2"), row.replace(remark, "fast |")):
        assert changed != row
        damaged = text.replace(row, changed)
        assert cpu_model.page(cpu_model.read_page(damaged)) != damaged


def test_a_row_of_the_page() -> None:
    line = cpu_model.page([Figures(CPUS[0], 100.0, 8.0)]).splitlines()[-1]
    assert line == "| Haswell | `-mcpu=haswell` | avx2 | 100.0 | 8.0 | 12.5 | |"


def test_a_missing_library_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent, page = str(tmp_path / "absent.so"), tmp_path / "page.md"
    assert cpu_model.main(["--x86-64", absent, "--aarch64", absent, "--write", str(page)]) == 2
    assert "absent.so: no such file" in capsys.readouterr().err
    assert not page.exists()
