"""Is a wheel's tag true? The operator library in it must be for the tag's architecture and load where the tag says.

    python tests/wheels.py WHEEL...

manylinux_2_N promises that glibc 2.N and the C++ library of its time suffice (PEP 600). The versions that a library
needs stand in its section .gnu.version_r (Linux Standard Base, Symbol Versioning). macosx_N_M promises macOS N.M; on
Windows and macOS, what the library exports and loads is looked at, too.
"""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import binaries
from bnn_deploy.system import library_name

MACHINES = {62: "x86_64", 183: "aarch64"}
"""ELF e_machine -> the architecture's name in a tag."""

SYSTEM_LIBRARIES = {
    "ld-linux-aarch64.so.1",
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "libstdc++.so.6",
}
GLIBCXX = {17: 19, 28: 25, 34: 29, 36: 30, 41: 33}
"""N of glibc 2.N -> M of the GLIBCXX_3.4.M that came with it: RHEL 7, 8 (and Debian 10), 9, Debian 12, 13."""

VERNEED = 0x6FFFFFFE


@dataclass(frozen=True)
class Needs:
    """What a 64-bit little-endian ELF library needs.

    Attributes:
        machine: e_machine.
        libraries: the file that each of the versions is looked for in.
        versions: versions of symbols, GLIBC_2.34 for instance.
    """

    machine: int
    libraries: frozenset[str]
    versions: frozenset[str]


def read_needs(elf: bytes) -> Needs:
    assert elf[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    (machine,) = struct.unpack_from("<H", elf, 18)
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size) for i in range(count)]
    libraries, versions = set(), set()
    for _, kind, _, _, offset, _, link, entries, _, _ in sections:
        if kind != VERNEED:
            continue
        strings = sections[link][4]

        def text(at: int, strings: int = strings) -> str:
            return elf[strings + at : elf.index(b"\0", strings + at)].decode()

        for _ in range(entries):
            _, names, file, first, next_entry = struct.unpack_from("<HHIII", elf, offset)
            libraries.add(text(file))
            at = offset + first
            for _ in range(names):
                _, _, _, name, next_name = struct.unpack_from("<IHHII", elf, at)
                versions.add(text(name))
                at += next_name
            offset += next_entry
    return Needs(machine, frozenset(libraries), frozenset(versions))


WINDOWS_LIBRARIES = r"KERNEL32\.dll|api-ms-win-crt-[a-z]+-l1-1-0\.dll"
MACOS_LIBRARIES = r"/usr/lib/(libSystem\.B|libc\+\+\.1)\.dylib"
MACOS_EXPORTS = r"__mh_dylib_header|___dso_handle|__Z(na|nw|da|dl)\w+"
"""zig's linker exports the allocation operators of its C++ library, and two symbols of its own."""

HEADER = Path(__file__).parents[1] / "custom_ops" / "include" / "bnn_deploy.h"
FUNCTIONS = tuple(re.findall(r"^BNN_DEPLOY_API .*?(\w+)\(", HEADER.read_text(), re.MULTILINE))
"""What the library exports: the functions of its C header."""


def problems(wheel: Path) -> list[str]:
    """Why the wheel's tag is not true; empty if it is."""
    match = re.fullmatch(r"bnn_deploy-[^-]+-py3-none-(manylinux|macosx|win)_(?:(\d+)_(\d+)_)?(\w+)\.whl", wheel.name)
    if match is None or (match[1] == "win") != (match[2] is None):
        return [f"{wheel.name}: not a py3-none wheel of bnn-deploy for manylinux_2_N, macosx_N_M or win"]
    system, architecture = match[1], match[4]
    promised = (int(match[2] or 0), int(match[3] or 0))
    name = f"bnn_deploy/_lib/{library_name({'macosx': 'darwin', 'win': 'win32'}.get(system, 'linux'))}"
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith((".so", ".dylib", ".dll"))]
        if libraries != [name]:
            return [f"its libraries are {libraries}"]
        content = archive.read(name)
    check = {"manylinux": _linux_problems, "macosx": _macos_problems, "win": _windows_problems}[system]
    found = check(content, promised, architecture)
    if b"custom_ops/" in content:
        found.append("it names the files that it was built from")
    return found


def _windows_problems(content: bytes, _: tuple[int, int], architecture: str) -> list[str]:
    library = binaries.read_pe(content)
    found = _common_problems(library, architecture, library_name("win32"), WINDOWS_LIBRARIES)
    if library.exports != set(FUNCTIONS):
        found.append(f"it exports {', '.join(sorted(library.exports))}")
    return found


def _macos_problems(content: bytes, promised: tuple[int, int], architecture: str) -> list[str]:
    library = binaries.read_macho(content)
    found = _common_problems(library, architecture, f"@rpath/{library_name('darwin')}", MACOS_LIBRARIES)
    functions = {f"_{name}" for name in FUNCTIONS}
    if others := [name for name in library.exports - functions if not re.fullmatch(MACOS_EXPORTS, name)]:
        found.append(f"it exports {', '.join(sorted(others))}")
    if missing := functions - library.exports:
        found.append(f"it does not export {', '.join(sorted(missing))}")
    if library.oldest > promised:
        found.append(f"it is for macOS {library.oldest[0]}.{library.oldest[1]} and newer")
    return found


def _common_problems(library: binaries.Binary, architecture: str, name: str, libraries: str) -> list[str]:
    found = []
    if library.machine != architecture:
        found.append(f"its library is for {library.machine}, not {architecture}")
    if library.name != name:
        found.append(f"it calls itself {library.name}, not {name}")
    if others := [other for other in library.libraries if not re.fullmatch(libraries, other)]:
        found.append(f"it needs {', '.join(sorted(others))}")
    return found


def _linux_problems(content: bytes, promised: tuple[int, int], architecture: str) -> list[str]:
    needs = read_needs(content)
    found = []
    if MACHINES.get(needs.machine) != architecture:
        found.append(f"its library is for {MACHINES.get(needs.machine, needs.machine)}, not {architecture}")
    if others := needs.libraries - SYSTEM_LIBRARIES:
        found.append(f"it needs {', '.join(sorted(others))}")
    glibcxx = 99 if promised[1] > max(GLIBCXX) else max((m for n, m in GLIBCXX.items() if n <= promised[1]), default=0)
    for name, prefix, most in (("glibc", "GLIBC_2.", promised[1]), ("libstdc++", "GLIBCXX_3.4.", glibcxx)):
        numbers = [int(re.match(r"\d+", v.removeprefix(prefix))[0]) for v in needs.versions if v.startswith(prefix)]
        if max(numbers, default=0) > most:
            found.append(f"it needs {name}'s {prefix}{max(numbers)}, the tag promises {prefix}{most}")
    if not any(version.startswith("GLIBC_") for version in needs.versions):
        found.append("it names no version of glibc")
    return found


def main() -> int:
    wrong = 0
    for wheel in map(Path, sys.argv[1:]):
        found = problems(wheel)
        wrong += bool(found)
        print(f"{wheel.name}: {'; '.join(found) or 'the tag is true'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
