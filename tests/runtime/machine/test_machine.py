"""What is found out about machines, on trees of files as they have them."""

from __future__ import annotations

import os
import time

import pytest

from bnn_deploy.runtime.machine import Board, Clock, CoreType, State, read_board, read_state
from support.machines import (
    CPUFREQ,
    FIRMWARE,
    LAPTOP,
    LAPTOP_CPU,
    PI3,
    PI4,
    PI5,
    PI5_SYSFS,
    Plant,
    arm_cpuinfo,
    policy,
    stat,
    zone,
)


@pytest.mark.parametrize(
    ("tree", "model", "core", "memory", "mhz", "temperature"),
    [
        (PI3, "Raspberry Pi 3 Model B Plus Rev 1.3", "Cortex-A53", 926_800 * 1024, 1400.0, 55.844),
        (PI4, "Raspberry Pi 4 Model B Rev 1.4", "Cortex-A72", 3_884_360 * 1024, 1500.0, 48.686),
        (PI5, "Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", 8_245_952 * 1024, 2400.0, 51.45),
        (PI5_SYSFS, "Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", 8_245_952 * 1024, 2400.0, 51.45),
    ],
    ids=["pi3", "pi4", "pi5", "pi5-sysfs"],
)
def test_raspberry_pis(
    plant: Plant, tree: dict[str, str], model: str, core: str, memory: int, mhz: float, temperature: float
) -> None:
    root = plant(tree)
    now = read_state(root)
    found = read_board(now, now, root)
    assert (found.model, found.cores) == (model, (CoreType(core, 4),))
    assert (found.memory_bytes, found.os) == (memory, "Debian GNU/Linux 12 (bookworm)")
    assert now.cpu == 2
    assert now.clock == Clock("policy0", (0, 1, 2, 3), "ondemand", mhz, mhz, mhz, None)
    assert (now.temperature_c, now.sensor) == (temperature, "cpu-thermal")
    assert (now.flags, now.past_flags) == ((), None)
    assert (now.firmware_mhz, now.throttle_count) == (None, None)
    assert found.throttled == ()


def test_x86_laptop(plant: Plant) -> None:
    root = plant(LAPTOP)
    now = read_state(root)
    found = read_board(now, now, root)
    assert (found.model, found.cores, found.os) == (None, (CoreType(LAPTOP_CPU, 12),), "Fedora Linux 41")
    assert [item.policy for item in now.clocks] == [f"policy{i}" for i in range(12)]
    assert now.clock == Clock("policy10", (10,), "powersave", 4100.0, 4400.0, 4400.0, 1300.0)
    assert (now.temperature_c, now.sensor) == (71.0, "x86_pkg_temp")
    assert now.throttle_count == 5 + 5 + 0 + 3 * 7
    assert (now.flags, now.past_flags) == (None, None)


def test_an_empty_container(plant: Plant) -> None:
    root = plant({})
    now = read_state(root)
    assert now == State(None, (), None, None, None, None, None, None)
    found = read_board(now, now, root)
    assert found == Board(None, (), None, None, now, now)
    assert (found.throttled, found.notes) == ((), ())


@pytest.mark.parametrize("content", ["", "\n", "N/A\n", "<unknown>\n", "\0\0", "-1\n", "0x\n", "9" * 30 + "°\n"])
def test_malformed_files_are_absent(plant: Plant, content: str) -> None:
    root = plant({path: content for tree in (PI4, LAPTOP, {FIRMWARE: ""}) for path in tree})
    now = read_state(root)
    found = read_board(now, now, root)
    assert (found.cores, found.memory_bytes, found.os) == ((), None, None)
    assert now.cpu is None
    assert all((item.mhz, item.max_mhz, item.limit_mhz, item.base_mhz) == (None,) * 4 for item in now.clocks)
    assert all(item.cpus == () for item in now.clocks)
    assert (now.temperature_c, now.sensor, now.past_flags) == (None, None, None)
    assert found.throttled == ()


@pytest.mark.parametrize("content", ["", "N/A\n", "-1\n"])
def test_one_malformed_file_is_no_verdict(plant: Plant, content: str) -> None:
    tree = {**PI4, FIRMWARE: "0\n", **policy(1, "4", "performance", 1_000_000, 1_000_000, base_frequency=1_000_000)}
    root = plant(tree)
    before = read_state(root)
    for path, good in tree.items():
        (root / path).write_text(content)
        after = read_state(root)
        assert read_board(before, after, root).throttled == (), path
        (root / path).write_text(good)
    assert read_state(root) == before


def test_unreadable_files_are_absent(plant: Plant) -> None:
    root = plant({path: text for path, text in PI4.items() if not path.startswith("proc")})
    for path in PI4:  # a folder cannot be read as a file, not even by root
        if path.startswith("proc"):
            (root / path).mkdir(parents=True)
    (root / CPUFREQ / "policy0/scaling_cur_freq").unlink()
    (root / CPUFREQ / "policy0/scaling_cur_freq").mkdir()
    now = read_state(root)
    found = read_board(now, now, root)
    assert (found.model, found.cores, found.memory_bytes) == (None, (), None)
    assert now.clock is not None
    assert (now.clock.mhz, now.clock.max_mhz) == (None, 1500.0)
    assert found.os == "Debian GNU/Linux 12 (bookworm)"


def test_kinds_of_cores(plant: Plant) -> None:
    text = arm_cpuinfo("0xd05", "0xd05", "0xd05", "0xd05", "0xd0b", "0xd0b", "0xfff", "N/A")
    root = plant({"proc/cpuinfo": text})
    now = read_state(root)
    assert read_board(now, now, root).cores == (
        CoreType("Cortex-A55", 4),
        CoreType("Cortex-A76", 2),
        CoreType("ARM implementer 0x41, part 0xfff", 1),
    )
    # Another maker's part 0xd08 is not Arm's.
    plant({"proc/cpuinfo": arm_cpuinfo("0xd08").replace(": 0x41", ": 0x48")})
    assert read_board(now, now, root).cores == (CoreType("ARM implementer 0x48, part 0xd08", 1),)


def test_os_release_elsewhere(plant: Plant) -> None:
    root = plant({"usr/lib/os-release": "ID=x\nPRETTY_NAME=Alpine\n"})
    now = read_state(root)
    assert read_board(now, now, root).os == "Alpine"


def test_the_hottest_zone_where_none_is_the_cpus(plant: Plant) -> None:
    root = plant({**zone(0, "acpitz", "27800"), **zone(1, "gpu-thermal", "64500"), **zone(2, "soc", "-274000")})
    assert (read_state(root).temperature_c, read_state(root).sensor) == (64.5, "gpu-thermal")
    plant({**zone(3, "cpu0-thermal", "45000"), **zone(12, "CPU-big", "47000")})
    assert (read_state(root).temperature_c, read_state(root).sensor) == (47.0, "CPU-big")


def test_frequency_from_the_hardware_first(plant: Plant) -> None:
    root = plant(policy(0, "0", "ondemand", 1_500_000, 1_500_000, cpuinfo_cur_freq=600_000, scaling_max_freq=1_200_000))
    assert read_state(root).clock == Clock("policy0", (0,), "ondemand", 600.0, 1500.0, 1200.0, None)
    plant({f"{CPUFREQ}/policy0/cpuinfo_cur_freq": "<unknown>\n"})
    assert read_state(root).clock == Clock("policy0", (0,), "ondemand", 1500.0, 1500.0, 1200.0, None)


def test_nominal_frequency_of_acpi(plant: Plant) -> None:
    tree = policy(3, "3", "schedutil", 4_000_000, 5_000_000)
    root = plant({**tree, "sys/devices/system/cpu/cpu3/acpi_cppc/nominal_freq": "3400\n"})
    assert read_state(root).clocks[0].base_mhz == 3400.0


def test_the_clock_that_counts(plant: Plant) -> None:
    root = plant(
        {**policy(0, "0 1", "ondemand", 600_000, 1_800_000), **policy(2, "2 3", "ondemand", 1_000_000, 2_000_000)}
    )
    assert read_state(root).clock is None  # two, and nobody knows which
    plant({"proc/thread-self/stat": stat(3)})
    assert read_state(root).clock == read_state(root).clocks[1]
    assert read_state(root).cpu == 3


def test_this_machine() -> None:
    """Whatever it offers, reading it is quick, does no harm, and fits the process."""
    start = time.perf_counter()
    now = read_state()
    found = read_board(now, now)
    assert time.perf_counter() - start < 5
    assert now.cpu is None or now.cpu < (os.cpu_count() or 1) * 64
    assert found.memory_bytes is None or found.memory_bytes > 100e6
