"""What the programs have in common: options, errors in one line, signs of life for systemd, and limits for pictures."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from bnn_deploy.data.pictures import png, require_pillow
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.preprocessing import MAX_SIDE
from bnn_deploy.runtime.classifier import Classifier

MAX_PIXELS = 25_000_000
"""Of a picture in a file. Pillow needs some 6 bytes for each, and a small board has 512 MB."""


class OptionParser(argparse.ArgumentParser):
    """Options that are told apart by an exception, so that a bundle can be refused whose service could not start."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message}; {' '.join(self.format_usage().split())}")


def option_parser(name: str, description: str | None) -> OptionParser:
    """The options that all programs have: the model, and threads.

    Args:
        name: of the program.
        description: for the help.
    """
    parser = OptionParser(
        prog=f"python -m bnn_deploy.apps.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("--threads", type=whole(1, 1024), default=1, metavar="N", help="of a run (default: 1)")
    return parser


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number within bounds, as argparse's `type`."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and least <= int(text[:9]) <= most):
            raise argparse.ArgumentTypeError(f"{text[:20]}: give a whole number from {least:,} to {most:,}")
        return int(text[:9])

    return parse


def seconds(text: str) -> float:
    """A time, not negative, as argparse's `type`."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:20]}: give a number of seconds")
    return value


def run_program(parser: OptionParser, run: Callable[[argparse.Namespace], int]) -> int:
    """Run a program with the arguments of this process, and return its exit code; an error is one line."""
    try:
        return run(parser.parse_args())
    except BnnDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename or parser.prog}: {error.strerror or error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


def notify(state: str) -> None:
    """Tell systemd something: a datagram to the socket that it names, as sd_notify(3) describes."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            # A name that begins with @ is one of the abstract namespace.
            to.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def limit_pictures() -> None:
    """Let Pillow refuse pictures of more than MAX_PIXELS by what their header says, before it takes memory for them.

    Raises:
        SetupError: Pillow is not installed.
    """
    pillow = require_pillow()
    pillow.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", pillow.DecompressionBombWarning)  # up to twice the limit, it only warns


def require_picture_model(model: str) -> None:
    """Check that a model says how a picture of any size becomes its input, as those of a service are.

    Raises:
        InputError: it does not, or is no classifier.
        SetupError: Pillow is not installed.
    """
    classifier = Classifier(model)
    try:
        classifier.predict(png(np.zeros((120, 160, 3), np.uint8), MAX_SIDE))
    except InputError as error:
        raise InputError(
            f"{model}: takes no picture of 160x120 pixels ({error}): convert it with --size, --crop"
        ) from error
