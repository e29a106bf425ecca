"""`bnn-deploy.toml`: the options of the commands for one network, so that they are said once.

    source = "net.pth"              # what convert converts, and verify holds the model against
    model = "net.onnx"              # what convert writes, and the other commands read
    arch = "net.py:Net"
    data = "test_images"
    float = "net_float.onnx"        # what convert writes beside it, and profile compares with

    [profile]
    threads = 4

A key is the name of an option. At the top it is for every command that has such an option; in the table of a command,
for that command alone. The command line comes first. Paths are relative to the file's folder.

There is no list of keys but the options themselves: click checks each value as if it had been typed. The file may name
FILE.py, which runs: it is read only from the current folder, or from where `--config` says.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bnn_deploy.cli import COMMANDS
from bnn_deploy.cli.console import remark
from bnn_deploy.errors import InputError, reading
from bnn_deploy.files import is_file, require_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILE = Path("bnn-deploy.toml")

_CONFIGURED = ("convert", "verify", "profile", "bundle", "report")
"""The commands that the file is for."""

_SHARED = {
    ("convert", "output"): "model",
    ("verify", "against"): "source",
    ("profile", "compare"): "float",
    ("report", "sources"): "model",
    ("report", "against"): "source",
    ("report", "compare"): "float",
}
"""Parameters that have a second key: that of the same file in another command."""


@dataclass(frozen=True)
class _Entry:
    """One line of the file.

    Attributes:
        table: the command whose table it is in; "" for the top.
        key: its key.
        value: its value.
    """

    table: str
    key: str
    value: Any

    @property
    def name(self) -> str:
        """Such as threads or profile.threads."""
        return f"{self.table}.{self.key}" if self.table else self.key


class Config:
    """A bnn-deploy.toml.

    Attributes:
        path: the file.
        entries: what it has.
        used: the names of the entries that `defaults` has taken.
    """

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            InputError: it is missing, no TOML, or has a table or a key that there is not.
        """
        require_file(path)
        self.path = path
        with reading(path, "not a TOML file"):
            self._text = path.read_text(encoding="utf-8")
            found = tomllib.loads(self._text)
        self.entries = list(_entries(found))
        self.used = set[str]()
        for entry in self.entries:
            self._require_known(entry)

    def defaults(
        self, name: str, command: click.Command, ctx: click.Context, typed: Collection[str] = ()
    ) -> dict[str, Any]:
        """The values of a command's parameters, by their names, as click takes them for defaults.

        Args:
            name: the command's name.
            command: it.
            ctx: its context.
            typed: the names of the parameters that are typed, and so not read from the file.

        Raises:
            InputError: a value is none that the parameter takes.
        """
        result: dict[str, Any] = {}
        self.used = set[str]()
        tables = ("", name)  # that of the command comes last, and so overrides the top
        for entry in sorted((e for e in self.entries if e.table in tables), key=lambda entry: entry.table):
            for parameter in command.params:
                if parameter.name in typed:
                    continue
                if entry.key in _keys(name, parameter) and parameter.name is not None:
                    result[parameter.name] = self._value(entry, parameter, ctx)
                    self.used.add(entry.name)
        return result

    def get(self, key: str, table: str = "") -> Any:
        """The value of a key at the top or in a table; None if there is none."""
        return next((entry.value for entry in self.entries if (entry.table, entry.key) == (table, key)), None)

    def _value(self, entry: _Entry, parameter: click.Parameter, ctx: click.Context) -> Any:
        """The value of an entry, as it would be typed, checked by click."""
        value = _typed(entry.value, parameter)
        try:
            if value is None:
                raise click.BadParameter("give true or false" if _is_flag(parameter) else "give a text or a number")
            value = self._beside(value, parameter)
            parameter.process_value(ctx, value)
        except click.BadParameter as error:
            raise InputError(f"{self._place(entry)}: {entry.name} = {entry.value!r}: {error.message}") from error
        return value

    def _beside(self, value: Any, parameter: click.Parameter) -> Any:
        """A path relative to the file's folder."""
        folder = self.path.parent
        if isinstance(value, list | tuple):
            return [self._beside(item, parameter) for item in value]
        if isinstance(value, str) and isinstance(parameter.type, click.Path):
            return str(folder / value)
        if isinstance(value, str) and parameter.name == "arch" and ":" in value:
            return str(folder / value)
        return value

    def _require_known(self, entry: _Entry) -> None:
        commands = [entry.table] if entry.table else _configured()
        if entry.table and entry.table not in _configured():
            line = self._place(entry)
            raise InputError(f"{line}: there is no table [{entry.table}]; tables are {', '.join(_configured())}")
        # One command after the other: a board has not what all of them import.
        if not any(entry.key in _command_keys(name) for name in commands):
            known = {key for name in commands for key in _command_keys(name)}
            where = f"[{entry.table}]" if entry.table else "the top"
            shown = ", ".join(sorted(key for key in known if "-" not in key))
            raise InputError(f"{self._place(entry)}: {where} has no key {entry.key!r}; it may have {shown}")

    def _place(self, entry: _Entry) -> str:
        """The file, and the line of an entry if it can be told."""
        table = ""
        for number, line in enumerate(self._text.splitlines(), start=1):
            if header := re.match(r"\s*\[\s*([\w-]+)", line):
                table = header[1]
                if table == entry.key and not entry.table:
                    return f"{self.path}, line {number}"
            elif table == entry.table and re.match(rf"""\s*["']?{re.escape(entry.key)}["']?\s*[=.]""", line):
                return f"{self.path}, line {number}"
        return str(self.path)


def _entries(found: Mapping[str, Any]) -> Iterator[_Entry]:
    for key, value in found.items():
        if isinstance(value, dict) and key in COMMANDS:
            yield from (_Entry(key, inner, content) for inner, content in value.items())
        else:
            yield _Entry("", key, value)


def _configured() -> list[str]:
    return [name for name in _CONFIGURED if name in COMMANDS]


def _command(name: str) -> click.Command:
    command: click.Command = importlib.import_module(COMMANDS[name][0]).command
    return command


def _command_keys(name: str) -> set[str]:
    return {key for parameter in _command(name).params for key in _keys(name, parameter)}


def _keys(name: str, parameter: click.Parameter) -> set[str]:
    """The keys of a command's parameter: its option with hyphens or underscores, and its second key."""
    if not parameter.expose_value or parameter.name == "as_json":
        return set()
    options = {option.removeprefix("--") for option in parameter.opts if option.startswith("--")}
    names = options or ({parameter.name} if isinstance(parameter, click.Argument) and parameter.name else set())
    second = _SHARED.get((name, parameter.name or ""))
    return {*names, *(key.replace("-", "_") for key in names), *([second] if second else [])}


def _is_flag(parameter: click.Parameter) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def _typed(value: Any, parameter: click.Parameter) -> Any:
    """A value of TOML as it would be typed; None if it is none of the kind.

    [3, 32, 32] is 3,32,32; a table is a JSON object, or, for an option that is given several times, one NAME=VALUE for
    each; and ["cat", "dog"] is a JSON array, or, for such an option, given twice.
    """
    if _is_flag(parameter):
        return value if isinstance(value, bool) else None
    many = bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1
    if many and isinstance(value, dict):
        return [f"{name}={_text(item)}" for name, item in value.items()]
    if many and isinstance(value, list) and all(isinstance(item, str | list) for item in value):
        return [_text(item) for item in value]
    text = _text(value)
    return [text] if many and text is not None else text


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, int | float) or item == "?" for item in value):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, list | dict) else None


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config`, and let a bnn-deploy.toml give the values of the options that are not typed."""
    return click.option(
        "--config",
        cls=_ConfigOption,
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.toml",
        is_eager=True,  # before the options whose values it gives
        expose_value=False,
        callback=_use,
        help=f"Has options of the commands; {CONFIG_FILE} in the current folder if left out.",
    )(command)


class _ConfigOption(click.Option):
    """`--config`, which is told what else is typed: it comes first, and the others' values are not known yet."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Note the names of what is typed; an argument that is not has some other value here, by click's version."""
        ctx.meta[_TYPED] = {
            name for name, value in opts.items() if value and isinstance(value, str | bool | list | tuple)
        }
        return super().handle_parse_result(ctx, opts, args)


_TYPED = "bnn_deploy.typed"


def _use(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is None and not is_file(CONFIG_FILE):
        return
    config = Config(CONFIG_FILE if value is None else value)
    name = ctx.info_name or ""
    found = config.defaults(name, ctx.command, ctx, ctx.meta[_TYPED])
    if found:
        remark(f"options from {config.path}: {', '.join(sorted(config.used))}")
    ctx.default_map = found
