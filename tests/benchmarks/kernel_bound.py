"""How near the convolution kernels come to what each instruction set allows.

Builds ``kernel_bound.cc`` (an optional CMake target, not part of the wheel) in a temporary folder,
or in ``--build``, and runs it: for each instruction set of the machine a register-only loop of its
own xor + population count + add, in turns with the convolution of four 3x3 layers on one thread,
bits in and float32 out.

    python tests/benchmarks/kernel_bound.py --rounds 500
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]


def run(build: Path, rounds: int) -> None:
    """Build the benchmark in ``build`` and run it; the benchmark's output goes to stdout, the build's to stderr."""
    configure = ["cmake", "-S", str(SOURCE), "-B", str(build), "-DBNN_DEPLOY_BENCHMARKS=ON"]
    subprocess.run(configure, check=True, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", str(build), "--target", "kernel_bound"], check=True, stdout=sys.stderr)
    subprocess.run([str(build / "kernel_bound"), str(rounds)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--build", type=Path, help="build folder to keep; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.build:
        run(arguments.build, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.rounds)


if __name__ == "__main__":
    main()
