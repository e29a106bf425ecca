"""JSON Schemas of what the commands print with `--json`, made from the classes of the results.

`python -m tests.support.schemas` writes them to docs/schemas/; tests/test_schemas.py holds them against what the
commands print. What an attribute means is taken from the docstring of its class.

The published schemas allow further entries, since later versions may add some; tests close them (`closed`).
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonschema import Draft202012Validator

import bnn_deploy
from bnn_deploy.cli import COMMANDS
from bnn_deploy.conversion import Conversion
from bnn_deploy.inspection import ModelReport
from bnn_deploy.json_form import JSON_VERSION, JsonDocument, head, json_names
from bnn_deploy.page.record import RECORD_PARTS, Run
from bnn_deploy.report.summary import Report

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"

Json = dict[str, Any]

for module, _ in COMMANDS.values():
    importlib.import_module(module)

RESULTS: dict[str, type] = {
    result.JSON_FORMAT: result
    for result in JsonDocument.__subclasses__()
    if result.__module__.startswith(bnn_deploy.__name__)  # and not of a test
}
"""The document's `format`, without "bnn-deploy " -> the class that it is the JSON form of: all of those that commands
import."""

SCALARS: dict[Any, Any] = {str: "string", int: "integer", bool: "boolean", NoneType: "null", Path: "string"}


class Schemas:
    """Schemas of types; those of classes are kept in `defs`, and referred to.

    Attributes:
        defs: name of a class -> its schema.
    """

    def __init__(self) -> None:
        self.defs: Json = {}

    def of(self, hint: Any) -> Json:
        """The schema of a type."""
        origin, arguments = get_origin(hint), get_args(hint)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            if hint.__name__ not in self.defs:
                self.defs[hint.__name__] = {}
                self.defs[hint.__name__] = self.fields(hint)
            return {"$ref": f"#/$defs/{hint.__name__}"}
        if hint in SCALARS:
            return {"type": SCALARS[hint]}
        if hint is float:
            return {"type": ["number", "null"]}  # null is infinity or NaN
        if origin in (Union, UnionType):
            return {"anyOf": [self.of(argument) for argument in arguments]}
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        if origin is list or (origin is tuple and arguments[1:] == (...,)):
            return {"type": "array", "items": self.of(arguments[0])}
        if origin is tuple:
            parts = [self.of(argument) for argument in arguments]
            return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
        assert hint is Any, f"a result has an attribute of the type {hint}"
        return {}

    def fields(self, result: type) -> Json:
        """The schema of a class's JSON form."""
        hints, told = get_type_hints(result), _attributes(result)
        properties = _head(result.JSON_FORMAT) if issubclass(result, JsonDocument) else {}
        for name in json_names(result):
            attribute = getattr(result, name, None)
            if isinstance(attribute, property):
                properties[name] = self.of(get_type_hints(attribute.fget)["return"])
                told[name] = _first_paragraph(attribute)
            else:
                properties[name] = self.of(hints[name])
            if told.get(name):
                properties[name] = {**properties[name], "description": told[name]}
        required = list(properties)
        if result is Report:
            properties = self._of_convert() | properties
        return _object(properties, required, _first_paragraph(result))

    def _of_convert(self) -> Json:
        """What `convert --json` has besides the content of --report."""
        more: Json = self.fields(Conversion)["properties"]
        sizes = self.of(ModelReport)
        cost = {"description": "what 8-bit edges cost, measured on the calibration inputs", "type": ["object", "null"]}
        return more | {"before": sizes, "after": sizes, "quantization": cost}


def _object(properties: Json, required: list[str], description: str) -> Json:
    return {"type": "object", "description": description, "properties": properties, "required": required}


def _first_paragraph(value: object) -> str:
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def _attributes(result: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes."""
    _, _, listed = (inspect.getdoc(result) or "").partition("Attributes:\n")
    entries = re.split(r"^    (\w+): ", listed.partition("\n\n")[0], flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def schemas() -> dict[str, Json]:
    """Format, without "bnn-deploy " -> the schema of its documents."""
    return {name: _document(name, result) for name, result in RESULTS.items()} | {"record": _record()}


def _document(name: str, result: type) -> Json:
    found = Schemas()
    return _finished(name, found.fields(result), found.defs)


def _record() -> Json:
    found = Schemas()
    parts: Json = {}
    for part, form in RECORD_PARTS.items():
        parts[part] = {"anyOf": [{"type": "null"}, found.of(RESULTS[form.removeprefix("bnn-deploy ")])]}
    digest = {"type": "string", "description": "SHA-256 of the model that all parts are about"}
    runs = {"type": "array", "items": found.of(Run)}
    properties = {**_head("record"), "sha256": digest, **parts, "runs": runs}
    return _finished("record", _object(properties, list(properties), "All that is known about a model."), found.defs)


def _head(form: str) -> Json:
    return {name: {"const": value} for name, value in head(form).items()}


def _finished(name: str, content: Json, defs: Json) -> Json:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"bnn-deploy {name}, version {JSON_VERSION}",
        **content,
        "$defs": dict(sorted(defs.items())),
    }


def misfits(document: Json) -> list[str]:
    """What of a document does not fit the schema of its format, which must name all of its entries."""
    schema = closed(schemas()[document["format"].removeprefix("bnn-deploy ")])
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(document)]


def closed(schema: Any) -> Any:
    """The same schema without room for entries that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    return result | {"additionalProperties": False} if isinstance(result.get("properties"), dict) else result


def files() -> dict[Path, str]:
    """Path -> content of the published schemas."""
    return {
        FOLDER / f"{name.replace(' ', '-')}.schema.json": json.dumps(schema, indent=2) + "\n"
        for name, schema in schemas().items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
        print(path)
