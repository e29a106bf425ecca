"""Was the machine throttled during the run?"""

from __future__ import annotations

import pytest

from bnn_deploy.runtime.machine import FLAGS, State
from support.machines import CAPPED, SOFT_LIMIT, THROTTLED, UNDER_VOLTAGE, clock, measured, state


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
