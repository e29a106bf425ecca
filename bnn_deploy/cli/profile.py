"""`bnn-deploy profile`: measure a model, and compare it with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from bnn_deploy.cli.config import config_option
from bnn_deploy.cli.console import explain, facts, print_json, printable, progress, remark, show, table
from bnn_deploy.cli.options import DATA_PATH, example
from bnn_deploy.cli.page_file import html_option, make_record, note_result, require_page, write_page
from bnn_deploy.cli.tables import Table
from bnn_deploy.quantities import TIMES, human_bytes, human_count, milliseconds, plural, shape_text, tensor_text
from bnn_deploy.runtime.machine import Board, Clock
from bnn_deploy.runtime.profile_results import (
    COOL_ADVICE,
    FLOAT_LAYER,
    OTHER,
    QUIET_ADVICE,
    ModelProfile,
    NodeTime,
    ProfileReport,
    Speedup,
    Timing,
    grouped,
    speedup_if_free,
)
from bnn_deploy.runtime.profiling import profile

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_NAMED = 4
"""Most nodes that a line of advice names, without --verbose."""


def _numbers(context: click.Context, option: click.Parameter, text: str) -> list[int]:
    """The value of an option that takes 1,8,64."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{text!r} is neither a number of at least 1 nor several with commas between them.")
    return numbers


@click.command(
    name="profile",
    epilog=example("bnn-deploy profile lenet5.onnx --compare lenet5_float.onnx", in_demo=True),
)
@click.argument("model", type=_FILE, metavar="MODEL.onnx")
@click.option(
    "--compare",
    type=_FILE,
    multiple=True,
    metavar="FLOAT.onnx",
    help="Model to run in turns with it, without our kernels; may be given several times.",
)
@click.option("--threads", callback=_numbers, default="1", metavar="N,...", help="Intra-op threads of each model.")
@click.option("--runs", type=click.IntRange(1), default=50, help="Timed runs of each model in each setting.")
@click.option(
    "--batch", callback=_numbers, default="1", metavar="N,...", help="Samples per run, where the model leaves it open."
)
@click.option("--data", type=DATA_PATH, metavar="PATH", help="Inputs, as for verify; random ones if left out.")
@click.option("--isa", metavar="NAME", help="Force an instruction set, like BNN_DEPLOY_ISA.")
@click.option("--nodes", type=click.IntRange(0), default=5, help="Rows of the per-node table, most expensive first.")
@click.option("--verbose", is_flag=True, help="Show all nodes and operators of every model.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the runs of the nodes as a trace for Perfetto or chrome://tracing.",
)
@html_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(
    model: Path,
    compare: tuple[Path, ...],
    threads: list[int],
    runs: int,
    batch: list[int],
    data: Path | None,
    isa: str | None,
    nodes: int,
    verbose: bool,
    trace: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure MODEL.onnx with the C++ kernels: time, memory, size, and the time of each node.

    With --compare, all models run in this process in turns, on the same input, with the same number of threads.
    """
    require_page(html, {"model": model, **{f"model {path}": path for path in compare}, "file of inputs": data})
    with progress(measuring=True) as step:
        report = profile(
            model,
            compare,
            threads=threads,
            runs=runs,
            batch=batch,
            data=data,
            isa=isa,
            trace=trace,
            progress=step,
        )
    if as_json:
        print_json(report.to_json())
        print_warnings(report)
    else:
        print_report(report, nodes, verbose)
        if not verbose:
            show("--verbose shows all nodes and operators, and how they were measured.")
        if trace is not None:
            show(f"wrote {printable(str(trace))}, for Perfetto or chrome://tracing", result=True)
    note_result("profile", report.to_json())
    if html is not None:
        write_page(html, make_record(model, {"profile": report.to_json()}))
        remark(f"wrote {html}")


def print_warnings(report: ProfileReport) -> None:
    """Say on stderr why the times may not be those of the machine, and what to do."""
    for word, reasons, advice in (
        ("THROTTLED", report.throttled, COOL_ADVICE),
        ("NOISY", report.noisy, QUIET_ADVICE),
    ):
        for reason in reasons:
            click.echo(f"{word}: {printable(reason)}", err=True)
        if reasons:
            click.echo(f"{word}: {advice}", err=True)


def print_report(report: ProfileReport, nodes: int = 5, verbose: bool = False) -> None:
    """Print a profile as tables on stdout, and warnings on stderr.

    Args:
        report: the profile.
        nodes: rows of the table of nodes.
        verbose: whether to show all nodes and operators, of the compared models, too.
    """
    print_warnings(report)
    machine = report.machine
    shapes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in report.input_shapes.items())
    threads = plural(report.threads, "thread")
    source = "random" if report.data is None else f"from {report.data}"
    turns = f", {'the two' if len(report.compare) == 1 else 'all'} models in turns" if report.compare else ""
    several = len(report.models) * len(report.model.timings) > 1
    untimed = ", each behind an untimed one" if several else ""
    bound = report.bound
    show(
        facts(
            [
                ("machine", f"{machine.cpu}, {plural(machine.cpus, 'CPU')} usable, onnxruntime {machine.onnxruntime}"),
                *_board_facts(report.board, machine.cpu),
                ("ISA that ran", _isa(report)),
                (
                    "reached here",
                    f"{bound.binary_gmacs:,.0f} GMAC/s by the fastest binary layer measured ({bound.isa}), "
                    f"{bound.float_gmacs:,.0f} by a float one, {bound.memory_gbytes:.1f} GB/s of memory copied",
                ),
                ("input", f"{shapes} ({source})"),
                ("runs", f"{report.runs} timed after {report.warmup_runs} untimed{untimed}, {threads}{turns}"),
                *(("note", note) for note in report.board.notes),
            ]
        )
    )
    show("")
    show(_summary(report), result=True)
    show("")
    if len(report.model.timings) > 1:
        show(_settings(report), result=True)
        show("")
    for item in report.models if verbose else (report.model,):
        if nodes or verbose:
            show(_node_table(item, len(item.nodes) if verbose else nodes, verbose))
            show("")
        show(_kind_table(item))
        show("")
        for line in _advice(item, len(item.nodes) if verbose else _NAMED):
            show(line)
        if verbose:
            show("")
            show(_op_table(item))
            show("")
    if verbose:
        for text in _EXPLANATIONS:
            explain(text)


_EXPLANATIONS = (
    "Time: whole runs, called from Python; the ratio and its interval are over pairs of neighbouring runs.",
    "Cold start: a process of its own, once, with the file in the system's cache.",
    "Memory: peak resident size of that process, which only loads and runs the one model.",
    "Nodes: as onnxruntime runs them after its optimisations; median of each kernel in its profiler, which counts "
    "whole microseconds and itself slows small nodes down.",
    "GMAC/s: 10^9 multiply-accumulates per second, of bits in a binary layer; of bound: divided by those of the "
    "fastest layer of its kind measured here, which is no theoretical peak.",
    "GB/s: 10^9 bytes of inputs, constants and outputs per second; caches give more than the memory.",
)


def _summary(report: ProfileReport) -> Table:
    """One column per model, one row per quantity."""
    first = report.model
    headers = [
        f"{printable(Path(item.path).name)}\n{'C++ kernels' if item is first else 'onnxruntime alone'}"
        for item in report.models
    ]
    result = table(None, ["", *headers], headers)

    def add(name: str, cell: Callable[[ModelProfile], str]) -> None:
        result.add_row(name, *map(cell, report.models))

    def compared(cell: Callable[[Speedup], str]) -> Callable[[ModelProfile], str]:
        return lambda item: "" if item.timing.speedup is None else cell(item.timing.speedup)

    add("median", lambda item: f"{milliseconds(item.timing.median_ms)} ms{_marks(report, item.timing)}")
    add("p10 to p90", lambda item: f"{milliseconds(item.timing.p10_ms)} to {milliseconds(item.timing.p90_ms)} ms")
    if report.compare:
        name = printable(Path(first.path).name)
        add(f"{name} is", compared(lambda ratio: _factor(ratio.median, "faster", "slower")))
        add("  95 % interval", compared(_interval))
        add("  p10 to p90 of pairs", compared(lambda ratio: f"{ratio.p10:.2f} to {ratio.p90:.2f}{TIMES}"))
    add("samples per second", lambda item: f"{item.timing.samples_per_second:,.0f}")
    add("cold start: load", lambda item: f"{milliseconds(item.cold_start.load_ms)} ms")
    add("  first run", lambda item: f"{milliseconds(item.cold_start.first_run_ms)} ms")
    add("file", lambda item: human_bytes(item.file_bytes))
    if report.compare:
        sizes = {id(item): item.file_bytes / first.file_bytes for item in report.compare}
        add(f"{name} is", lambda item: "" if item is first else _factor(sizes[id(item)], "smaller", "larger"))
    add("peak memory", lambda item: human_bytes(item.memory.peak_bytes))
    add("  before loading", lambda item: human_bytes(item.memory.baseline_bytes))
    add("  added by the model", lambda item: human_bytes(item.memory.model_bytes))
    return result


def _interval(ratio: Speedup) -> str:
    if ratio.low is None or ratio.high is None:
        return "needs 6 runs"
    return f"{ratio.low:.2f} to {ratio.high:.2f}{TIMES}"


def _marks(report: ProfileReport, timing: Timing) -> str:
    return (" THROTTLED" if report.throttled else "") + (" NOISY" if timing.noisy else "")


def _settings(report: ProfileReport) -> Table:
    """One row per batch size and number of threads."""
    names = [printable(Path(item.path).name) for item in report.models]
    samples = "samples\nper second"
    columns = [f"{names[0]}\nms", samples]
    for name in names[1:]:
        columns += [f"{name}\nms", f"{TIMES} as long\n(95 % interval)"]
    result = table("Batches and threads: medians", ["setting", *columns], columns, optional=[samples])
    for i, timing in enumerate(report.model.timings):
        cells = [f"{milliseconds(timing.median_ms)}{_marks(report, timing)}", f"{timing.samples_per_second:,.0f}"]
        for item in report.compare:
            other = item.timings[i]
            cells.append(f"{milliseconds(other.median_ms)}{_marks(report, other)}")
            ratio = other.speedup
            assert ratio is not None
            known = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
            cells.append(f"{ratio.median:.2f}{known}")
        result.add_row(f"batch {timing.batch}, {plural(timing.threads, 'thread')}", *cells)
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


def _node_table(item: ModelProfile, rows: int, verbose: bool) -> Table:
    shown = sorted(item.nodes, key=lambda node: -node.median_ms)[:rows]
    which = f"the {len(shown)} slowest of {len(item.nodes)}" if len(shown) < len(item.nodes) else f"all {len(shown)}"
    numbers = ["ms", "share", *(["MACs", "GB/s"] if verbose else []), "GMAC/s", "of bound"]
    optional = ["GB/s", "output", "operator", "MACs"]
    title = f"Nodes of {Path(item.path).name}: {which}"
    columns = ["node", "operator", "output", *numbers]
    result = table(title, columns, numbers, {"operator", "output"}, optional=optional)
    for node in shown:
        outputs = zip(node.output_shapes, node.output_dtypes, node.output_bits, strict=True)
        result.add_row(
            printable(node.name),
            printable(node.op_type),
            printable(", ".join(tensor_text(*output) for output in outputs)),
            f"{node.median_ms:.3f}",
            f"{node.share:.1%}",
            *([human_count(node.macs) if node.macs else "", _bandwidth(node)] if verbose else []),
            f"{node.gmacs_per_second:,.1f}" if node.gmacs_per_second is not None else "",
            f"{node.bound_share:.0%}" if node.bound_share is not None else "",
        )
    return result


def _bandwidth(node: NodeTime) -> str:
    return f"{node.gbytes_per_second:.1f}" if node.gbytes_per_second is not None else ""


def _kind_table(item: ModelProfile) -> Table:
    """Where the time goes, and what could be won there at most."""
    numbers = ["number", "ms", "share", "if they were free"]
    total = sum(node.median_ms for node in item.nodes)
    title = f"Where the time of {Path(item.path).name}'s nodes goes: {total:.3f} ms"
    result = table(f"{title}, of {item.timing.median_ms:.3f} ms for a run", ["nodes", *numbers], numbers)
    for kind in item.kinds:
        gain = _gain(kind.speedup_if_free)
        result.add_row(f"{kind.name}s", str(kind.nodes), f"{kind.median_ms:.3f}", f"{kind.share:.1%}", gain)
    return result


def _gain(factor: float | None) -> str:
    return "" if factor is None else f"{factor:.2f}{TIMES} as fast"


def _advice(item: ModelProfile, most: int) -> list[str]:
    """What dominates, what is computed on floats, and what is half-filled; a line each, with at most so many nodes."""
    lines = []
    slowest = sorted(item.nodes, key=lambda node: -node.median_ms)
    dominant = item.dominant
    if dominant:
        share = sum(node.share for node in dominant)
        gain = _gain(speedup_if_free(share))
        lines.append(
            f"Half of the time or more: {_names(dominant, _share, most)}, together {share:.1%}"
            + (f"; without them {gain}." if gain else ".")
        )
    floats = [node for node in slowest if node.kind == FLOAT_LAYER]
    if floats:
        lines.append(f"Layers on floats: {_names(floats, _share, most)}.")
    others = grouped((node for node in item.nodes if node.kind == OTHER), lambda node: node.op_type)
    if others:
        listed = _few([f"{group.nodes} {printable(group.name)} ({group.share:.1%})" for group in others], most)
        lines.append(f"Not part of a layer: {listed}.")
    if item.half_filled:
        listed = _names(item.half_filled, lambda node: f"{node.channels} channels, {node.unused_bits:.1%} unused", most)
        lines.append(f"Words of 32 bits that the channels do not fill: {listed}.")
    return lines


def _share(node: NodeTime) -> str:
    return f"{node.share:.1%}"


def _names(nodes: Sequence[NodeTime], note: Callable[[NodeTime], str], most: int) -> str:
    """Nodes by name, each with a note."""
    return _few([f"{printable(node.name)} ({note(node)})" for node in nodes], most)


def _few(texts: Sequence[str], most: int) -> str:
    """The first of many, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _op_table(item: ModelProfile) -> Table:
    total = sum(op.median_ms for op in item.ops)
    result = table(
        f"Operators of {Path(item.path).name}", ["operator", "nodes", "ms", "share"], {"nodes", "ms", "share"}
    )
    for op in item.ops:
        result.add_row(printable(op.name), str(op.nodes), f"{op.median_ms:.3f}", f"{op.share:.1%}")
    result.add_section()
    result.add_row("all", str(len(item.nodes)), f"{total:.3f}", "")
    return result


def _isa(report: ProfileReport) -> str:
    if report.isa is None:
        return "none (the model called no binary kernel)"
    calls = ", ".join(f"{count:,}" for count in report.isa_calls.values())
    return f"{report.isa} ({calls} kernel calls counted)"
