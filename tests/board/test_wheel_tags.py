"""The check of wheels catches tags that are not true. .ci/arm64 and .ci/cross run it on wheels for other machines."""

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
from bnn_deploy.board.wheels import LIBRARY as NAME
from bnn_deploy.runtime.session import library_path
from bnn_deploy.system import library_name
from wheels import FUNCTIONS

MACHINE = platform.machine()
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]
LIBRARY = library_path().read_bytes()
NEWEST = 41
"""N of a glibc 2.N, that of Debian 13, for which the library is old enough."""


def write_wheel(folder: Path, platform_tag: str, library: bytes = LIBRARY, name: str = NAME) -> Path:
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
        ("linux_x86_64", NAME, "not a py3-none wheel of bnn-deploy"),
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


def dll(exports: tuple[str, ...] = FUNCTIONS, needs: str = "KERNEL32.dll", machine: int = 0x8664) -> bytes:
    """As little of a DLL as says what it is, one section whose addresses are its offsets in the file."""
    strings, names = b"", []
    for string in ("libbnn_deploy_ops.dll", needs, *exports):
        names.append(0x300 + len(strings))
        strings += string.encode() + b"\0"
    table = struct.pack("<10I", 0, 0, 0, names[0], 1, 0, len(exports), 0, 0x228, 0)
    table += struct.pack(f"<{len(exports)}I", *names[2:])
    imports = struct.pack("<5I", 0, 0, 0, names[1], 0) + bytes(20)
    optional = b"\x0b\x02" + bytes(110) + struct.pack("<4I", 0x200, len(table), 0x2C0, len(imports))
    header = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0"
    header += struct.pack("<HHIIIHH", machine, 1, 0, 0, 0, len(optional), 0) + optional
    header += struct.pack("<8sIIII", b".all", 0x1000, 0x200, 0x1000, 0x200)
    return header.ljust(0x200, b"\0") + table.ljust(0xC0, b"\0") + imports.ljust(0x40, b"\0") + strings


def dylib(
    name: str = "@rpath/libbnn_deploy_ops.dylib",
    exports: tuple[str, ...] = (*(f"_{name}" for name in FUNCTIONS), "__Znwm"),
    needs: str = "/usr/lib/libSystem.B.dylib",
    machine: int = 0x0100000C,
    oldest: tuple[int, int] = (13, 0),
) -> bytes:
    """As little of a dylib as says what it is."""

    def load(command: int, text: str) -> bytes:
        body = text.encode().ljust(len(text) // 8 * 8 + 8, b"\0")
        return struct.pack("<6I", command, 24 + len(body), 24, 0, 0, 0) + body

    version = struct.pack("<6I", 0x32, 24, 1, oldest[0] << 16 | oldest[1] << 8, 0, 0)
    commands = load(0xD, name) + load(0xC, needs) + version
    strings, symbols = b"\0_private\0", struct.pack("<IBBHQ", 1, 0x0E, 1, 0, 0)
    for export in exports:
        symbols += struct.pack("<IBBHQ", len(strings), 0x0F, 1, 0, 0)
        strings += export.encode() + b"\0"
    at = 32 + len(commands) + 24
    commands += struct.pack("<6I", 2, 24, at, len(exports) + 1, at + len(symbols), len(strings))
    return struct.pack("<8I", 0xFEEDFACF, machine, 0, 6, 4, len(commands), 0, 0) + commands + symbols + strings


@pytest.mark.parametrize(
    ("tag", "library", "problem"),
    [
        ("win_amd64", dll(), None),
        ("win_arm64", dll(), "its library is for amd64, not arm64"),
        ("win_amd64", dll(exports=(*FUNCTIONS[:1], "malloc")), f"it exports {FUNCTIONS[0]}, malloc"),
        ("win_amd64", dll(needs="libstdc++-6.dll"), "it needs libstdc++-6.dll"),
        ("win_amd64", dll() + b"/home/me/custom_ops/ops/binarize.cc", "it names the files that it was built from"),
        ("macosx_13_0_arm64", dylib(), None),
        ("macosx_14_2_arm64", dylib(), None),
        ("macosx_13_0_x86_64", dylib(), "its library is for arm64, not x86_64"),
        ("macosx_12_7_arm64", dylib(), "it is for macOS 13.0 and newer"),
        (
            "macosx_13_0_arm64",
            dylib(name="/tmp/l.dylib"),
            "it calls itself /tmp/l.dylib, not @rpath/libbnn_deploy_ops.dylib",
        ),
        ("macosx_13_0_arm64", dylib(exports=(*(f"_{name}" for name in FUNCTIONS), "_malloc")), "it exports _malloc"),
        (
            "macosx_13_0_arm64",
            dylib(exports=tuple(f"_{name}" for name in FUNCTIONS[1:])),
            f"it does not export _{FUNCTIONS[0]}",
        ),
        ("macosx_13_0_arm64", dylib(needs="/opt/local/lib/libc++.dylib"), "it needs /opt/local/lib/libc++.dylib"),
    ],
)
def test_windows_and_macos(tmp_path: Path, tag: str, library: bytes, problem: str | None) -> None:
    name = f"bnn_deploy/_lib/{library_name('win32' if tag.startswith('win') else 'darwin')}"
    assert wheels.problems(write_wheel(tmp_path, tag, library, name)) == ([] if problem is None else [problem])
