"""Errors that end a command with one clear line. Each carries the exit code of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


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
