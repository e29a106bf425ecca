"""The C++ tests beside this file: built, and run by ctest, as CMakeLists.txt says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bnn_deploy import library_info

SOURCE = Path(__file__).resolve().parents[2]
SUITES = [path.stem for path in sorted(Path(__file__).parent.glob("*.cc")) if "TEST(" in path.read_text()]


def output(*command: str | Path) -> str:
    """What the command printed; it must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    options = ["-DBNN_DEPLOY_TESTS=ON", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
    output("cmake", "-G", "Ninja", "-S", SOURCE, "-B", folder, *options)
    output("cmake", "--build", folder, "--target", "cpp_tests")
    return folder


def test_all_suites_pass(build: Path) -> None:
    output("ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error")


def test_ctest_knows_every_suite(build: Path) -> None:
    listing = json.loads(output("ctest", "--test-dir", build, "--show-only=json-v1"))
    assert sorted(test["name"] for test in listing["tests"]) == SUITES


def test_every_instruction_set_of_the_machine_ran(build: Path) -> None:
    printed = output(build / "cpp_tests", "isas")
    assert [line.removeprefix("isa ") for line in printed.splitlines() if line.startswith("isa ")] == list(
        library_info().isas
    )


def test_an_unknown_suite_is_an_error(build: Path) -> None:
    assert subprocess.run([build / "cpp_tests", "nothing"], stdout=subprocess.DEVNULL).returncode == 2
