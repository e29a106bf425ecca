"""What the kinds of files have in common: commands that are run, and bytes and JSON that are changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from numpy.random import Generator

from bnn_deploy.cli import main
from bnn_deploy.errors import BnnDeployError
from fuzz.isolation import FoundError

EXPORTS = Path(__file__).parents[1] / "exports"
ABSURD = (-1, 0, 1, 2, 3, 64, 10**8, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))
ODD_JSON: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 1e308, float("nan"), float("inf"), [], {}, [[]], {"": None}),
    *("", "x", "../x", "/etc/passwd", "\0", "\ud800", "a\nb", "9" * 5000),
)


def run(arguments: list[Any], folder: Path) -> None:
    """Run a command: it succeeds, or ends with one line and leaves nothing."""
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exit_code in (0, 1):
        return
    lines = result.stderr.splitlines()
    what = f"{arguments[0]}: exit {result.exit_code}: {result.stderr[-300:]!r}"
    if result.exit_code not in (2, 3) or result.exception is None:
        raise FoundError(f"not an error of ours: {what}")
    if not lines or not lines[-1].startswith("error: ") or "internal error" in result.stderr:
        raise FoundError(f"no clear line: {what}")
    if sum(line.startswith("error: ") for line in lines) != 1 or "Traceback" in result.stderr:
        raise FoundError(f"more than a line: {what}")
    if sorted(folder.rglob("*")) != before:
        raise FoundError(f"left {sorted(set(folder.rglob('*')) - set(before))}: {what}")


def call(function: Any, *arguments: Any) -> Any:
    """Call a reader: it returns, or raises one of our errors, of one line; None for that."""
    try:
        return function(*arguments)
    except BnnDeployError as error:
        if "\n" in str(error) or not str(error):
            raise FoundError(f"{function.__name__}: not a line: {error!r:.300}") from error
        return None


def change_bytes(rng: Generator, content: bytes) -> bytes:
    """Flip, cut, repeat, overwrite or insert some bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, max(len(data), 1)))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 6)):
            case 0:
                data[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + length] = rng.bytes(length)
            case 4:
                data[at:at] = rng.bytes(length)
            case _:
                del data[at:]
    return bytes(data)


def change_json(rng: Generator, value: Any) -> Any:
    """A copy of a JSON value, one to three of whose parts are others, gone, or there twice."""
    whole = [copy.deepcopy(value)]
    for _ in range(int(rng.integers(1, 4))):
        holder: Any = whole
        key: Any = 0
        while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
            holder = holder[key]
            key = pick(rng, list(holder) if isinstance(holder, dict) else range(len(holder)))
        odd = copy.deepcopy(pick(rng, ODD_JSON))  # it may be changed, too
        match int(rng.integers(0, 4)):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 2 if isinstance(holder, dict):
                holder[str(odd)] = copy.deepcopy(holder[key])
            case _:
                holder[key] = odd
        if not whole:
            break
    return whole[0]


def pick(rng: Generator, values: Any) -> Any:
    """One of these, of whatever types."""
    return values[int(rng.integers(0, len(values)))]


def absurd(rng: Generator) -> int:
    return int(rng.choice(np.array(ABSURD)))
