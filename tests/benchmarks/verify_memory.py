"""The peak memory and the CPU time of `verify`, by the number of images.

    python tests/benchmarks/verify_memory.py MODEL.onnx SOURCE --size 227 500 1000

Each number of images is a process of its own, `bnn-deploy verify`, on a folder of so many PNG files of the model's
input size: a few with random pixels, under many names, so that making them takes no time. `--data PATH` takes the
first of other data instead. Other options are those of `verify`: --arch, --mean, --std.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DIFFERENT = 50
"""Images with pixels of their own."""


@dataclass(frozen=True)
class Run:
    """What one process needed.

    Attributes:
        peak: its largest resident size, in bytes.
        cpu: the CPU time of all its threads, in seconds.
        wall: the time that it took, in seconds.
        passed: whether the model passed.
    """

    peak: int
    cpu: float
    wall: float
    passed: bool


def image_folder(folder: Path, count: int, size: int) -> None:
    """Fill a folder with images under two classes."""
    rng = np.random.default_rng(0)
    originals = []
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:06}.png"
        if i < DIFFERENT:
            # Smooth, as photographs are: noise would be compressed and decompressed at another speed.
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)
            originals.append(path)
        else:
            os.link(originals[i % DIFFERENT], path)


def measure(model: Path, against: Path, data: Path, count: int, more: list[str]) -> Run:
    """Run `bnn-deploy verify` on so many images in a process of its own."""
    command = ["verify", model, "--against", against, "--data", data, "--samples", count, *more, "--json"]
    begin = time.monotonic()
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            "from bnn_deploy.cli import main\nmain(prog_name='bnn-deploy')",
            *map(str, command),
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) > 1:
        raise SystemExit(1)  # it has said why
    result = json.loads(output)
    if result["samples"] != count:
        raise SystemExit(f"{data} has {result['samples']} images, not {count}")
    return Run(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime, time.monotonic() - begin, result["passed"])


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("against", type=Path)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--data", type=Path)
    args, more = parser.parse_known_args(arguments)
    more += [] if args.data else ["--mean", "0.5", "--std", "0.25"]
    print(f"{'images':>8}  {'peak MB':>8}  {'CPU s':>8}  {'wall s':>8}  verdict")
    for count in args.counts:
        with tempfile.TemporaryDirectory() as temporary:
            data = args.data or Path(temporary)
            if args.data is None:
                image_folder(data, count, args.size)
            run = measure(args.model, args.against, data, count, more)
        verdict = "PASSED" if run.passed else "FAILED"
        print(f"{count:>8,}  {run.peak / 1e6:>8,.0f}  {run.cpu:>8.1f}  {run.wall:>8.1f}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
