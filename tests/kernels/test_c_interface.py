"""The C header: what it declares is what the library exports, and what its functions say is what Python is told."""

from __future__ import annotations

import ctypes
import os
import subprocess

import pytest

from bnn_deploy import __version__
from bnn_deploy.runtime.session import library_info, library_path
from support import python
from wheels import FUNCTIONS, HEADER


def library() -> ctypes.CDLL:
    """The library, with its functions' types as the header declares them."""
    found = ctypes.CDLL(str(library_path()))
    for name in ("bnn_deploy_version", "bnn_deploy_isa", "bnn_deploy_selected_isa"):
        getattr(found, name).restype = ctypes.c_char_p
    found.bnn_deploy_calls.restype = ctypes.c_uint64
    found.bnn_deploy_calls.argtypes = [ctypes.c_char_p]
    found.bnn_deploy_isa.argtypes = [ctypes.c_uint32]
    return found


def isas() -> list[str]:
    """By the C interface."""
    names, own = [], library()
    while (name := own.bnn_deploy_isa(len(names))) is not None:
        names.append(name.decode())
    return names


def test_the_functions_are_those_of_the_header() -> None:
    assert {"RegisterCustomOps", "bnn_deploy_version", "bnn_deploy_calls"} <= set(FUNCTIONS)
    assert HEADER.read_text().count("BNN_DEPLOY_API ") == len(FUNCTIONS) + 3  # the macro's three definitions
    for name in FUNCTIONS:
        assert getattr(library(), name)


def test_what_it_says() -> None:
    own, info = library(), library_info()
    assert own.bnn_deploy_version().decode() == info.version == __version__
    assert isas() == list(info.isas)
    assert own.bnn_deploy_isa(2**32 - 1) is None
    assert own.bnn_deploy_selected_isa().decode() == info.selected
    assert {name: own.bnn_deploy_calls(name.encode()) for name in info.isas} == dict(info.calls)
    assert own.bnn_deploy_calls(b"no such") == own.bnn_deploy_calls(None) == 0


@pytest.mark.parametrize(("forced", "selected"), [("scalar", b"scalar"), ("mmx", None), ("", isas()[0].encode())])
def test_the_environment_selects(forced: str, selected: bytes | None) -> None:
    """In a process of its own: a variable that Python sets later is not seen on every system."""
    code = (
        "import ctypes\n"
        f"own = ctypes.CDLL({str(library_path())!r})\n"
        "own.bnn_deploy_selected_isa.restype = ctypes.c_char_p\n"
        "print(own.bnn_deploy_selected_isa())"
    )
    done = subprocess.run(
        python.command(code), capture_output=True, text=True, env=os.environ | {"BNN_DEPLOY_ISA": forced}, check=True
    )
    assert done.stdout.strip() == str(selected)
