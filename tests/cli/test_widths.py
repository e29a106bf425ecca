"""Every command's output at 40, 80 and 120 columns and in a pipe: no verdict is cut, no name is broken."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table as RichTable

from bnn_deploy.cli import COMMANDS
from bnn_deploy.cli.console import facts, show, table
from bnn_deploy.cli.tables import wrap
from bnn_deploy.cli.verify import print_golden, print_verification
from bnn_deploy.proof.golden.check import GoldenLayer, check_golden
from bnn_deploy.proof.results import ClassAccuracy, Classification, Disagreement, LayerResult, OperatorResult
from bnn_deploy.proof.verification import verify
from support import python
from support.bundles import invoke
from support.command_lines import EXPORT, Files
from support.terminal import Terminal
from support.widths import PIPE, WIDTHS, faults, record, rendered

DEEP = "features.stage1.block2.residual_branch.binary_convolution_3x3"


def commands(given: Path, out: Path) -> dict[str, list[str | Path]]:
    """Case -> a command line; `deploy` and `fleet` are in tests/board/deployment/test_widths.py."""
    return {
        **Files(given, out).commands,
        "inspect": ["inspect", given / "m.onnx"],
        "run": ["run", "--config", given / "run" / "bnn-deploy.toml"],
        "info": ["info"],
    }


CASES = list(commands(Path(), Path()))


def test_every_command_with_tables_is_here() -> None:
    assert {case.split()[0] for case in CASES} == COMMANDS.keys() - {
        "deploy",
        "fleet",
        "completion",
        "library-path",
        "cmake-dir",
    }


@pytest.mark.parametrize("case", CASES)
def test_every_command(case: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = record(monkeypatch)
    assert invoke(*commands(given, tmp_path)[case]).exit_code == 0
    assert parts
    for width in (*WIDTHS, PIPE):
        assert faults(parts, width) == [], width
        assert case.startswith("verify") <= (rendered(parts, width)[-1] == "PASSED")


@pytest.mark.parametrize("top5", [8, None])
def test_a_failed_verification_of_a_deep_network(
    top5: int | None, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long names, every kind of row, and verdicts that a user must not miss."""
    result = verify(given / "m.onnx", EXPORT, samples=2)
    backends = [output.backend for output in result.outputs]
    layers = [
        LayerResult(f"{DEEP}.{i}", "t", "bits", i > 0, 2_880_000, 1_234_567, 0.5, zeros=7_654_321, passed=i > 0)
        for i in range(2)
    ]
    result = replace(
        result,
        operators=[OperatorResult(DEEP, "BinaryConvThreshold", 10**9, dict.fromkeys(backends, 10**9))],
        layers=[*layers, LayerResult("ip2", "t", "floats", values=10_000, max_error=1e-5, relative_error=2e-7)],
        disagreements=[Disagreement(name, "", 12_345, 7, 3, DEEP, 0.5, False, False) for name in backends],
        classification=[
            Classification(network, backends[0], "", 9, 7, top5, [ClassAccuracy(0, "", 9, 7)], [(0, 0, 7), (0, 3, 2)])
            for network in ("reference", "model")
        ],
    )
    parts = record(monkeypatch)
    print_verification(result)
    for width in (*WIDTHS, PIPE):
        assert faults(parts, width) == [], width
        lines = rendered(parts, width)
        assert lines[-1] == "FAILED"
        assert sum(line.endswith(" FAILED") for line in lines) == 2  # the operator, and the first layer
        assert sum(line.endswith(" ok") for line in lines) == 2
        assert sum(line.split()[-1:] == ["NO"] for line in lines) == len(backends)


def test_a_failed_golden_check_of_a_deep_network(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = check_golden(given / "m.onnx", given / "golden.npz")
    layer = GoldenLayer(DEEP, "t", "floats", True, 10**9, 10**6, 10**6, 10**6, "bit 0")
    result = replace(result, layers=[*result.layers, layer])
    parts = record(monkeypatch)
    print_golden(result)
    for width in (*WIDTHS, PIPE):
        assert faults(parts, width) == [], width
        lines = rendered(parts, width)
        assert lines[-1] == "FAILED"
        assert sum(line.endswith(" FAILED") for line in lines) == 1
        shown = " ".join(lines)
        assert all(word in shown for output in result.outputs for word in output.backend.split())


def test_a_table_that_breaks_words_is_found() -> None:
    """rich's own table, in which this module's tables were once printed, is no table by these rules."""
    columns = ["layer", "output", "compared", "bits differ", "largest margin", "max abs error", "exact zeros", ""]
    broken, kept = RichTable(*columns), table(None, columns, columns[2:-1])
    for column in broken.columns:
        column.overflow = "fold"
    cells = [DEEP, "bits", "2,880,000", "0", "-", "1.53e-05", "1,234,567", "FAILED"]
    broken.add_row(*cells)
    kept.add_row(*cells)
    for width in (40, 80):
        assert faults([broken], width) != []
        assert faults([kept], width) == []
    kept.rows[0][-1] = "ok"
    assert faults([kept], 80) == []
    assert [line for line in rendered([kept], 80) if line.endswith("FAILED")] == []


def test_a_double_gap_is_found() -> None:
    assert faults(["one", "", "two"], 80) == []
    assert faults(["one", "", "", "two"], 80) == ["two blank lines above: two"]
    assert faults(["one", ""], 80) == ["a blank line at the end"]


def test_columns_that_are_left_out_are_named_in_the_order_of_their_importance() -> None:
    columns = ["layer", "first out", "second out", "kept"]
    rows = table(None, columns, columns[1:], optional=["first out", "second out"])
    rows.add_row("conv", "1" * 12, "2" * 12, "3" * 12)
    assert "Left out" not in " ".join(rendered([rows], 50))
    assert rendered([rows], 40)[-1] == "Left out at 40 columns: first out."
    assert rendered([rows], 24)[-2:] == ["Left out at 24 columns:", "first out; second out."]
    record = ["conv", "  first out", "    111111111111", "  second out", "    222222222222", "  kept"]
    assert rendered([rows], 16)[:6] == record


def test_numbers_end_below_each_other() -> None:
    """And words begin so."""
    rows = table(None, ["layer", "bytes", "kind"], ["bytes"])
    rows.add_row("a", "1,000", "bits")
    rows.add_row("second", "7", "floats")
    assert rendered([rows], 80)[2:] == ["a       1,000  bits", "second      7  floats"]


def test_text_is_wrapped_below_its_first_word() -> None:
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("  one two three", 9) == ["  one two", "  three"]
    assert wrap("1. one two three", 10) == ["1. one two", "   three"]
    assert wrap("a  b", 4) == ["a  b"]
    assert wrap("  " + "x" * 9, 4) == ["  " + "x" * 9]


def test_facts_stand_below_their_names_where_there_is_little_room() -> None:
    long = facts([("instruction sets", "avx512, avx2, scalar; avx512 is used"), ("path", "/a" * 40)])
    assert rendered([long], 80)[0] == "instruction sets  avx512, avx2, scalar; avx512 is used"
    assert rendered([long], 40) == [
        "instruction sets",
        "  avx512, avx2, scalar; avx512 is used",
        "path",
        "  " + "/a" * 40,  # whole, so that it can be copied
    ]


def terminal(columns: int, code: str, **environment: str) -> str:
    """What Python code prints in a terminal."""
    return Terminal(columns, python.command(code), **environment).finish()


RUN = "from bnn_deploy.cli import main; main(prog_name='bnn-deploy', args={!r})"


def test_a_real_terminal_of_40_columns(given: Path) -> None:
    printed = terminal(40, RUN.format(["inspect", str(given / "m.onnx")]))
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in printed.splitlines()]
    assert any(line.endswith("BinaryConvThreshold") for line in lines)
    assert all(len(line) <= 40 or len(line.split()) == 1 for line in lines), lines


PROGRESS = """
import time
from bnn_deploy.cli.console import progress
from bnn_deploy.progress import ProgressStep
with progress() as step:
    step("loading")
    for i in range(4):
        step(ProgressStep(f"verifying: layer {'features.conv' * 9}", i / 4))
        time.sleep(0.2)
"""


@pytest.mark.parametrize("columns", WIDTHS)
def test_progress_keeps_share_estimate_and_text(columns: int) -> None:
    """The text takes what the others leave, and only the bar goes in a narrow terminal."""
    lines = re.split(r"\r|\n", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal(columns, PROGRESS)))
    assert any("loading" in line for line in lines) and not any("left" in line for line in lines if "loading" in line)
    shown = [line.rstrip() for line in lines if "verifying" in line]
    assert all(len(line) <= columns for line in shown)
    estimates = [line for line in shown if re.search(r" 75% .*\d:\d\d:\d\d left verifying: layer fe", line)]
    assert estimates and all(line.endswith("\N{HORIZONTAL ELLIPSIS}") for line in estimates)
    assert all(("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line) == (columns >= 80) for line in shown)


COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38)[;m]")


def test_no_color() -> None:
    """https://no-color.org: no colours, whatever the terminal can; bold is none."""
    code = "from rich.text import Text; from bnn_deploy.cli.console import show; show(Text('hot', style='bold red'))"
    assert COLOUR.search(terminal(80, code))
    assert not COLOUR.search(terminal(80, code, NO_COLOR="1"))


def test_quiet_leaves_the_result_and_the_verdict(given: Path, tmp_path: Path) -> None:
    printed = {case: invoke(*words, "--quiet").output for case, words in commands(given, tmp_path).items()}
    assert printed["verify"] == printed["verify --golden"] == "PASSED\n"
    assert re.fullmatch(r"wrote \S*/m\.onnx, .*", printed["convert"].strip())
    assert printed["bundle"].startswith("On the board: ")
    assert all(printed.values())
    left_out = {"profile": "machine", "demo": "Layers", "run-bundle": "1. Layers", "run": "Layers", "inspect": "opsets"}
    assert [case for case, text in left_out.items() if text in printed[case]] == []
    assert invoke("-q", *commands(given, tmp_path)["verify"]).output == "PASSED\n"


def test_quiet_says_why_a_check_failed(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnn_deploy.cli.verify.verify", lambda *a, **k: replace(verify(*a, **k), errors=["x is not y"]))
    result = invoke(*commands(given, tmp_path)["verify"], "--quiet")
    assert (result.exit_code, result.output) == (1, "FAILED: x is not y\nFAILED\n")


def test_what_is_shown_outside_of_a_command_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show("text")
    assert capsys.readouterr().out == "text\n"
