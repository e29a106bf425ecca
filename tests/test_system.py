"""What differs between systems, with the other systems' calls in place of this one's."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bnn_deploy import system
from bnn_deploy.errors import SetupError
from bnn_deploy.runtime.session import library_path

MB = 1 << 20


def test_only_one_module_asks_which_system_this_is() -> None:
    package = Path(system.__file__).parent
    asks = r"sys\.platform ==|os\.name|sched_[gs]etaffinity|import resource\b|VmHWM|platform\.system|\.(so|dll|dylib)\b"
    found = {path.name for path in package.rglob("*.py") if re.search(asks, path.read_text())}
    assert found == {"system.py"}


def test_the_library_is_looked_for_by_its_name_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_path().name == system.library_name("linux") == "libbnn_deploy_ops.so"
    for platform, name in (("win32", "libbnn_deploy_ops.dll"), ("darwin", "libbnn_deploy_ops.dylib")):
        monkeypatch.setattr(sys, "platform", platform)
        with pytest.raises(SetupError, match=re.escape(name)):
            library_path()


def test_without_affinities_all_cpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.usable_cpus() == len(os.sched_getaffinity(0))
    assert system.cpu_numbers() == sorted(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert system.usable_cpus() == 12
    assert system.cpu_numbers() == list(range(12))


def test_a_thread_stays_on_its_cpu_where_that_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    try:
        system.stay_on(min(before))
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
    monkeypatch.delattr(os, "sched_setaffinity")
    system.stay_on(min(before))
    assert os.sched_getaffinity(0) == before


def test_threads_of_openmp_sleep_unless_the_user_says_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for policy in ("PASSIVE", "ACTIVE"):
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        if policy == "PASSIVE":
            monkeypatch.delenv("OMP_WAIT_POLICY")
        system.let_waiting_threads_sleep()
        assert os.environ["OMP_WAIT_POLICY"] == policy


def test_peak_memory_follows_what_is_used_on_linux() -> None:
    code = """if True:
        from bnn_deploy.system import peak_memory, reset_peak_memory
        reset_peak_memory()
        before = peak_memory()
        used = b"1" * (64 << 20)
        print(peak_memory() - before)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 * MB < int(run.stdout) < 80 * MB


def test_peak_memory_on_macos_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=5 * MB))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert system.peak_memory() == 5 * MB


class Kernel32:
    """The two functions of Windows's kernel32.dll, which answer as their documentation says."""

    works = True

    def __init__(self) -> None:
        self.GetCurrentProcess = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: -1)
        kinds = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
        self.K32GetProcessMemoryInfo = ctypes.CFUNCTYPE(*kinds)(self._memory)

    def _memory(self, process: int, counters: int, size: int) -> int:
        # DWORD cb, PageFaultCount; SIZE_T PeakWorkingSetSize and seven more
        ctypes.c_size_t.from_address(counters + 8).value = 7 * MB
        return int(
            self.works and process == 2**64 - 1 and size == 72 and ctypes.c_uint32.from_address(counters).value == 72
        )


@pytest.mark.parametrize("works", [True, False])
def test_peak_memory_on_windows(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr(Kernel32, "works", works)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"kernel32": Kernel32()}[name])
    monkeypatch.setattr(sys, "platform", "win32")
    if works:
        assert system.peak_memory() == 7 * MB
    else:
        with pytest.raises(SetupError, match="peak memory cannot be measured"):
            system.peak_memory()


def test_a_process_is_killed_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for platform in ("linux", "win32"):
        process = subprocess.Popen(["sleep", "100"], start_new_session=True)
        monkeypatch.setattr(sys, "platform", platform)
        system.kill_with_children(process)
        assert process.wait(10) == -9


def test_ssh_comes_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "apt" in system.ssh_advice()
    for platform in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        assert "apt" not in system.ssh_advice()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_tables_and_json_are_printed_in_every_encoding(encoding: str) -> None:
    code = """if True:
        from bnn_deploy.cli.console import print_json
        from bnn_deploy.system import print_what_the_streams_can
        print_what_the_streams_can()
        print("\\u2500 \\u00d7")
        print_json(["\\u2500"])"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    line, *rest = io.StringIO(run.stdout.decode(encoding)).read().splitlines()
    assert run.returncode == 0, run.stderr
    assert line == {"cp1252": "? \u00d7", "ascii": "? ?", "utf-8": "\u2500 \u00d7"}[encoding]
    assert json.loads("".join(rest)) == ["\u2500"]
