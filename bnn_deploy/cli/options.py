"""Options that more than one command has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.preprocessing import Preprocessing, Size

DATA_PATH = click.Path(path_type=Path)
"""Of data: a file, or a folder of images."""


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how images become a model's input, and which; see `parse_preprocessing`."""
    options = (
        click.option(
            "--size",
            metavar="N or HxW",
            help="Of images: resize the shorter side to N pixels, or to exactly HxW, as torchvision's Resize does.",
        ),
        click.option("--crop", metavar="N or HxW", help="Of images: then cut out the middle, as CenterCrop does."),
        click.option(
            "--mean",
            metavar="M[,M...]",
            help="Of images, whose bytes become x / 255: what is subtracted, one number or one per channel. It, --std, "
            "--size and --crop are as the model says if left out.",
        ),
        click.option("--std", metavar="S[,S...]", help="Of images: what is divided by, one number or one per channel."),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            metavar="N",
            help="Draw the --samples at random. Left out: the first ones; of a folder with classes, drawn with seed 0.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def parse_preprocessing(size: str | None, crop: str | None, mean: str | None, std: str | None) -> Preprocessing | None:
    """('256', '224', '0.5', '0.2,0.3,0.2', ) -> Preprocessing; None if no option was given.

    Raises:
        InputError: one is none of what it can be.
    """
    if (size, crop, mean, std) == (None, None, None, None):
        return None
    return Preprocessing(
        _pixels("--size", size), _pixels("--crop", crop), parse_numbers("--mean", mean), parse_numbers("--std", std)
    )


def _pixels(option: str, text: str | None) -> Size | None:
    """'224' -> 224, '224x320' -> (224, 320)."""
    if text is None:
        return None
    try:
        numbers = tuple(map(int, text.split("x")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2):
        raise InputError(f"{option} {text}: give a number of pixels, 224, or height x width, 224x320")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """'0.485,0.456,0.406' -> the numbers; None if the option was not given."""
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise InputError(f"{option} {text}: give one number, or one for each channel: 0.485,0.456,0.406") from None


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
