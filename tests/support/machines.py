"""Files under proc, sys and etc of real machines, and the states that are read from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bnn_deploy.runtime.machine import FLAGS, Board, Clock, State

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
    """proc/thread-self/stat of a thread whose name, "a) thread (1", is hard to parse; field 39 is the CPU."""
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
# PI5: Raspberry Pi OS, flags by vcgencmd and rpi_volt only. PI5_SYSFS: a kernel with the firmware's flags.
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


def vcgencmd(folder: Path, throttled: str, hertz: int = 1_500_345_728) -> None:
    """Write a stand-in for the Raspberry Pi's vcgencmd; `throttled` is its output for get_throttled."""
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
