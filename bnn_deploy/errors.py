"""Errors that end a command with one clear line. Each carries the exit code of the command line."""

from __future__ import annotations


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """The message of an exception on one line of at most `limit` characters; its type if the message is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class BnnDeployError(Exception):
    """Base of every error that bnn-deploy raises on purpose; its text is one line that says what to do."""

    exit_code = 1


class InputError(BnnDeployError):
    """The user's input cannot be used: a file, a name, a shape, a value. Exit code 2."""

    exit_code = 2


class SetupError(BnnDeployError):
    """This machine cannot do the job: a package or the library is missing or too old, an unknown ISA. Exit code 3."""

    exit_code = 3
