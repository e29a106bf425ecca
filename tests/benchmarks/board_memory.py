"""The memory that a board needs to load and run models, each in a process of its own.

    python tests/benchmarks/board_memory.py lenet5.onnx nin.onnx ...

Peaks of the resident memory in MB, as Linux counts them (VmHWM): of Python with onnxruntime and bnn-deploy alone, with
the model loaded, and after ten runs of one random sample on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

RUNS = 10


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def measure(model: str) -> list[int]:
    """The three peaks of a model, in bytes."""
    from bnn_deploy.runtime.inputs import random_feed, read_inputs
    from bnn_deploy.runtime.session import load_session

    peaks = [peak()]
    session = load_session(model, threads=1)
    peaks.append(peak())
    feed = random_feed(read_inputs(session), 1)
    for _ in range(RUNS):
        session.run(None, feed)
    return [*peaks, peak()]


def main() -> None:
    """Measure the models of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.models[0])))
        return
    # The first process compiles what it imports, which needs memory of its own.
    subprocess.run([sys.executable, "-c", "import bnn_deploy.runtime.inputs, bnn_deploy.runtime.session"], check=True)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print(f"{platform.machine()} with {total / 1e6:.0f} MB, one thread; peaks of resident memory in MB\n")
    print("| model | file | Python alone | loaded | after runs | added by the model |\n|---|---|---|---|---|---|")
    for model in args.models:
        command = [sys.executable, __file__, "--child", model]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode == -signal.SIGKILL:  # by Linux, which had no more
            cells = ["", "out of memory", "", ""]
        else:
            done.check_returncode()
            peaks = json.loads(done.stdout)
            cells = [f"{size / 1e6:.1f}" for size in (*peaks, peaks[2] - peaks[0])]
        print(f"| {Path(model).stem} | {Path(model).stat().st_size / 1e6:.1f} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
