"""A board's description and signs of throttling: model, cores, clocks, temperature, throttling, under-voltage.

Everything is read from Linux's /proc and /sys, and on a Raspberry Pi from its firmware through `vcgencmd`. A value that
a machine (a container, a virtual machine, an x86 laptop) does not offer is None or empty, never an error.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bnn_deploy.system import kill_with_children

FLAGS = ("under-voltage", "CPU frequency capped", "CPU throttled", "soft temperature limit")
"""Bits 0 to 3 (now) and 16 to 19 (the past) of the Raspberry Pi firmware's `get_throttled`, lowest first."""

FULL_SPEED_GOVERNORS = frozenset({"performance", "ondemand", "schedutil"})
"""Governors that give a busy CPU its highest frequency: under them, a lower one is a sign of throttling."""

SLOW_BELOW = 0.9
"""The share of the full frequency below which a run counts as throttled."""

VCGENCMD_TIMEOUT_S = 1.0
"""Time limit of `vcgencmd`: it answers within about 10 ms, or hangs with the firmware."""

_ROOT = Path("/")

# Main ID register, implementer 0x41 (Arm): the part numbers of the boards' cores.
_ARM_PARTS = {
    0xB76: "ARM1176",
    0xC07: "Cortex-A7",
    0xC08: "Cortex-A8",
    0xC09: "Cortex-A9",
    0xC0E: "Cortex-A17",
    0xC0F: "Cortex-A15",
    0xD01: "Cortex-A32",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD0E: "Cortex-A76AE",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD49: "Neoverse-N2",
    0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
}


@dataclass(frozen=True)
class CoreType:
    """The CPUs of one kind.

    Attributes:
        name: "Cortex-A72", an x86 model name, or implementer and part number of an unlisted ARM core.
        cpus: number of them that Linux has online (with hyper-threading, two per core).
    """

    name: str
    cpus: int


@dataclass(frozen=True)
class Clock:
    """One cpufreq policy: the CPUs whose frequency is set together.

    Attributes:
        policy: its name in /sys/devices/system/cpu/cpufreq, "policy0".
        cpus: numbers of its CPUs.
        governor: the algorithm that sets the frequency: "ondemand", "performance", ...
        mhz: current frequency according to Linux; on a Raspberry Pi the requested frequency, not the actual one.
        max_mhz: the highest frequency of the hardware.
        limit_mhz: the highest frequency that is allowed now, by the user or by the kernel's thermal control.
        base_mhz: the frequency that the hardware sustains on all cores, if it has a higher turbo frequency.
    """

    policy: str
    cpus: tuple[int, ...]
    governor: str | None
    mhz: float | None
    max_mhz: float | None
    limit_mhz: float | None
    base_mhz: float | None


@dataclass(frozen=True)
class State:
    """The clocks, temperature and flags of a machine at one moment.

    Attributes:
        cpu: number of the CPU that the reading thread was on.
        clocks: the cpufreq policies.
        firmware_mhz: the CPU's frequency as a Raspberry Pi's firmware measures it: the true one.
        temperature_c: the CPU's temperature in degrees Celsius.
        sensor: the thermal zone of that temperature; the hottest zone if none is named after the CPU.
        flags: the FLAGS that are set now, or were within the last two seconds; None if the board does not report them.
        past_flags: the FLAGS that were set since the board was started; None if the board does not report them.
        throttle_count: x86: number of thermal throttlings of cores and packages since the start, summed over the CPUs.
    """

    cpu: int | None
    clocks: tuple[Clock, ...]
    firmware_mhz: float | None
    temperature_c: float | None
    sensor: str | None
    flags: tuple[str, ...] | None
    past_flags: tuple[str, ...] | None
    throttle_count: int | None

    @property
    def clock(self) -> Clock | None:
        """The policy of the CPU that the reading thread was on; None if there are several and the CPU is unknown."""
        if len(self.clocks) == 1:
            return self.clocks[0]
        return next((clock for clock in self.clocks if self.cpu in clock.cpus), None)


@dataclass(frozen=True)
class Board:
    """The machine that a model was measured on, and its state around the timed runs.

    Attributes:
        model: the board's name from its device tree, "Raspberry Pi 4 Model B Rev 1.4"; None on a PC.
        cores: the kinds of CPUs.
        memory_bytes: memory that Linux can use.
        os: name and version of the distribution.
        before: state right before the untimed runs.
        after: state right after the last timed run.
    """

    model: str | None
    cores: tuple[CoreType, ...]
    memory_bytes: int | None
    os: str | None
    before: State
    after: State

    @property
    def throttled(self) -> tuple[str, ...]:
        """Signs that the timed runs were throttled, one sentence each; empty if there are none."""
        before, after = self.before, self.after
        # A past flag that is set after the runs and was not before was raised during them.
        new = set() if before.past_flags is None else set(after.past_flags or ()) - set(before.past_flags)
        moments = {"before": before.flags or (), "during": new, "after": after.flags or ()}
        reasons = []
        for flag in FLAGS:
            when = [moment for moment, flags in moments.items() if flag in flags]
            if when:
                reasons.append(f"{flag} {' and '.join(when)} the timed runs")
        if before.throttle_count is not None and (after.throttle_count or 0) > before.throttle_count:
            count = (after.throttle_count or 0) - before.throttle_count
            reasons.append(f"the CPU's counter of thermal throttling rose by {count} during the timed runs")
        slow = _slow_clock(after)
        return (*reasons, slow) if slow else tuple(reasons)

    @property
    def notes(self) -> tuple[str, ...]:
        """Further remarks on the machine's speed, one sentence each."""
        notes = []
        if self.before.past_flags:
            notes.append(f"since the start of the board, before these runs: {', '.join(self.before.past_flags)}")
        if any(clock.governor == "powersave" for clock in self.after.clocks):
            notes.append(
                "the governor powersave prefers low frequencies; to measure at full speed: "
                "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
            )
        if (self.model or "").startswith("Raspberry Pi") and self.after.past_flags is None:
            notes.append(
                "vcgencmd gave no answer, so throttling may go unseen: it needs the group video, "
                "sudo usermod -aG video $USER, and a new login"
            )
        return tuple(notes)


def read_board(before: State, after: State, root: Path = _ROOT) -> Board:
    """Describe the machine.

    Args:
        before: its state before the timed runs, from `read_state`.
        after: its state after them.
        root: folder that holds proc, sys and etc; another one than / in tests.
    """
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", _text(root / "proc/meminfo") or "", re.MULTILINE)
    release = _text(root / "etc/os-release") or _text(root / "usr/lib/os-release") or ""
    system = re.search(r"^PRETTY_NAME=(?P<quote>[\"']?)(.+)(?P=quote)$", release, re.MULTILINE)
    return Board(
        model=_text(root / "proc/device-tree/model"),
        cores=_cores(_text(root / "proc/cpuinfo") or ""),
        memory_bytes=None if memory is None else int(memory[1]) * 1024,
        os=None if system is None else system[2],
        before=before,
        after=after,
    )


def read_state(root: Path = _ROOT) -> State:
    """Read clocks, temperature and flags; clocks first, because they fall fastest after a run.

    Args:
        root: folder that holds proc and sys; another one than / in tests.
    """
    cpu = _current_cpu(root)
    clocks = _clocks(root)
    temperature_c, sensor = _temperature(root)
    counts = [
        _number(path)
        for name in ("core_throttle_count", "package_throttle_count")
        for path in root.glob(f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{name}")
    ]
    known = [count for count in counts if count is not None]
    firmware_mhz, bits = _firmware()
    flags, past_flags = _flags(root, bits)
    return State(
        cpu=cpu,
        clocks=clocks,
        firmware_mhz=firmware_mhz,
        temperature_c=temperature_c,
        sensor=sensor,
        flags=flags,
        past_flags=past_flags,
        throttle_count=sum(known) if known else None,
    )


def _slow_clock(state: State) -> str | None:
    """A sentence if the CPU's frequency right after the runs shows throttling, else None."""
    clock = state.clock
    if clock is None or clock.governor not in FULL_SPEED_GOVERNORS or clock.mhz is None:
        return None
    mhz = clock.mhz
    if clock.governor == "performance" and state.firmware_mhz is not None:
        # The firmware's number is the true one, but it is read later: other governors may have lowered the frequency
        # by then.
        mhz = min(mhz, state.firmware_mhz)
    # The maximum may be a turbo frequency, above the sustained base frequency: losing it is normal.
    full, name = (clock.base_mhz, "base frequency") if clock.base_mhz else (clock.max_mhz, "maximum")
    if full is None or mhz >= SLOW_BELOW * full:
        return None
    return (
        f"the CPU was at {mhz:.0f} MHz at the end of the timed runs, {1 - mhz / full:.0%} below its {name} "
        f"of {full:.0f} MHz (governor {clock.governor})"
    )


def _text(path: Path) -> str | None:
    """A file's text, without the NUL that ends a device tree's strings; None if it is empty or cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\r\n") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """A file's one decimal number; None if it holds something else or cannot be read."""
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _mhz(path: Path) -> float | None:
    """A sysfs frequency (kHz) in MHz; None for 0, which some drivers give for an unknown frequency."""
    khz = _number(path)
    return khz / 1000 if khz is not None and khz > 0 else None


def _by_number(path: Path) -> int:
    """Sort key: cpu10 comes after cpu9."""
    return int(re.sub(r"\D", "", path.name))


def _cores(cpuinfo: str) -> tuple[CoreType, ...]:
    """The kinds of CPUs in /proc/cpuinfo, which has one paragraph per CPU; in the order of the file."""
    names: Counter[str] = Counter()
    for paragraph in cpuinfo.split("\n\n"):
        lines = (line.partition(":") for line in paragraph.splitlines())
        entries = {key.strip(): value.strip() for key, _, value in lines}
        part = re.fullmatch(r"0x[0-9a-fA-F]+", entries.get("CPU part", ""))
        implementer = entries.get("CPU implementer", "?")
        if "processor" not in entries:
            continue  # the paragraph about the board at the end
        if part and implementer == "0x41" and int(part[0], 16) in _ARM_PARTS:
            names[_ARM_PARTS[int(part[0], 16)]] += 1
        elif part:
            names[f"ARM implementer {implementer}, part {part[0]}"] += 1
        elif "model name" in entries:
            names[entries["model name"]] += 1
    return tuple(CoreType(name, count) for name, count in names.items())


def _current_cpu(root: Path) -> int | None:
    """The CPU that this thread last ran on: field 39 of stat, whose second field may hold spaces and parentheses."""
    fields = (_text(root / "proc/thread-self/stat") or "").rpartition(")")[2].split()
    return int(fields[36]) if len(fields) > 36 and fields[36].isdecimal() else None


def _clocks(root: Path) -> tuple[Clock, ...]:
    cpu_folder = root / "sys/devices/system/cpu"
    result = []
    for policy in sorted(cpu_folder.glob("cpufreq/policy[0-9]*"), key=_by_number):
        cpus = tuple(int(cpu) for cpu in (_text(policy / "affected_cpus") or "").split() if cpu.isdecimal())
        # base_frequency is Intel's, in kHz; nominal_freq is ACPI's (AMD), in MHz.
        nominal = _number(cpu_folder / f"cpu{_by_number(policy)}/acpi_cppc/nominal_freq")
        result.append(
            Clock(
                policy=policy.name,
                cpus=cpus,
                governor=_text(policy / "scaling_governor"),
                # The hardware's own frequency where it is readable, else the frequency that Linux last requested.
                mhz=_mhz(policy / "cpuinfo_cur_freq") or _mhz(policy / "scaling_cur_freq"),
                max_mhz=_mhz(policy / "cpuinfo_max_freq"),
                limit_mhz=_mhz(policy / "scaling_max_freq"),
                base_mhz=_mhz(policy / "base_frequency") or (float(nominal) if nominal and nominal > 0 else None),
            )
        )
    return tuple(result)


def _temperature(root: Path) -> tuple[float | None, str | None]:
    """Temperature (degrees Celsius) and type of the hottest thermal zone named after the CPU, or else of all zones."""
    zones = []
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone[0-9]*"), key=_by_number):
        name, millidegrees = _text(zone / "type"), _number(zone / "temp")
        # A sensor that is switched off reads 0, absolute zero or the like.
        if name and millidegrees is not None and 0 < millidegrees < 150_000:
            zones.append((millidegrees / 1000, name))
    of_cpu = [zone for zone in zones if re.search("cpu|x86_pkg", zone[1], re.IGNORECASE)]
    return max(of_cpu or zones, key=lambda zone: zone[0], default=(None, None))


def _firmware() -> tuple[float | None, int | None]:
    """A Raspberry Pi's CPU frequency in MHz as its firmware measures it, and the bits of `get_throttled`."""
    clock = _vcgencmd("measure_clock", "arm")
    if clock is None:
        return None, None  # missing, or it hangs: do not wait for it twice
    hertz = re.fullmatch(r"frequency\(\d+\)=(\d+)", clock)
    bits = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", _vcgencmd("get_throttled") or "")
    mhz = int(hertz[1]) / 1e6 if hertz else 0.0
    return mhz or None, None if bits is None else int(bits[1], 16)


def _vcgencmd(*arguments: str) -> str | None:
    """The output of the Raspberry Pi's `vcgencmd`; None if it is missing or does not end in time."""
    try:
        process = subprocess.Popen(
            ["vcgencmd", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that its children can be ended with it
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=VCGENCMD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            kill_with_children(process)
            if process.stdout is not None:
                process.stdout.close()
            # Wait with a limit: a process that hangs in the kernel cannot be killed.
            with suppress(subprocess.TimeoutExpired):
                process.wait(VCGENCMD_TIMEOUT_S)
    return output.decode(errors="replace").strip()


def _flags(root: Path, bits: int | None) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The current and the past flags: the firmware's bits or the kernel's copy of them, and its under-voltage alarm."""
    now, past = (None, None) if bits is None else (_named(bits), _named(bits >> 16))
    if bits is None:
        # The kernel polls every two seconds and clears the firmware's bits 16 to 19 for itself, so in its copy
        # (hexadecimal, without 0x) they cover the last two seconds. Reading it makes some kernels log a warning.
        for path in sorted(root.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled")):
            copy = re.fullmatch(r"(0x)?([0-9a-fA-F]+)", _text(path) or "")
            if copy is not None:
                now = _named(int(copy[2], 16) | int(copy[2], 16) >> 16)
    for name in sorted(root.glob("sys/class/hwmon/hwmon[0-9]*/name")):
        alarm = _number(name.with_name("in0_lcrit_alarm")) if _text(name) == "rpi_volt" else None
        if alarm in (0, 1):
            low = FLAGS[:1] if alarm else ()
            now = tuple(flag for flag in FLAGS if flag in (*(now or ()), *low))
    return now, past


def _named(bits: int) -> tuple[str, ...]:
    """The flags of the lowest four bits: 0b101 -> under-voltage, CPU throttled."""
    return tuple(flag for i, flag in enumerate(FLAGS) if bits >> i & 1)


def cpu_name() -> str:
    """The CPU's model name as Linux gives it (on ARM boards: the board's), or else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return entries.get("model name") or entries.get("Model") or platform.processor() or platform.machine()
