"""Flags of the firmware: under-voltage, throttling."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bnn_deploy.runtime import machine
from bnn_deploy.runtime.machine import read_board, read_state
from support.machines import (
    CAPPED,
    FIRMWARE,
    PI4,
    PI5_FIRMWARE,
    SOFT_LIMIT,
    THROTTLED,
    UNDER_VOLTAGE,
    Plant,
    hwmon,
    script,
    vcgencmd,
)


@pytest.mark.parametrize(
    ("bits", "now", "past"),
    [
        ("0x0", (), ()),
        ("0x1", (UNDER_VOLTAGE,), ()),
        ("0x2", (CAPPED,), ()),
        ("0x4", (THROTTLED,), ()),
        ("0x8", (SOFT_LIMIT,), ()),
        ("0x10000", (), (UNDER_VOLTAGE,)),
        ("0x20000", (), (CAPPED,)),
        ("0x40000", (), (THROTTLED,)),
        ("0x80000", (), (SOFT_LIMIT,)),
        ("0x50005", (UNDER_VOLTAGE, THROTTLED), (UNDER_VOLTAGE, THROTTLED)),
        ("0xE0008", (SOFT_LIMIT,), (CAPPED, THROTTLED, SOFT_LIMIT)),
        ("0xfff0fff0", (), ()),
    ],
)
def test_bits_of_vcgencmd(plant: Plant, commands: Path, bits: str, now: tuple[str, ...], past: tuple[str, ...]) -> None:
    vcgencmd(commands, f"throttled={bits}", hertz=1_000_212_000)
    # It is asked first: the kernel's copy has other bits.
    found = read_state(plant({FIRMWARE: "f000f\n"}))
    assert (found.flags, found.past_flags) == (now, past)
    assert found.firmware_mhz == 1000.212


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("0", ()),
        ("1", (UNDER_VOLTAGE,)),
        ("8", (SOFT_LIMIT,)),
        # The upper half is of the last two seconds in the kernel's copy, which is hexadecimal: 10000 is bit 16.
        ("10000", (UNDER_VOLTAGE,)),
        ("50004", (UNDER_VOLTAGE, THROTTLED)),
        ("e0000", (CAPPED, THROTTLED, SOFT_LIMIT)),
    ],
)
@pytest.mark.parametrize("path", [FIRMWARE, PI5_FIRMWARE])
def test_bits_of_the_kernel(plant: Plant, path: str, text: str, flags: tuple[str, ...]) -> None:
    found = read_state(plant({path: f"{text}\n"}))
    assert (found.flags, found.past_flags) == (flags, None)


def test_under_voltage_of_hwmon(plant: Plant, commands: Path) -> None:
    root = plant(hwmon(0, "nvme", "1"))
    assert read_state(root).flags is None  # a low voltage, but not the board's
    plant(hwmon(1, "rpi_volt", "0"))
    assert read_state(root).flags == ()
    plant(hwmon(1, "rpi_volt", "1"))
    assert (read_state(root).flags, read_state(root).past_flags) == ((UNDER_VOLTAGE,), None)
    vcgencmd(commands, "throttled=0x40004")
    assert (read_state(root).flags, read_state(root).past_flags) == ((UNDER_VOLTAGE, THROTTLED), (THROTTLED,))


@pytest.mark.parametrize(
    "body",
    [
        "echo 'VCHI initialization failed'; exit 255",
        'echo "Can\'t open device file: /dev/vcio" >&2; exit 1',
        "exit 0",
        "echo throttled=N/A",
        "echo throttled=0x",
        "kill -9 $$",
    ],
)
def test_a_vcgencmd_that_does_not_answer(plant: Plant, commands: Path, body: str) -> None:
    script(commands, body)
    root = plant(PI4)
    now = read_state(root)
    assert (now.flags, now.past_flags, now.firmware_mhz) == ((), None, None)  # flags from rpi_volt
    assert "vcgencmd gave no answer" in read_board(now, now, root).notes[0]
    # The kernel's copy stands in.
    plant({FIRMWARE: "4\n"})
    assert read_state(root).flags == (THROTTLED,)


def test_a_vcgencmd_that_hangs_is_ended(plant: Plant, commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "VCGENCMD_TIMEOUT_S", 0.3)
    pids = commands / "pids"
    # The child holds the pipe open: to end the shell alone would not be enough.
    script(commands, f'/bin/sleep 60 &\necho $$ $! >> "{pids}"\nwait')
    start = time.perf_counter()
    now = read_state(plant({FIRMWARE: "2\n"}))
    assert time.perf_counter() - start < 10
    assert (now.flags, now.firmware_mhz) == ((CAPPED,), None)
    assert len(pids.read_text().splitlines()) == 1  # asked once, not once more for the flags
    deadline = time.perf_counter() + 10
    while any(running(int(pid)) for pid in pids.read_text().split()) and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert not any(running(int(pid)) for pid in pids.read_text().split())


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
