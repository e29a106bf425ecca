"""Results as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bnn_deploy.json_form import JSON_VERSION, JsonDocument, json_form, json_names


@dataclass
class Inner:
    size: float
    hidden: object = None

    JSON_OMITTED: ClassVar = ("hidden",)
    JSON_PROPERTIES: ClassVar = ("double",)

    @property
    def double(self) -> float:
        return 2 * self.size


@dataclass
class Outer:
    path: Path
    parts: tuple[Inner, ...]
    by_name: dict[str, float]


def test_fields_and_properties_at_every_depth() -> None:
    value = Outer(Path("a/b.onnx"), (Inner(1.5, object()),), {"x": float("inf"), "y": float("nan"), "z": 2.0})
    found = json_form(value)
    assert found == {
        "path": "a/b.onnx",
        "parts": [{"size": 1.5, "double": 3.0}],
        "by_name": {"x": None, "y": None, "z": 2.0},
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert json_names(Inner) == ["size", "double"]


def test_a_document_says_what_it_is_also_within_another() -> None:
    @dataclass
    class Document(JsonDocument):
        JSON_FORMAT = "test"
        inner: Inner

    expected = {"format": "bnn-deploy test", "version": JSON_VERSION, "inner": {"size": 1.0, "double": 2.0}}
    assert Document(Inner(1.0)).to_json() == expected
    assert json_form([Document(Inner(1.0))]) == [expected]
