"""A seeded part of the fuzzing, and that it finds what it looks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str) -> str:
    """Run the command in a process of its own: this one may have sessions, which do not survive a fork."""
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_some_cases_of_each_kind() -> None:
    said = fuzz("--cases", "6", "--seed", "100", "--operators", "60")
    assert "operators: 60 cases, 0 found" in said
    kinds = [line.partition(":")[0] for line in said.splitlines() if line.endswith(" s")]
    assert kinds == ["operators", "models", "checkpoints", "darknet", "arrays", "golden", "bundles"]
    assert said.count(": 6 cases, 0 found") == len(kinds) - 1


FINDS = """
import os, sys, time
sys.path.insert(0, "tests")
from fuzz import doors, isolation
isolation.SECONDS, isolation.WAITS = 1, 3
assert isolation.isolated(lambda folder: None) is None
assert "SIGABRT" in isolation.isolated(lambda folder: os.abort())
assert "SIGSEGV" in isolation.isolated(lambda folder: os.kill(os.getpid(), 11))
assert "hangs" in isolation.isolated(lambda folder: time.sleep(9))
assert "hangs" in isolation.isolated(lambda folder: [None for _ in iter(int, 1)])
assert "MemoryError" in isolation.isolated(lambda folder: bytearray(64 << 30))
assert "ZeroDivisionError" in isolation.isolated(lambda folder: 1 / 0)

def leaves(folder):
    import click
    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1)
    def command(rest):
        if rest[0] == "leaves":
            (folder / "left").touch()
        click.echo("a line\\nerror: bad" if rest[0] != "internal" else "error: internal error", err=True)
        raise SystemExit(2)
    doors.main = command
    doors.run([kind], folder)

for kind, text in (("leaves", "left"), ("internal", "no clear line"), ("good", None)):
    said = isolation.isolated(leaves)
    assert (said is None) if text is None else (text in said), (kind, said)
print("all found")
"""


def test_crashes_hangs_and_left_files_are_found() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FINDS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.strip().endswith("all found"), result.stdout + result.stderr
