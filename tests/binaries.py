"""What the libraries of Windows and macOS say of themselves, read without any tool of those systems.

64-bit ones alone. Portable Executable: Microsoft's "PE Format". Mach-O: <mach-o/loader.h> and <mach-o/nlist.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Binary:
    """A library.

    Attributes:
        machine: the architecture, as the tags of wheels name it.
        exports: the symbols that others can use.
        libraries: those that it loads.
        name: by which others would load it, Mach-O's install name; on Windows that in the table of exports.
        oldest: the oldest macOS that it is for; (0, 0) on Windows.
    """

    machine: str
    exports: frozenset[str]
    libraries: frozenset[str]
    name: str
    oldest: tuple[int, int] = (0, 0)


def text(content: bytes, at: int) -> str:
    return content[at : content.index(b"\0", at)].decode()


def read_pe(content: bytes) -> Binary:
    (header,) = struct.unpack_from("<I", content, 0x3C)
    assert content[:2] == b"MZ" and content[header : header + 4] == b"PE\0\0", "not a Portable Executable"
    machine, count = struct.unpack_from("<HH", content, header + 4)
    (size,) = struct.unpack_from("<H", content, header + 20)
    optional = header + 24
    assert content[optional : optional + 2] == b"\x0b\x02", "not a 64-bit one"
    sections = [struct.unpack_from("<IIII", content, optional + size + 40 * i + 8) for i in range(count)]

    def offset(address: int) -> int:
        for size, start, _, raw in sections:
            if start <= address < start + size:
                return raw + address - start
        raise AssertionError(f"address {address:#x} is in no section")

    exported, _, imported, _ = struct.unpack_from("<IIII", content, optional + 112)
    table = offset(exported)
    (name,) = struct.unpack_from("<I", content, table + 12)
    names, _, addresses = struct.unpack_from("<III", content, table + 24)
    exports = struct.unpack_from(f"<{names}I", content, offset(addresses))
    libraries, at = set(), offset(imported)
    while any(entry := struct.unpack_from("<5I", content, at)):
        libraries.add(text(content, offset(entry[3])))
        at += 20
    return Binary(
        {0x8664: "amd64", 0xAA64: "arm64"}.get(machine, hex(machine)),
        frozenset(text(content, offset(export)) for export in exports),
        frozenset(libraries),
        text(content, offset(name)),
    )


ID, LOAD, SYMBOLS, BUILD_VERSION = 0xD, 0xC, 0x2, 0x32
PRIVATE, KIND, SECTION, EXTERNAL = 0x10, 0x0E, 0x0E, 0x01
"""Parts of a symbol's type, n_type."""


def read_macho(content: bytes) -> Binary:
    magic, machine, _, _, count = struct.unpack_from("<5I", content)
    assert magic == 0xFEEDFACF, "not a 64-bit Mach-O file of one architecture"

    def commands() -> Iterator[tuple[int, int]]:
        at = 32
        for _ in range(count):
            command, size = struct.unpack_from("<II", content, at)
            yield command, at
            at += size

    name, oldest, libraries, exports = "", (0, 0), set(), set()
    for command, at in commands():
        first, second, third, _ = struct.unpack_from("<4I", content, at + 8)
        if command == ID:
            name = text(content, at + first)
        elif command == LOAD:
            libraries.add(text(content, at + first))
        elif command == BUILD_VERSION:
            assert first == 1, "not for macOS"
            oldest = (second >> 16, second >> 8 & 0xFF)
        elif command == SYMBOLS:
            for i in range(second):
                string, kind = struct.unpack_from("<IB", content, first + 16 * i)
                if kind & EXTERNAL and kind & KIND == SECTION and not kind & PRIVATE:
                    exports.add(text(content, third + string))
    return Binary(
        {0x0100000C: "arm64", 0x01000007: "x86_64"}.get(machine, hex(machine)),
        frozenset(exports),
        frozenset(libraries),
        name,
        oldest,
    )
