"""The last line of .ci/arm64, from pytest's reports: python tests/arm64/summary.py CPU.xml ...

Exits 1 if a test was skipped, or if there are fewer than there should be: a green run must have run.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

NEON = re.compile(r"[\[-]neon(_dotprod)?[\]-]")
LEAST_TESTS = {"cortex-a72": 600, "cortex-a76": 100}
"""By CPU: the second one runs only what differs there."""

LEAST_NEON = 60
"""Tests with a NEON unit forced; each asserts, by the library's counters, that it ran, and it alone."""


def main() -> int:
    parts, relative = [], 0.0
    for path in map(Path, sys.argv[1:]):
        suite = ElementTree.parse(path).getroot().find("testsuite")
        assert suite is not None
        count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        neon = sum(bool(NEON.search(case.attrib["name"])) for case in suite.iter("testcase"))
        if count["failures"] or count["errors"] or count["skipped"]:
            print(f"{path.stem}: {count}: none may fail or be skipped", file=sys.stderr)
            return 1
        if count["tests"] < LEAST_TESTS[path.stem] or neon < LEAST_NEON:
            print(f"{path.stem}: only {count['tests']} tests, {neon} of them with NEON forced", file=sys.stderr)
            return 1
        properties = [(p.attrib["name"], p.attrib["value"]) for p in suite.iter("property")]
        bits = sum(int(value) for name, value in properties if name == "bits")
        relative = max(relative, *(float(value) for name, value in properties if name == "relative_error"))
        calls = sum(int(value) for name, value in properties if name == "neon_calls")
        parts.append(
            f"{path.stem}: {count['tests']} tests passed, {neon} with NEON forced; {calls:,} NEON calls counted; "
            f"{bits:,} bits of LeNet-5, NIN and AlexNet identical to x86-64's"
        )
    print(f"ARM64 PASSED. {'. '.join(parts)}. Floats within {relative:.1e} of the largest in their channel.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
