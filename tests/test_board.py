"""What `profile` finds out about boards, on trees of files as they have them, and what it says of a throttled run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_models import save_binary, save_float

from bnn_deploy import cli
from bnn_deploy.runtime import machine, profiling
from bnn_deploy.runtime.machine import FLAGS, Board, Clock, CoreType, State, read_board, read_state

UNDER_VOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = FLAGS
CPUFREQ = "sys/devices/system/cpu/cpufreq"
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI5_FIRMWARE = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"


def arm_cpuinfo(*parts: str, model: str = "") -> str:
    cpus = [
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n"
        for i, part in enumerate(parts)
    ]
    return "\n".join([*cpus, f"Revision\t: c03115\nSerial\t\t: 10000000abcdef01\nModel\t\t: {model}\n"])


def policy(number: int, cpus: str, governor: str, now: int, maximum: int, **more: int) -> dict[str, str]:
    """The files of a cpufreq policy; frequencies in kHz."""
    values = {
        "affected_cpus": cpus,
        "scaling_governor": governor,
        "scaling_cur_freq": now,
        "cpuinfo_max_freq": maximum,
        "scaling_max_freq": maximum,
        **more,
    }
    return {f"{CPUFREQ}/policy{number}/{name}": f"{value}\n" for name, value in values.items()}


def zone(number: int, kind: str, temperature: str) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/temp": f"{temperature}\n"}


def hwmon(number: int, name: str, alarm: str) -> dict[str, str]:
    return {
        f"sys/class/hwmon/hwmon{number}/name": f"{name}\n",
        f"sys/class/hwmon/hwmon{number}/in0_lcrit_alarm": f"{alarm}\n",
    }


def stat(cpu: int) -> str:
    """proc/thread-self/stat of a thread with a name to stumble over; field 39 is the CPU."""
    return " ".join(["4711", "(a) thread (1)", "R", *map(str, range(4, 39)), str(cpu), "0", "0"])


OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'

PI3 = {
    "proc/device-tree/model": "Raspberry Pi 3 Model B Plus Rev 1.3\0",
    "proc/cpuinfo": arm_cpuinfo(*["0xd03"] * 4, model="Raspberry Pi 3 Model B Plus Rev 1.3"),
    "proc/meminfo": "MemTotal:         926800 kB\nMemFree:          500000 kB\n",
    "proc/thread-self/stat": stat(2),
    "etc/os-release": OS_RELEASE,
    **policy(0, "0 1 2 3", "ondemand", 1_400_000, 1_400_000),
    **zone(0, "cpu-thermal", "55844"),
    **hwmon(0, "cpu_thermal", "1"),
    **hwmon(1, "rpi_volt", "0"),
}
PI4 = {
    **PI3,
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/cpuinfo": arm_cpuinfo(*["0xd08"] * 4, model="Raspberry Pi 4 Model B Rev 1.4"),
    "proc/meminfo": "MemTotal:        3884360 kB\n",
    **policy(0, "0 1 2 3", "ondemand", 1_500_000, 1_500_000),
    **zone(0, "cpu-thermal", "48686"),
}
# As Raspberry Pi OS has it (flags by vcgencmd and rpi_volt alone), and a kernel that gives the firmware's flags.
PI5 = {
    **PI4,
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/cpuinfo": arm_cpuinfo(*["0xd0b"] * 4, model="Raspberry Pi 5 Model B Rev 1.0"),
    "proc/meminfo": "MemTotal:        8245952 kB\n",
    **policy(0, "0 1 2 3", "ondemand", 2_400_000, 2_400_000),
    **zone(0, "cpu-thermal", "51450"),
}
PI5_SYSFS = {**{path: text for path, text in PI5.items() if "hwmon" not in path}, PI5_FIRMWARE: "0\n"}

LAPTOP_CPU = "12th Gen Intel(R) Core(TM) i5-1235U"
LAPTOP = {
    "proc/cpuinfo": "\n".join(
        f"processor\t: {i}\nvendor_id\t: GenuineIntel\nmodel name\t: {LAPTOP_CPU}\n" for i in range(12)
    ),
    "proc/meminfo": "MemTotal:       16077020 kB\n",
    "proc/thread-self/stat": stat(10),
    "etc/os-release": "NAME=Fedora\nPRETTY_NAME='Fedora Linux 41'\n",
    # The thread is on CPU 10; all others idle at 400 MHz.
    **{
        path: text
        for i in range(12)
        for path, text in policy(
            i, str(i), "powersave", 4_100_000 if i == 10 else 400_000, 4_400_000, base_frequency=1_300_000
        ).items()
    },
    **zone(0, "acpitz", "27800"),
    **zone(1, "INT3400 Thermal", "20000"),
    **zone(2, "x86_pkg_temp", "71000"),
    **zone(10, "iwlwifi_1", "95000"),
    **{
        f"sys/devices/system/cpu/cpu{i}/thermal_throttle/{kind}_throttle_count": f"{count}\n"
        for i, (core, package) in enumerate([(5, 7), (5, 7), (0, 7)])
        for kind, count in (("core", core), ("package", package))
    },
}

Plant = Callable[[dict[str, str]], Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Writes files by path into a folder that stands for /."""
    root = tmp_path / "root"
    root.mkdir()

    def write(files: dict[str, str]) -> Path:
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root

    return write


@pytest.fixture(autouse=True)
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in PATH; empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def vcgencmd(folder: Path, throttled: str, hertz: int = 1_500_345_728) -> None:
    """A vcgencmd that answers as the Raspberry Pi's does; `throttled` is what it prints to get_throttled."""
    script(
        folder,
        f'case "$*" in\n"measure_clock arm") echo "frequency(48)={hertz}";;\n'
        f'"get_throttled") echo "{throttled}";;\n*) exit 1;;\nesac',
    )


def script(folder: Path, body: str) -> None:
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def state(
    cpu: int | None = 0,
    clocks: tuple[Clock, ...] = (),
    flags: tuple[str, ...] | None = None,
    past: tuple[str, ...] | None = None,
    count: int | None = None,
    firmware_mhz: float | None = None,
) -> State:
    return State(cpu, clocks, firmware_mhz, None, None, flags, past, count)


def clock(
    governor: str, mhz: float | None, number: int = 0, base_mhz: float | None = None, max_mhz: float | None = 1500
) -> Clock:
    return Clock(f"policy{number}", (number,), governor, mhz, max_mhz, max_mhz, base_mhz)


def measured(before: State, after: State, model: str | None = None) -> Board:
    return Board(model, (), None, None, before, after)


# --- what a machine is ----------------------------------------------------------------------------


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


# --- flags ----------------------------------------------------------------------------------------


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


# --- the verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        (state(flags=(), past=()), state(flags=(), past=()), ()),
        (state(flags=None), state(flags=None), ()),
        (state(flags=(THROTTLED,), past=(THROTTLED,)), state(flags=(), past=(THROTTLED,)), ("CPU throttled before",)),
        (state(flags=(), past=(CAPPED,)), state(flags=(CAPPED,), past=(CAPPED,)), ("CPU frequency capped after",)),
        (state(flags=(), past=()), state(flags=(), past=(UNDER_VOLTAGE,)), ("under-voltage during",)),
        (
            state(flags=(UNDER_VOLTAGE,), past=(UNDER_VOLTAGE,)),
            state(flags=(UNDER_VOLTAGE, SOFT_LIMIT), past=(UNDER_VOLTAGE, SOFT_LIMIT)),
            ("under-voltage before and after", "soft temperature limit during and after"),
        ),
        # Set since the start of the board, not by this run; or not known before it.
        (state(flags=(), past=FLAGS), state(flags=(), past=FLAGS), ()),
        (state(flags=None, past=None), state(flags=(), past=FLAGS), ()),
        (state(flags=(), past=(CAPPED,)), state(flags=None, past=None), ()),
    ],
)
def test_verdict_by_flags(before: State, after: State, reasons: tuple[str, ...]) -> None:
    assert measured(before, after).throttled == tuple(f"{reason} the timed runs" for reason in reasons)


def test_verdict_by_counters() -> None:
    assert measured(state(count=7), state(count=10)).throttled == (
        "the CPU's counter of thermal throttling rose by 3 during the timed runs",
    )
    for before, after in ((7, 7), (7, 2), (None, 7), (7, None), (None, None)):
        assert measured(state(count=before), state(count=after)).throttled == ()


@pytest.mark.parametrize("governor", ["performance", "ondemand", "schedutil"])
def test_verdict_by_frequency(governor: str) -> None:
    (reason,) = measured(state(), state(clocks=(clock(governor, 1000),))).throttled
    assert reason == (
        f"the CPU was at 1000 MHz at the end of the timed runs, 33% below its maximum of 1500 MHz (governor {governor})"
    )
    assert measured(state(), state(clocks=(clock(governor, 1349),))).throttled
    for mhz in (1350, 1500, 1600, None):  # not more than 10 % below
        assert measured(state(), state(clocks=(clock(governor, mhz),))).throttled == ()
    # Before the runs the CPU was idle.
    assert measured(state(clocks=(clock(governor, 600),)), state(clocks=(clock(governor, 1500),))).throttled == ()


def test_no_verdict_by_frequency() -> None:
    for governor in ("powersave", "conservative", "userspace", ""):
        assert measured(state(), state(clocks=(clock(governor, 600),))).throttled == ()
    assert measured(state(), state(clocks=(clock("ondemand", 600, max_mhz=None),))).throttled == ()
    # Only the CPU that the runs were on counts, and it has to be known.
    clocks = (clock("ondemand", 600, 0), clock("ondemand", 1500, 1))
    assert measured(state(), state(cpu=1, clocks=clocks)).throttled == ()
    assert measured(state(), state(cpu=None, clocks=clocks)).throttled == ()
    assert measured(state(), state(cpu=0, clocks=clocks)).throttled


def test_verdict_against_the_base_frequency() -> None:
    """A processor with a range for bursts does not sustain its maximum; below its base it is throttled."""
    assert measured(state(), state(clocks=(clock("performance", 1200, base_mhz=1100),))).throttled == ()
    (reason,) = measured(state(), state(clocks=(clock("performance", 800, base_mhz=1100),))).throttled
    assert "27% below its base frequency of 1100 MHz" in reason


def test_verdict_by_the_firmwares_frequency() -> None:
    """Linux on a Raspberry Pi gives the frequency that it asked for. Other governors may have lowered it since."""
    (reason,) = measured(state(), state(clocks=(clock("performance", 1500),), firmware_mhz=999.7)).throttled
    assert "at 1000 MHz at the end" in reason
    assert measured(state(), state(clocks=(clock("ondemand", 1500),), firmware_mhz=600)).throttled == ()
    assert measured(state(), state(clocks=(clock("performance", 1500),), firmware_mhz=1500.3)).throttled == ()


def test_notes() -> None:
    calm = state(flags=(), past=())
    assert measured(calm, calm, "Raspberry Pi 4 Model B Rev 1.4").notes == ()
    past = state(flags=(), past=(UNDER_VOLTAGE, THROTTLED))
    assert measured(past, past).notes == (
        "since the start of the board, before these runs: under-voltage, CPU throttled",
    )
    (note,) = measured(state(), state(clocks=(clock("ondemand", 1500), clock("powersave", 600, 1)))).notes
    assert "governor powersave" in note
    assert "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor" in note
    (note,) = measured(state(), state(), "Raspberry Pi 4 Model B Rev 1.4").notes
    assert note.startswith("vcgencmd gave no answer")
    assert measured(state(), state(), "Radxa ROCK 5B").notes == ()


# --- the report -----------------------------------------------------------------------------------


@pytest.fixture
def board_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes `profile` look for proc, sys and etc in the given folder."""

    def look(root: Path) -> None:
        monkeypatch.setattr(profiling, "read_state", partial(read_state, root))
        monkeypatch.setattr(profiling, "read_board", partial(read_board, root=root))

    return look


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["profile", *map(str, arguments), "--runs", "2"], prog_name="bnn-deploy")


@pytest.fixture
def throttling_pi4(plant: Plant, commands: Path, board_at: Callable[[Path], None]) -> None:
    """A Pi 4 that runs into under-voltage and throttling between the two readings."""
    board_at(plant(PI4))
    script(
        commands,
        'if [ "$1" = measure_clock ]; then echo "frequency(48)=1000212000"; exit; fi\n'
        f'if [ -e "{commands}/second" ]; then echo throttled=0xd0005; else echo throttled=0x80000; fi\n'
        f': > "{commands}/second"',
    )


@pytest.mark.usefixtures("throttling_pi4")
def test_a_throttled_run_says_so(tmp_path: Path) -> None:
    result = run(
        save_binary(tmp_path / "binary.onnx"), "--compare", save_float(tmp_path / "float.onnx"), "--nodes", "0"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    print(result.stdout)
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "THROTTLED: under-voltage during and after the timed runs",
        "THROTTLED: CPU throttled during and after the timed runs",
    ]
    (median,) = (line for line in lines if line.startswith("median"))
    assert median.count(" ms THROTTLED") == 2
    assert "board         Raspberry Pi 4 Model B Rev 1.4" in lines
    assert "cores         4 × Cortex-A72" in lines  # noqa: RUF001
    assert "system        Debian GNU/Linux 12 (bookworm), 3.98 GB of memory" in lines
    assert (
        "clock         1500 MHz before, 1500 MHz after the timed runs, 1000 MHz by the firmware's measure, "
        "maximum 1500 MHz, governor ondemand"
    ) in lines
    assert "temperature   48.7 °C before, 48.7 °C after the timed runs (thermal zone cpu-thermal)" in lines
    assert "note          since the start of the board, before these runs: soft temperature limit" in lines
    assert not any(line.startswith("throttling") for line in lines)


@pytest.mark.usefixtures("throttling_pi4")
def test_json_of_a_throttled_run(tmp_path: Path) -> None:
    report = json.loads(run(save_binary(tmp_path / "binary.onnx"), "--json").stdout)
    assert report["throttled"] == [
        "under-voltage during and after the timed runs",
        "CPU throttled during and after the timed runs",
    ]
    assert report["notes"] == ["since the start of the board, before these runs: soft temperature limit"]
    assert report["board"]["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert report["board"]["cores"] == [{"name": "Cortex-A72", "cpus": 4}]
    assert report["board"]["before"]["flags"] == []
    assert report["board"]["after"]["flags"] == [UNDER_VOLTAGE, THROTTLED]
    assert report["board"]["after"]["temperature_c"] == 48.686
    assert report["board"]["after"]["clocks"][0]["mhz"] == 1500.0
    # The fields of before boards were known are all there.
    assert set(report["machine"]) == {"cpu", "cpus", "onnxruntime"}
    assert {"model", "compare", "speedup", "isa_calls", "isa", "threads", "runs", "data"} <= set(report)


def test_a_calm_run(plant: Plant, commands: Path, board_at: Callable[[Path], None], tmp_path: Path) -> None:
    board_at(plant(PI5))
    vcgencmd(commands, "throttled=0x0", hertz=2_400_033_792)
    model = save_binary(tmp_path / "binary.onnx")
    text = run(model).stdout
    assert "THROTTLED" not in text
    assert "note" not in text
    assert "throttling    none: no flag of the board was set around the timed runs" in text
    report = json.loads(run(model, "--json").stdout)
    assert (report["throttled"], report["notes"]) == ([], [])
    assert report["board"]["after"]["flags"] == []
    assert "THROTTLED" not in str(profiling.profile(model, runs=1))
    vcgencmd(commands, "throttled=0x4")
    assert str(profiling.profile(model, runs=1)).endswith("; THROTTLED: CPU throttled before and after the timed runs")


def test_nothing_is_said_where_nothing_is_known(plant: Plant, board_at: Callable[[Path], None], tmp_path: Path) -> None:
    board_at(plant({}))
    result = run(save_binary(tmp_path / "binary.onnx"), "--nodes", "0")
    assert (result.exit_code, result.stderr) == (0, "")
    names = [line.split("  ")[0] for line in result.stdout.splitlines()[:4]]
    assert names == ["machine", "ISA that ran", "input", "runs"]


def test_text_of_files_cannot_reach_the_terminal(
    plant: Plant, board_at: Callable[[Path], None], tmp_path: Path
) -> None:
    evil = "ondemand\x1b[2J"
    board_at(plant({**PI4, **policy(0, "0 1 2 3", evil, 600_000, 1_500_000), "proc/device-tree/model": "Pi\x1b[31m\0"}))
    result = run(save_binary(tmp_path / "binary.onnx"), "--nodes", "0")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "Pi\\x1b[31m" in result.stdout


def test_the_state_is_read_outside_the_timed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    timing = profiling._time_in_turns

    def logged(*arguments: object) -> object:
        log.append("timing")
        result = timing(*arguments)  # type: ignore[arg-type]
        log.append("timed")
        return result

    monkeypatch.setattr(profiling, "_time_in_turns", logged)
    monkeypatch.setattr(profiling, "read_state", lambda: log.append("state") or state(flags=(), past=()))
    profiling.profile(save_binary(tmp_path / "binary.onnx"), runs=1)
    assert log == ["state", "timing", "timed", "state"]


def test_a_limited_clock_is_seen(plant: Plant, board_at: Callable[[Path], None], tmp_path: Path) -> None:
    """A board without flags of its own, whose kernel takes the frequency down."""
    slow = policy(0, "0 1 2 3", "schedutil", 1_000_000, 1_800_000, scaling_max_freq=1_008_000)
    board_at(plant({**PI4, **slow, "proc/device-tree/model": "Radxa ROCK Pi 4B\0"}))
    lines = run(save_binary(tmp_path / "binary.onnx"), "--nodes", "0").stdout.splitlines()
    assert lines[0].startswith("THROTTLED: the CPU was at 1000 MHz at the end of the timed runs, 44% below its maximum")
    assert (
        "clock         1000 MHz before, 1000 MHz after the timed runs, limited to 1008 MHz of at most 1800 MHz, "
        "governor schedutil"
    ) in lines
    assert not any(line.startswith("throttling") for line in lines)


def test_the_report_of_a_laptop(
    plant: Plant, board_at: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board_at(plant(LAPTOP))
    monkeypatch.setattr(profiling, "cpu_name", lambda: LAPTOP_CPU)
    lines = run(save_binary(tmp_path / "binary.onnx"), "--nodes", "0").stdout.splitlines()
    assert lines[0].startswith(f"machine       {LAPTOP_CPU}, ")
    assert lines[1:4] == [  # no board, and no line for cores that "machine" names already
        "system        Fedora Linux 41, 16.5 GB of memory",
        "clock         4100 MHz before, 4100 MHz after the timed runs, maximum 4400 MHz, governor powersave",
        "temperature   71.0 °C before, 71.0 °C after the timed runs (thermal zone x86_pkg_temp)",
    ]
    assert any(line.startswith("note          the governor powersave") for line in lines)
