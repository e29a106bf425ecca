"""Sessions without end: made, run and destroyed, alive together, and beside a second copy of the library.

    python tests/soak.py MODEL.onnx --sessions 10000 --alive 200

prints the resident memory at each tenth, and fails if the last half of them made it grow by more than GROWTH_BYTES, or
if a run gave another result than the first. MODEL.onnx takes inputs that `bnn_deploy` can make at random.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bnn_deploy.runtime.inputs import random_feed, read_inputs
from bnn_deploy.runtime.session import library_path, load_session

GROWTH_BYTES = 4 << 20
"""What the allocator and onnxruntime may take meanwhile: far below the memory of the sessions, had they stayed."""


def resident() -> int:
    """The bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def second_copy(model: Path, folder: Path) -> ort.InferenceSession:
    """A session with another copy of the library, loaded beside the first."""
    copy = folder / "another_copy.so"
    shutil.copy(library_path(), copy)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(copy))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(arguments: list[str] | None = None) -> int:
    """1 if memory grew, or a result differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--alive", type=int, default=200)
    args = parser.parse_args(arguments)
    feed = random_feed(read_inputs(load_session(args.model, 1)), 1)
    wanted = [np.asarray(array).tobytes() for array in load_session(args.model, 1).run(None, feed)]

    def differs(session: ort.InferenceSession) -> bool:
        return [np.asarray(array).tobytes() for array in session.run(None, feed)] != wanted

    wrong, sizes = 0, [resident()]
    for tenth in range(10):
        for i in range(args.sessions * tenth // 10, args.sessions * (tenth + 1) // 10):
            wrong += differs(load_session(args.model, 1 + i % 2))
        sizes.append(resident())
    print("MB at each tenth: " + " ".join(f"{size / 1e6:.1f}" for size in sizes))
    growth = sizes[-1] - sizes[5]
    print(f"{args.sessions:,} sessions made, run and destroyed: the last half grew by {growth / 1e6:.1f} MB")
    alive = [load_session(args.model, 1) for _ in range(args.alive)]
    wrong += sum(map(differs, alive))
    print(f"{args.alive} sessions alive: {(resident() - sizes[-1]) / 1e6 / max(args.alive, 1):.2f} MB each")
    with tempfile.TemporaryDirectory() as folder:
        other = second_copy(args.model, Path(folder))
        wrong += differs(other) + differs(alive[0]) if alive else differs(other)
        del other
    wrong += differs(load_session(args.model, 1))
    print(f"{wrong} runs gave another result")
    return int(wrong > 0 or growth > GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
