"""Options that more than one command has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from bnn_deploy.errors import InputError, one_line


def checkpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where a network's weights are in a checkpoint."""
    key = click.option(
        "--key", metavar="KEY", help="Of a checkpoint with several state dicts: where the network's is, as ema.model."
    )
    prefix = click.option(
        "--prefix", metavar="PREFIX", help="Of a checkpoint: what the keys of the network's tensors begin with."
    )
    return key(prefix(command))


def example(command: str, *, in_demo: bool = False) -> str:
    """The end of a command's help, an example; click prints it as it is.

    Args:
        command: what to type.
        in_demo: its files are those that `bnn-deploy demo` makes.
    """
    where = ", in the folder that bnn-deploy demo makes" if in_demo else ""
    return f"\b\nExample{where}:\n  {command}"


def parse_arch_args(text: str | None) -> dict[str, Any] | None:
    """'{"width": 64}' -> keyword arguments; None if the option was not given.

    Raises:
        InputError: not JSON, or not an object.
    """
    if text is None:
        return None
    example = "give the keyword arguments of the class as a JSON object, for example '{\"width\": 64}'"
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--arch-args {one_line(text)}: not JSON ({one_line(error)}); {example}") from error
    if not isinstance(arguments, dict):
        raise InputError(f"--arch-args {one_line(text)}: not an object; {example}")
    return arguments
