"""Results as JSON: what every command's `--json` prints."""

from __future__ import annotations

import math
import os
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

JSON_VERSION = 1
"""Of all documents together: it changes when an entry is removed or means something else, not when one is added."""


class JsonDocument:
    """A result, a dataclass, that a command prints as a document of its own, or as part of another one.

    Attributes:
        JSON_FORMAT: the name of its format. docs/schemas/ has a schema of each.
    """

    JSON_FORMAT: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps; infinity and NaN, which JSON lacks, become null."""
        return head(self.JSON_FORMAT) | _entries(self)


def head(form: str) -> dict[str, Any]:
    """What says how to read a document, its first entries: {"format": "bnn-deploy profile", "version": 1}."""
    return {"format": f"bnn-deploy {form}", "version": JSON_VERSION}


def json_names(result: Any) -> list[str]:
    """The attributes that the JSON form of a dataclass, or of one of its instances, has.

    They are its fields, without those that its class attribute JSON_OMITTED names, and with the properties that its
    JSON_PROPERTIES names.
    """
    names = [field.name for field in fields(result) if field.name not in getattr(result, "JSON_OMITTED", ())]
    return [*names, *getattr(result, "JSON_PROPERTIES", ())]


def json_form(value: Any) -> Any:
    """Plain types, for json.dumps.

    A dataclass becomes an object with its `json_names`, a JsonDocument what it is by itself; a path becomes its text;
    infinity and NaN, which JSON lacks, become null.
    """
    if isinstance(value, JsonDocument):
        return value.to_json()
    if is_dataclass(value):
        return _entries(value)
    if isinstance(value, dict):
        return {key: json_form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_form(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entries(value: Any) -> dict[str, Any]:
    return {name: json_form(getattr(value, name)) for name in json_names(value)}
