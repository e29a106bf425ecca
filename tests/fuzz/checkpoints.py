"""Checkpoints of torch, and networks of Darknet, through `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.random import Generator

from fuzz.doors import EXPORTS, absurd, change_bytes, pick, run

NETWORK = "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
NUMBERS = (*("", "x", "nan", "1e400", "0x10", "3.7", "-0", "1,2,3", "9" * 400),)


def case(seed: int, folder: Path, shared: Path) -> None:
    """A checkpoint with other entries or bytes."""
    del shared
    rng = np.random.default_rng(seed)
    network = folder / "network.py"
    network.write_text(NETWORK)
    state: Any = {"1.weight": torch.ones(2, 4), "1.bias": torch.zeros(2)}
    odd = [
        *(1, None, "text", [], {}, torch.ones(0), torch.ones(2, 4).to_sparse(), torch.ones(2, dtype=torch.int8)),
        *(torch.ones(2, 4, device="meta"), torch.ones(2, 4, dtype=torch.complex64), torch.full((2, 4), torch.nan)),
        *(torch.ones(2, 4).bfloat16(), torch.ones(2, 4).double(), torch.ones(1).expand(2, 4), torch.ones(4, 2).T),
    ]
    if rng.random() < 0.5:
        state[pick(rng, ("1.weight", "1.bias", "more", "module.1.weight", 3))] = pick(rng, odd)
    path = folder / "state.pth"
    tensors = {str(key): value for key, value in state.items() if type(value) is torch.Tensor}
    if rng.random() < 0.25 and not any(value.is_sparse or value.is_meta for value in tensors.values()):
        path = folder / "state.safetensors"
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    else:
        whole = pick(rng, ({"state_dict": state}, state, {"a": state, "b": state}, [state], {"model": {"x": state}}))
        torch.save(whole, path, _use_new_zipfile_serialization=bool(rng.integers(0, 2)))
    if rng.random() < 0.7:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    arguments = ["convert", path, "--arch", f"{network}:make", "-o", folder / "out.onnx", "--input-shape", "1,4"]
    run(arguments, folder)


def darknet(seed: int, folder: Path, shared: Path) -> None:
    """A .cfg file with other lines, or a .weights file with other bytes."""
    del shared
    rng = np.random.default_rng(seed)
    name = pick(rng, ("classifier", "region", "yolo"))
    cfg, weights = folder / "net.cfg", folder / "net.weights"
    text, content = ((EXPORTS / f"darknet_{name}.{end}").read_bytes() for end in ("cfg", "weights"))
    kind = int(rng.integers(0, 4))
    cfg.write_bytes(change_bytes(rng, text) if kind == 0 else change_lines(rng, text) if kind <= 2 else text)
    weights.write_bytes(change_weights(rng, content) if kind >= 2 else content)
    run(["convert", cfg, "--darknet-weights", weights, "-o", folder / "out.onnx"], folder)


def change_lines(rng: Generator, content: bytes) -> bytes:
    """Other numbers, names and sections, lines that are gone or there twice."""
    lines = content.decode().splitlines()
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(lines)))
        key, equals, _ = lines[at].partition("=")
        match int(rng.integers(0, 5)):
            case 0 | 1 if equals:
                lines[at] = f"{key}={pick(rng, (*NUMBERS, absurd(rng)))}"
            case 2:
                del lines[at]
            case 3:
                lines.insert(at, pick(rng, lines))
            case _:
                section = pick(rng, ("route", "shortcut", "maxpool", "dropout", "crop", "lstm", "", "net", "["))
                lines.insert(at, f"[{section}]\n{pick(rng, ('layers', 'from', 'size'))}={absurd(rng)}")
        lines = lines or [""]
    return "\n".join(lines).encode()


def change_weights(rng: Generator, content: bytes) -> bytes:
    """Another version in the header, other bytes, or more or fewer of them."""
    match int(rng.integers(0, 3)):
        case 0:
            header = np.frombuffer(content[:12], np.int32).copy()
            header[int(rng.integers(0, 3))] = int(rng.integers(-(2**31), 2**31))
            return header.tobytes() + content[12:]
        case 1:
            return content[: int(rng.integers(0, len(content)))] if rng.random() < 0.5 else content + bytes(1000)
        case _:
            return change_bytes(rng, content)
