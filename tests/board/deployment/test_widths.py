"""What `deploy` prints in terminals of several widths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.bundles import invoke
from support.deployment import REPORT, MakeBundle, run, write_report
from support.ssh_server import HOST, SshServer
from support.widths import PIPE, WIDTHS, faults, record, rendered


@pytest.mark.parametrize("passed", [True, False])
def test_deploy(passed: bool, board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [] if passed else ["layer features.stage1.block2.residual_branch.conv2: 3 bits differ"]
    report = {**REPORT, "passed": passed, "golden": {"failures": failures}}
    parts = record(monkeypatch)
    assert run(HOST, make(f"{write_report(report)}exit {int(not passed)}\n")).exit_code == int(not passed)
    for width in (*WIDTHS, PIPE):
        assert faults(parts, width) == [], width
        assert rendered(parts, width)[-1] == ("PASSED" if passed else "FAILED")


def test_a_dry_run(board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = record(monkeypatch)
    assert run(HOST, make(), "--dry-run").exit_code == 0
    for width in (*WIDTHS, PIPE):
        assert faults(parts, width) == [], width


def test_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "layer features.stage1.block2.residual_branch.conv2: 3 bits differ"
    failed = {**REPORT, "passed": False, "golden": {"failures": [reason]}}
    for name, report in (("raspberry-pi-4-in-the-kitchen", REPORT), ("attic", failed)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**report, "manifest_sha256": "0123456789abcdef" * 4}))
    parts = record(monkeypatch)
    assert invoke("fleet", tmp_path, "--host", "cellar").exit_code == 1
    for width in (*WIDTHS, PIPE):
        assert faults(parts, width) == [], width
        lines = rendered(parts, width)
        assert lines[-1] == "1 of 3 boards passed."
        assert reason in " ".join(line.strip() for line in lines)
        assert [sum(line.endswith(end) for line in lines) for end in (" passed", " FAILED", " NO REPORT")] == [1, 1, 1]


def test_quiet_leaves_the_verdict(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    result = run(HOST, bundle, "--quiet")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "PASSED"
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == ""
