"""Options that more than one command has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.preprocessing import Preprocessing, Size

DATA_PATH = click.Path(path_type=Path)
"""Of data: a file, or a folder of images."""


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how images become a model's input, and which samples are drawn.

    The command gets them as `preprocessing`, see `parse_preprocessing`, and `seed`.
    """

    @wraps(command)
    def called(
        *args: Any, size: str | None, crop: str | None, mean: str | None, std: str | None, **options: Any
    ) -> Any:
        return command(*args, preprocessing=parse_preprocessing(size, crop, mean, std), **options)

    return _with(
        called,
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


@dataclass(frozen=True)
class Proof:
    """What a model is held against, and on which samples: the keyword arguments of `verify` with these names."""

    against: Path | None
    arch: str | None
    arch_args: dict[str, Any] | None
    key: str | None
    prefix: str | None
    data: Path | None
    samples: int | None
    preprocessing: Preprocessing | None
    seed: int | None


def proof_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a model is held against, and on which samples; the command gets them as `proof`."""

    @wraps(command)
    def called(*args: Any, **options: Any) -> Any:
        own = {item.name: options.pop(item.name) for item in fields(Proof)}
        return command(*args, proof=Proof(**own | {"arch_args": parse_arch_args(own["arch_args"])}), **options)

    return _with(
        data_options(called),
        click.option(
            "--against",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="The checkpoint, or the float .onnx file; what the model was made of if left out.",
        ),
        click.option("--arch", metavar="NAME", help="Of the checkpoint, if the model does not say: FILE.py:NAME."),
        click.option("--arch-args", metavar="JSON", help="Keyword arguments of the class or function, a JSON object."),
        checkpoint_options,
        click.option(
            "--data",
            type=DATA_PATH,
            metavar="PATH",
            help="Inputs, perhaps with labels: a folder of images with a sub-folder per class, an IDX file as MNIST's, "
            ".npz or .npy; random if left out.",
        ),
        click.option("--samples", type=click.IntRange(1), help="Use only so many inputs."),
    )


def _with(command: Callable[..., Any], *options: Callable[..., Any]) -> Callable[..., Any]:
    """A command with further options, which its help shows in this order."""
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
    return _with(
        command,
        click.option(
            "--key",
            metavar="KEY",
            help="Of a checkpoint with several state dicts: where the network's is, as ema.model.",
        ),
        click.option(
            "--prefix", metavar="PREFIX", help="Of a checkpoint: what the keys of the network's tensors begin with."
        ),
    )


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
