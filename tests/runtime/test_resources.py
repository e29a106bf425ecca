"""Sessions do not cost more with time, and processes may fork and spawn around them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.small_models import save_binary

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_binary(tmp_path_factory.mktemp("resources") / "m.onnx")


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=TESTS)


SOAK = "import sys, soak; sys.exit(soak.main([sys.argv[1], '--sessions', '120', '--alive', '40']))"

# The same, but someone keeps the sessions.
LEAK = (
    "import soak\nkept, load = [], soak.load_session\n"
    "def leaky(*args):\n    kept.append(load(*args))\n    return kept[-1]\nsoak.load_session = leaky\n"
)


def test_memory_does_not_grow(model: Path) -> None:
    done = python(SOAK, model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 sessions alive" in done.stdout and "0 runs gave another result" in done.stdout
    leaking = python(LEAK + SOAK, model)
    assert leaking.returncode == 1 and "0 runs gave another result" in leaking.stdout, leaking.stdout + leaking.stderr


PROCESSES = """
import multiprocessing, os, sys
import numpy as np

def run(path):
    from bnn_deploy import load_session
    return load_session(path, 1).run(None, {"x": np.ones((1, 1, 28, 28), np.float32)})[0].tobytes()

def child(task):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, task())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read()

if __name__ == "__main__":
    path = sys.argv[1]
    before = child(lambda: run(path))
    own = run(path)
    from bnn_deploy import load_session
    session = load_session(path, 1)
    feed = {"x": np.ones((1, 1, 28, 28), np.float32)}
    session.run(None, feed)
    after = child(lambda: session.run(None, feed)[0].tobytes())
    again = child(lambda: run(path))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        spawned = pool.map(run, [path] * 2)
    print([before == own, after == own, again == own, spawned == [own] * 2])
"""


def test_fork_before_and_after_load_and_spawn(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    done = subprocess.run([sys.executable, script, model], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str([True] * 4), done.stdout + done.stderr
