"""A network of a user's own: FILE.py and a checkpoint, small enough to convert and verify in a moment."""

from __future__ import annotations

from pathlib import Path

import torch

NET = """
from pathlib import Path
import torch
from torch import nn

with Path(__file__).with_name("ran").open("a") as file:
    file.write("imported\\n")

class Net(nn.Module):
    input_shape = (3, 8, 8)

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 10, 8)

    def forward(self, x):
        return self.second(torch.sign(self.first(x))).flatten(1)
"""
"""Its file notes in a file `ran` beside it each time that it runs."""


def write_network(folder: Path, width: int = 8) -> tuple[Path, str]:
    """Write net.py and net.pth into a folder.

    Returns:
        The checkpoint, and the architecture as `convert` takes it.
    """
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NET)
    torch.manual_seed(0)
    shapes = {"first": (width, 3, 3, 3), "second": (10, width, 8, 8)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    state["second.weight"] = state["second.weight"].sign()
    torch.save(state, folder / "net.pth")
    return folder / "net.pth", f"{folder / 'net.py'}:Net"


def times_run(folder: Path) -> int:
    """How often net.py in a folder has run."""
    trace = folder / "ran"
    return len(trace.read_text().splitlines()) if trace.exists() else 0
