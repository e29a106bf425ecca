"""Speed of layers and networks against peers: onnxruntime (float and int8), OpenVINO and Larq Compute Engine.

    python tests/benchmarks/compare.py --peers PEERS/bin/python --write docs/benchmarks.md --readme README.md
    python tests/benchmarks/compare.py --layers 64@56 --networks nin --batch 1 8 --threads 2 --json record.json
    python tests/benchmarks/compare.py --record record.json --summary

Every engine's values are checked against the float model in onnxruntime before it is timed. Engines run in worker
processes (peers/worker.py), because their numpy versions exclude each other, and take turns, round by round, so that a
change of the machine's clock meets them all alike. OpenVINO and Larq are looked for in the Python that --peers names,
and left out where they are not installed. Of networks, it also measures the cold start, peak memory and further numbers
of threads, and lets `verify` prove them. The work is in comparison/; the page, its picture and the README's table are
made of the record alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from comparison.measuring import BATCH_ROUNDS, COLD_STARTS, cold_starts, measure, measure_threads, prove
from comparison.page import PAGES, page, with_summary
from comparison.tables import report, summary
from comparison.workers import Workers
from comparison.workloads import LAYERS, TITLES, Workload, layer_workload, network_workload

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS.parent))  # for support

Record = dict[str, Any]
"""All that a run found, as --json writes it."""


def machine() -> dict[str, Any]:
    """CPU, number of CPUs, system."""
    from bnn_deploy.runtime.machine import cpu_name

    cpuinfo = Path("/proc/cpuinfo").read_text()
    family = re.search(r"^cpu family\s*: (\d+)$", cpuinfo, re.MULTILINE)
    model = re.search(r"^model\s*: (\d+)$", cpuinfo, re.MULTILINE)
    name = cpu_name() + (f" (family {family[1]}, model {model[1]})" if family and model else "")
    return {"cpu": name, "cpus": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.release()}"}


def commit() -> str:
    """The commit of this source tree, with "-dirty" where tracked files are changed; "unknown" without git."""
    command = ["git", "-C", str(BENCHMARKS), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def command_line(arguments: argparse.Namespace) -> str:
    """The command that measures the same; what it writes is up to the page."""
    words = ["python tests/benchmarks/compare.py --peers peers/bin/python"]
    if arguments.networks != list(TITLES) or arguments.layers != LAYERS:
        words += ["--layers", *arguments.layers, "--networks", *arguments.networks]
    words += ["--batch", *map(str, arguments.batch), "--threads", *map(str, arguments.threads)]
    words += ["--isa", *arguments.isa, "--rounds", str(arguments.rounds)]
    return " ".join(words)


def run(arguments: argparse.Namespace) -> Record:
    """Run the measurements of the arguments."""
    start, load_before = time.monotonic(), os.getloadavg()[0]
    record: Record = {"commit": commit(), "results": [], "thread_results": [], "cold_starts": [], "proofs": []}
    with closing(Workers(arguments.peers)) as workers:
        record["left_out"] = dict(workers.left_out)
        builders = [(name, layer_workload) for name in arguments.layers]
        builders += [(name, network_workload) for name in arguments.networks]
        for name, build in builders:
            with TemporaryDirectory() as temporary:
                folder = Path(temporary)
                say(start, f"{name}: building")
                measure_workload(build(name, folder), arguments, workers, folder, record, start)
    return record | {
        "date": datetime.date.today().isoformat(),
        "command": command_line(arguments),
        "minutes": (time.monotonic() - start) / 60,
        "machine": machine(),
        "versions": {"Python": platform.python_version(), **workers.versions},
        "isas": arguments.isa,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }


def measure_workload(
    workload: Workload, arguments: argparse.Namespace, workers: Workers, folder: Path, record: Record, start: float
) -> None:
    """All measurements of a layer or a network, into the record."""
    threads, isas = arguments.threads, arguments.isa

    def turns(batch: int) -> int:
        return arguments.rounds if batch == 1 else min(arguments.rounds, BATCH_ROUNDS)

    for batch in arguments.batch:
        say(start, f"{workload.title}: measuring, batch {batch}")
        measured, failed = measure(workload, batch, threads[0], isas, turns(batch), workers, folder)
        record["results"] += [asdict(result) for result in measured]
        record["left_out"] |= failed
    if workload.kind == "layer":
        return
    if len(threads) > 1:
        batch = min(arguments.batch)
        say(start, f"{workload.title}: measuring {' and '.join(map(str, threads))} threads, batch {batch}")
        measured, failed = measure_threads(workload, batch, threads, isas[0], turns(batch), workers, folder)
        record["thread_results"] += [asdict(result) for result in measured]
        record["left_out"] |= failed
    say(start, f"{workload.title}: cold starts")
    ran = {result["engine"]: None for result in record["results"] if result["workload"] == workload.title}
    starts = cold_starts(workload, list(ran), isas[0], min(arguments.rounds, COLD_STARTS), workers, folder)
    record["cold_starts"] += [asdict(found) for found in starts]
    say(start, f"{workload.title}: verify")
    record["proofs"].append(asdict(prove(workload, isas)))


def say(start: float, text: str) -> None:
    """Print a step and when it began, in minutes."""
    print(f"{(time.monotonic() - start) / 60:5.1f} min  {text}", file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    from bnn_deploy.runtime.session import library_info

    isas = library_info().isas
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", metavar="CHANNELS@SIZE", help=f"default: {' '.join(LAYERS)}")
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="architectures; default: all")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], choices=range(1, 65), metavar="N", help="up to 64")
    parser.add_argument(
        "--threads",
        nargs="+",
        type=int,
        default=[1],
        metavar="N",
        help="of every engine; further numbers: of bnn-deploy and onnxruntime fp32, on networks, smallest batch",
    )
    parser.add_argument(
        "--isa", nargs="+", choices=isas, default=[isas[0]], help="instruction sets that bnn-deploy is forced to (best)"
    )
    parser.add_argument("--rounds", type=int, default=50, help="turns of each engine (50)")
    parser.add_argument("--quick", action="store_true", help="3 rounds: to see that all of it works")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="a Python with OpenVINO and Larq")
    parser.add_argument("--record", type=Path, metavar="FILE", help="measure nothing: take what --json has written")
    parser.add_argument("--summary", action="store_true", help="print the summary alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"also write this page, one of {', '.join(PAGES)}, and its picture"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also replace the summary in this README.md")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds = 3
    if arguments.layers is None and arguments.networks is None:
        arguments.layers, arguments.networks = LAYERS, list(TITLES)
    elif arguments.networks == []:
        arguments.networks = list(TITLES)
    arguments.layers, arguments.networks = arguments.layers or [], arguments.networks or []
    if arguments.write and arguments.write.name not in PAGES:
        parser.error(f"--write {arguments.write}: the pages are {', '.join(PAGES)}")
    for name in arguments.layers:
        if not re.fullmatch(r"\d+@\d+", name):
            parser.error(f"--layers {name}: a layer is CHANNELS@SIZE, as 64@56")
    for name in arguments.networks:
        if name not in TITLES:
            parser.error(f"--networks {name}: choose of {', '.join(TITLES)}")
    return arguments


def main() -> None:
    arguments = parse(sys.argv[1:])
    record = json.loads(arguments.record.read_text()) if arguments.record else run(arguments)
    if arguments.json:  # first, as the long run is in it
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(summary(record) if arguments.summary else f"{summary(record)}\n\n{report(record)}".lstrip())
    if arguments.write:
        if any(result["kind"] == "network" for result in record["results"]):
            from comparison.picture import draw

            draw(record, arguments.write.with_suffix(".svg"))
        arguments.write.write_text(page(record, arguments.write.name))
    if arguments.readme:
        arguments.readme.write_text(with_summary(arguments.readme.read_text(), record))


if __name__ == "__main__":
    main()
