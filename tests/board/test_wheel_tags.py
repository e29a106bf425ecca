"""The check of wheels catches tags that are not true. .ci/arm64 runs it on the wheel for aarch64."""

from __future__ import annotations

import platform
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import wheels
from bnn_deploy.runtime.session import library_path

MACHINE = platform.machine()
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]
LIBRARY = library_path().read_bytes()
NEWEST = 41
"""N of a glibc 2.N, that of Debian 13, for which the library is old enough."""


def write_wheel(folder: Path, platform_tag: str, library: bytes = LIBRARY, name: str = wheels.LIBRARY) -> Path:
    path = folder / f"bnn_deploy-0.1.0-py3-none-{platform_tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bnn_deploy/__init__.py", "")
        archive.writestr(name, library)
    return path


def needed_glibc() -> int:
    """N of the newest GLIBC_2.N in the library, as the tool of binutils prints it."""
    text = subprocess.run(["readelf", "-V", library_path()], capture_output=True, text=True, check=True).stdout
    return max(int(number) for number in re.findall(r"Name: GLIBC_2\.(\d+)", text))


def test_the_parser_reads_what_readelf_prints() -> None:
    needs = wheels.read_needs(LIBRARY)
    text = subprocess.run(["readelf", "-V", library_path()], capture_output=True, text=True, check=True).stdout
    assert needs.versions == set(re.findall(r"  Name: (\S+)  Flags", text))
    assert needs.libraries == set(re.findall(r"  File: (\S+)  Cnt", text))
    assert wheels.MACHINES[needs.machine] == MACHINE


def test_a_true_tag(tmp_path: Path) -> None:
    assert wheels.problems(write_wheel(tmp_path, f"manylinux_2_{NEWEST}_{MACHINE}")) == []


def test_a_tag_that_promises_too_much_is_caught(tmp_path: Path) -> None:
    (problem, *_) = wheels.problems(write_wheel(tmp_path, f"manylinux_2_{needed_glibc() - 1}_{MACHINE}"))
    assert problem.startswith(f"it needs glibc's GLIBC_2.{needed_glibc()}")


def test_a_cpp_library_that_is_too_new_is_caught(tmp_path: Path) -> None:
    newer, count = re.subn(rb"\0GLIBCXX_3\.4\.\d\d\0", b"\0GLIBCXX_3.4.99\0", LIBRARY)
    assert count
    (problem,) = wheels.problems(write_wheel(tmp_path, f"manylinux_2_{NEWEST}_{MACHINE}", newer))
    assert problem.startswith("it needs libstdc++'s GLIBCXX_3.4.99")


def test_a_library_for_another_architecture_is_caught(tmp_path: Path) -> None:
    (problem,) = wheels.problems(write_wheel(tmp_path, f"manylinux_2_{NEWEST}_{OTHER}"))
    assert problem == f"its library is for {MACHINE}, not {OTHER}"
    riscv = bytearray(LIBRARY)
    struct.pack_into("<H", riscv, 18, 243)
    (problem,) = wheels.problems(write_wheel(tmp_path, f"manylinux_2_{NEWEST}_{MACHINE}", bytes(riscv)))
    assert problem == f"its library is for 243, not {MACHINE}"


@pytest.mark.parametrize(
    ("tag", "name", "pattern"),
    [
        ("linux_x86_64", wheels.LIBRARY, "not a py3-none-manylinux_2_N wheel"),
        ("manylinux_2_39_x86_64", "bnn_deploy/_lib/README", "its libraries are"),
        ("manylinux_2_39_x86_64", "libstdc++.so", "its libraries are"),
    ],
)
def test_other_wheels_are_caught(tmp_path: Path, tag: str, name: str, pattern: str) -> None:
    (problem,) = wheels.problems(write_wheel(tmp_path, tag, name=name))
    assert pattern in problem


def test_the_exit_code_says_so(tmp_path: Path) -> None:
    good = write_wheel(tmp_path, f"manylinux_2_{NEWEST}_{MACHINE}")
    bad = write_wheel(tmp_path, f"manylinux_2_5_{MACHINE}")
    command = [sys.executable, wheels.__file__, good]
    assert subprocess.run(command, capture_output=True).returncode == 0
    done = subprocess.run([*command, bad], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{bad.name}: it needs glibc's" in done.stdout
