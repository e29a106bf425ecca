"""What `bnn-deploy profile` says of the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bnn_deploy import cli
from bnn_deploy.runtime import profiling
from bnn_deploy.runtime.machine import read_board, read_state
from support.machines import (
    LAPTOP,
    LAPTOP_CPU,
    PI4,
    PI5,
    THROTTLED,
    UNDER_VOLTAGE,
    Plant,
    policy,
    script,
    state,
    vcgencmd,
)
from support.small_models import save_binary, save_float


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
    assert result.exit_code == 0
    *reasons, advice = result.stderr.splitlines()
    assert reasons == [
        "THROTTLED: under-voltage during and after the timed runs",
        "THROTTLED: CPU throttled during and after the timed runs",
    ]
    assert advice.startswith("THROTTLED: give the board a better power supply or cooling")
    lines = result.stdout.splitlines()
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
    result = run(save_binary(tmp_path / "binary.onnx"), "--json")
    assert result.stderr.count("THROTTLED: ") == 3
    report = json.loads(result.stdout)
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
    names = [line.split("  ")[0] for line in result.stdout.splitlines()[:5]]
    assert names == ["machine", "ISA that ran", "reached here", "input", "runs"]


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
    result = run(save_binary(tmp_path / "binary.onnx"), "--nodes", "0")
    said = "THROTTLED: the CPU was at 1000 MHz at the end of the timed runs, 44% below its maximum"
    assert result.stderr.startswith(said)
    lines = result.stdout.splitlines()
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
