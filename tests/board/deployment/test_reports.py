"""What run.sh says and what the board reports."""

from __future__ import annotations

import json

import pytest

from support.deployment import REPORT, MakeBundle, installed, refused, report_of, reported, run, write_report
from support.ssh_server import HOST, SshServer


def test_run_fails(board: SshServer, make: MakeBundle) -> None:
    bundle = make("echo '[2/5] venv' >&2\necho 'error: no space left' >&2\nexit 3\n")
    assert refused(bundle).endswith("board: run.sh ended there with status 3: error: no space left")
    assert board.tree() == installed(bundle)


def test_run_is_killed(board: SshServer, make: MakeBundle) -> None:
    assert "run.sh ended there with status 137" in refused(make("kill -KILL $$\n"))


def test_the_check_fails_on_the_board(board: SshServer, make: MakeBundle) -> None:
    failed = {**REPORT, "passed": False, "golden": {"failures": ["layer conv2: 3 bits differ"]}, "profile": None}
    bundle = make(f"{write_report(failed)}exit 1\n")
    result = run(HOST, bundle)
    assert result.exit_code == 1
    assert "FAILED: layer conv2: 3 bits differ" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1] == "FAILED"
    assert json.loads(report_of(bundle).read_text()) == reported(bundle, failed)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([], "does not say whether the check passed"),
        ({**REPORT, "passed": 1}, "does not say whether the check passed"),
        (
            {**REPORT, "version": 2},
            "has version 2, and this bnn-deploy reads 'bnn-deploy board report', version 1",
        ),
        ({**REPORT, "format": 1}, "has format 1, and this bnn-deploy reads 'bnn-deploy board report', version 1"),
        ({**REPORT, "manifest_sha256": "0" * 64}, "is not for this bundle, but for the model 'small net.onnx'"),
        *(
            (
                {**REPORT, "profile": {**REPORT["profile"], name: value}},
                f"its report has the {name} {value!r}, which must",
            )
            for name in ("threads", "runs")
            for value in (0, -1, 10**9, "3", 2.5, None, True, [1])
        ),
        ({**REPORT, "passed": False}, "its report and the status 0 of run.sh contradict each other"),
    ],
)
def test_reports_that_cannot_be_used(board: SshServer, make: MakeBundle, report: object, message: str) -> None:
    assert message in refused(make(write_report(report)))


def test_a_report_that_is_not_json(board: SshServer, make: MakeBundle) -> None:
    assert "its report is not JSON" in refused(make("echo no >report.json\n"))


def test_a_report_of_another_version(board: SshServer, make: MakeBundle) -> None:
    """What a report does not say is '-', whatever stands there instead."""
    sparse = {key: REPORT[key] for key in ("format", "version", "passed", "model", "target", "manifest_sha256")}
    for measured in ({}, {"model": [], "threads": 3, "throttled": "x", "machine": None, "board": 5}):
        result = run(HOST, make(write_report({**sparse, "profile": measured})))
        assert result.exit_code == 0, result.output
        rows = [
            line.split()[-1] for line in result.stdout.splitlines() if line.startswith(("median", "peak", "machine"))
        ]
        assert rows == ["-", "-", "-"]


def test_a_throttled_board_says_so(board: SshServer, make: MakeBundle) -> None:
    noise = "the timed runs had a CPU for only 44% of their time: others used it"
    slowed = {**REPORT["profile"], "throttled": ["under-voltage"], "noisy": [noise, noise * 3]}
    result = run(HOST, make(write_report({**REPORT, "profile": slowed})))
    lines = result.stdout.splitlines()
    for name in ("throttled", "noisy"):
        assert next(line for line in lines if line.startswith(name)).endswith("  YES, see below")
    reasons = ["THROTTLED, board: under-voltage", f"NOISY, board: {noise}", f"NOISY, board: {noise * 3}"]
    assert [line for line in lines if ", board: " in line] == reasons
    # Reasons of any length leave the table as wide as it is.
    assert max(map(len, lines[: lines.index("")])) < 80
