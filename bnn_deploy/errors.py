"""Errors that end a command with one clear line. Each carries the exit code of the command line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_on_command_line = False

_IRREGULAR: dict[str, tuple[str, str]] = {
    "calibration": ("--edges int8 --calibration PATH", "calibration"),
    "float_output": ("--float FLOAT.onnx", "float_output"),
    "image_input": ("--input uint8", "image_input"),
    "min_agreement": ("--min-agreement", "min_agreement of tolerances"),
}
"""Parameters whose option is not their name with hyphens alone: the option, and what Python calls it."""


@contextmanager
def on_command_line() -> Iterator[None]:
    """Let the messages of the block call parameters as the command line does."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


def option(parameter: str, value: Any = None, *, example: str = "") -> str:
    """A parameter in a message, as the reader gives it: with an option of a command, or with a keyword in Python.

    Args:
        parameter: its name in Python.
        value: its value; None for none.
        example: instead, what stands for a value: "FILE.onnx"; with commas for a tuple: "C,H,W".

    Returns:
        Such as `--input-shape C,H,W` or `--weights as-is` while a command runs; else `input_shape=(C, H, W)` or
        `weights='as-is'`, and `input_shape` without a value.
    """
    name, keyword = _IRREGULAR.get(parameter, (f"--{parameter.replace('_', '-')}", parameter))
    if _on_command_line:
        shown = example or ("" if value is None or value is True else _as_typed(value))
        return f"{name} {shown}" if shown else name
    shown = f"({', '.join(example.split(','))})" if "," in example else example
    shown = shown if value is None else repr(value)
    return f"{keyword}={shown}" if shown else keyword


def with_options(text: str) -> str:
    """A text with `option` of each parameter that it has in braces: "give {input_shape}, or {weights:xnor}"."""
    return re.sub(r"{(\w+)(?::([^}]+))?}", lambda found: option(found[1], found[2]), text)


def _as_typed(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """The message of an exception on one line of at most `limit` characters; its type if the message is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class BnnDeployError(Exception):
    """Base of every error that bnn-deploy raises on purpose; its text is one line that says what to do."""

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.splitlines()))  # names in files may have lines


class InputError(BnnDeployError):
    """The user's input cannot be used: a file, a name, a shape, a value. Exit code 2."""

    exit_code = 2


class SetupError(BnnDeployError):
    """This machine cannot do the job: a package or the library is missing or too old, an unknown ISA. Exit code 3."""

    exit_code = 3


@contextmanager
def about(file: str | os.PathLike[str]) -> Iterator[None]:
    """Let the InputErrors of the block begin with the name of the file that they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{os.fspath(file)}: {error}") from error


@contextmanager
def reading(file: str | os.PathLike[str], otherwise: str) -> Iterator[None]:
    """The door for files of others: whatever their reader raises means that a file cannot be used.

    A reader of a damaged file may raise anything: a header that lies ends in MemoryError, nested brackets in
    RecursionError, and libraries have their own exceptions. So every place that reads files of others does it in here.

    Args:
        file: the file, for messages.
        otherwise: what it is if it cannot be read, such as "not a golden file, or a damaged one".

    Raises:
        InputError: anything was raised, but for errors that say themselves what to do.
    """
    try:
        yield
    except BnnDeployError:
        raise
    except Exception as error:
        raise InputError(f"{os.fspath(file)}: {otherwise} ({type(error).__name__}: {one_line(error, 120)})") from error


@contextmanager
def reading_metadata(model: str | os.PathLike[str]) -> Iterator[None]:
    """`reading` of what the metadata of a model says; an InputError of the block gets the model's name, too."""
    with reading(model, "its metadata is damaged: convert it again"), about(model):
        yield
