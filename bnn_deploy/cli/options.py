"""Options that more than one command has."""

from __future__ import annotations

import json
from typing import Any

from bnn_deploy.errors import InputError


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
    except json.JSONDecodeError as error:
        raise InputError(f"--arch-args {text}: not JSON ({error}); {example}") from error
    if not isinstance(arguments, dict):
        raise InputError(f"--arch-args {text}: not an object; {example}")
    return arguments
