"""`bnn-deploy profile`: measure a model, and compare it with another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from rich.text import Text

from bnn_deploy.cli.console import (
    TIMES,
    explain,
    facts,
    human_bytes,
    plural,
    print_json,
    printable,
    progress,
    shape_text,
    show,
    table,
)
from bnn_deploy.cli.options import example
from bnn_deploy.cli.tables import Table
from bnn_deploy.runtime.machine import Board, Clock
from bnn_deploy.runtime.profile_results import ModelProfile, ProfileReport
from bnn_deploy.runtime.profiling import profile

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    name="profile",
    epilog=example("bnn-deploy profile lenet5.onnx --compare lenet5_float.onnx", in_demo=True),
)
@click.argument("model", type=_FILE, metavar="MODEL.onnx")
@click.option("--compare", type=_FILE, metavar="FLOAT.onnx", help="Model to run in turns with it, without our kernels.")
@click.option("--threads", type=click.IntRange(1), default=1, help="Intra-op threads of each model.")
@click.option("--runs", type=click.IntRange(1), default=50, help="Timed runs of each model.")
@click.option("--batch", type=click.IntRange(1), default=1, help="Samples per run, where the model leaves it open.")
@click.option("--data", type=_FILE, metavar="FILE", help=".npy or .npz with the inputs; random ones if left out.")
@click.option("--isa", metavar="NAME", help="Force an instruction set, like BNN_DEPLOY_ISA.")
@click.option("--nodes", type=click.IntRange(0), default=15, help="Rows of the per-node table, most expensive first.")
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(
    model: Path,
    compare: Path | None,
    threads: int,
    runs: int,
    batch: int,
    data: Path | None,
    isa: str | None,
    nodes: int,
    as_json: bool,
) -> None:
    """Measure MODEL.onnx with the C++ kernels: time, memory, size, and the time of each node.

    With --compare, both models run in this process in turns, on the same input, with the same number of threads.
    """
    with progress(measuring=True) as step:
        report = profile(model, compare, threads=threads, runs=runs, batch=batch, data=data, isa=isa, progress=step)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report, nodes)


def print_report(report: ProfileReport, nodes: int = 15) -> None:
    """Print a profile as tables on stdout; `nodes` is the number of rows of the per-node tables."""
    machine = report.machine
    shapes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in report.input_shapes.items())
    threads = plural(report.threads, "thread")
    source = "random" if report.data is None else f"from {report.data}"
    turns = ", the two models in turns" if report.compare else ""
    for reason in report.throttled:
        show(Text(f"THROTTLED: {printable(reason)}", style="bold red"), result=True)
    show(
        facts(
            [
                ("machine", f"{machine.cpu}, {plural(machine.cpus, 'CPU')} usable, onnxruntime {machine.onnxruntime}"),
                *_board_facts(report.board, machine.cpu),
                ("ISA that ran", _isa(report)),
                ("input", f"{shapes} ({source})"),
                ("runs", f"{report.runs} timed after {report.warmup_runs} untimed, {threads}{turns}"),
                *(("note", note) for note in report.board.notes),
            ]
        )
    )
    show("")
    show(_summary(report), result=True)
    show("")
    pairs = "; the ratio's p10 to p90 is over pairs of neighbouring runs" if report.compare else ""
    explain(f"Time: whole runs, called from Python{pairs}.")
    explain("Memory: peak resident size of a process that only loads and runs the one model.")
    explain(
        "Nodes: as onnxruntime runs them after its optimisations; median of each kernel in its profiler, which counts "
        "whole microseconds and itself slows small nodes down."
    )
    for item in (report.model, report.compare):
        if item is not None:
            if nodes:
                show("")
                show(_node_table(item, nodes))
            show("")
            show(_op_table(item))


def _summary(report: ProfileReport) -> Table:
    """One column per model, one row per quantity."""
    columns = [(report.model, "C++ kernels")]
    if report.compare is not None:
        columns.append((report.compare, "onnxruntime alone"))
    headers = [f"{printable(Path(item.path).name)}\n{how}" for item, how in columns]
    numbers = [*headers, *(["ratio"] if report.speedup else [])]
    result = table(None, ["", *numbers], numbers)

    def add(name: str, cell: Callable[[ModelProfile], str], ratio: str = "") -> None:
        result.add_row(name, *[cell(item) for item, _ in columns], *([ratio] if report.speedup else []))

    speed, size, spread = "", "", ""
    if report.compare is not None and report.speedup is not None:
        speed = _factor(report.speedup.median, "faster", "slower")
        spread = f"{report.speedup.p10:.2f} to {report.speedup.p90:.2f}{TIMES}"
        size = _factor(report.compare.file_bytes / report.model.file_bytes, "smaller", "larger")
    throttled = " THROTTLED" if report.throttled else ""
    add("median", lambda item: f"{item.timing.median_ms:.3f} ms{throttled}", speed)
    add("p10 to p90", lambda item: f"{item.timing.p10_ms:.3f} to {item.timing.p90_ms:.3f} ms", spread)
    add("samples per second", lambda item: f"{item.timing.samples_per_second:,.0f}")
    add("file", lambda item: human_bytes(item.file_bytes), size)
    add("peak memory", lambda item: human_bytes(item.memory.peak_bytes))
    add("  before loading", lambda item: human_bytes(item.memory.baseline_bytes))
    add("  added by the model", lambda item: human_bytes(item.memory.model_bytes))
    return result


def _board_facts(board: Board, cpu: str) -> list[tuple[str, str]]:
    """The known facts about the machine and its state around the timed runs, as rows of the first table."""
    rows = []
    cores = ", ".join(f"{kind.cpus} {TIMES} {kind.name}" for kind in board.cores)
    if board.model is not None:
        rows.append(("board", board.model))
    if cores and {kind.name for kind in board.cores} != {cpu}:
        rows.append(("cores", cores))
    memory = None if board.memory_bytes is None else f"{human_bytes(board.memory_bytes)} of memory"
    rows.append(("system", ", ".join(text for text in (board.os, memory) if text)))
    if board.after.clock is not None:
        rows.append(("clock", _clock(board, board.after.clock)))
    before, after = board.before, board.after
    if before.temperature_c is not None and after.temperature_c is not None:
        degrees = f"{before.temperature_c:.1f} °C before, {after.temperature_c:.1f} °C after the timed runs"
        rows.append(("temperature", f"{degrees} (thermal zone {after.sensor})"))
    if after.flags == () and not board.throttled:
        rows.append(("throttling", "none: no flag of the board was set around the timed runs"))
    return [(name, text) for name, text in rows if text]


def _clock(board: Board, clock: Clock) -> str:
    """The frequencies of the CPUs that the timed runs were on."""
    earlier = next((item.mhz for item in board.before.clocks if item.policy == clock.policy), None)
    maximum = None if clock.max_mhz is None else f"maximum {clock.max_mhz:.0f} MHz"
    if clock.limit_mhz is not None and clock.max_mhz is not None and clock.limit_mhz < clock.max_mhz:
        maximum = f"limited to {clock.limit_mhz:.0f} MHz of at most {clock.max_mhz:.0f} MHz"
    parts = [
        None if earlier is None else f"{earlier:.0f} MHz before",
        None if clock.mhz is None else f"{clock.mhz:.0f} MHz after the timed runs",
        None if board.after.firmware_mhz is None else f"{board.after.firmware_mhz:.0f} MHz by the firmware's measure",
        maximum,
        None if clock.governor is None else f"governor {clock.governor}",
    ]
    return ", ".join(part for part in parts if part)


def _factor(ratio: float, above: str, below: str) -> str:
    """A ratio in words: 2.00 times faster, or for 0.5 2.00 times slower."""
    return f"{ratio:.2f}{TIMES} {above}" if ratio >= 1 else f"{1 / ratio:.2f}{TIMES} {below}"


def _node_table(item: ModelProfile, rows: int) -> Table:
    shown = sorted(item.nodes, key=lambda node: -node.median_ms)[:rows]
    which = f"the {len(shown)} slowest of {len(item.nodes)}" if len(shown) < len(item.nodes) else f"all {len(shown)}"
    columns = ["node", "operator", "output", "ms", "share"]
    title = f"Nodes of {Path(item.path).name}: {which}"
    result = table(title, columns, {"ms", "share"}, {"operator", "output"}, optional=["output"])
    for node in shown:
        result.add_row(
            printable(node.name),
            printable(node.op_type),
            ", ".join(shape_text(shape) for shape in node.output_shapes),
            f"{node.median_ms:.3f}",
            f"{node.share:.1%}",
        )
    return result


def _op_table(item: ModelProfile) -> Table:
    total = sum(op.median_ms for op in item.ops)
    result = table(
        f"Operators of {Path(item.path).name}", ["operator", "nodes", "ms", "share"], {"nodes", "ms", "share"}
    )
    for op in item.ops:
        result.add_row(printable(op.op_type), str(op.nodes), f"{op.median_ms:.3f}", f"{op.share:.1%}")
    result.add_section()
    result.add_row("all", str(len(item.nodes)), f"{total:.3f}", "")
    return result


def _isa(report: ProfileReport) -> str:
    if report.isa is None:
        return "none (the model called no binary kernel)"
    calls = ", ".join(f"{count:,}" for count in report.isa_calls.values())
    return f"{report.isa} ({calls} kernel calls counted)"
