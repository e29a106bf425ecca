"""The option `--html`: the result of a command as a page, or as the record that a page is made of."""

from __future__ import annotations

import importlib.util
import platform
import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from bnn_deploy import __version__
from bnn_deploy.cli import ARGUMENTS
from bnn_deploy.files import FilePath, require_outputs, write_files
from bnn_deploy.page.record import Run, new_record
from bnn_deploy.page.render import render, require_renderer
from bnn_deploy.quantities import plural
from bnn_deploy.runtime.machine import cpu_name
from bnn_deploy.system import usable_cpus

PICTURES = 12
"""Samples whose pictures a page shows, at most, if its user does not say how many."""

_RESULTS = "bnn_deploy.results"

_PACKAGES = ("onnxruntime", "numpy", "onnx", "torch")
"""The packages that results depend on."""


def html_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--html`."""
    return click.option(
        "--html",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.html",
        help="Also write the result as one page to look at, to print or to send; needs the extra 'report'.",
    )(command)


def require_page(html: Path | None, read: Mapping[str, FilePath | None]) -> None:
    """Check, before the work, that a page can be made and written; `read` are the files that the command reads."""
    if html is not None:
        require_outputs({"page": html}, read)
        require_renderer()


def make_record(model: Path, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of what this command found out about a model, and of its network if onnx is installed here."""
    if "model" not in parts and importlib.util.find_spec("onnx") is not None:
        from bnn_deploy.inspection import inspect_model

        parts = {"model": inspect_model(model).to_json(), **parts}
    return new_record(parts, this_run(tuple(parts)))


def write_page(html: Path, record: Mapping[str, Any]) -> None:
    """Write the page of a record."""
    write_files({html: render(record, str(html))})


def note_result(part: str, result: Mapping[str, Any]) -> None:
    """Leave a command's result, a part of a record, for `run`, which calls several commands."""
    click.get_current_context().meta.setdefault(_RESULTS, {})[part] = result


def noted_results() -> dict[str, dict[str, Any]]:
    """The results that `note_result` has left, by the part of a record that they are."""
    found: dict[str, dict[str, Any]] = click.get_current_context().meta.setdefault(_RESULTS, {})
    return found


def this_run(parts: tuple[str, ...]) -> Run:
    """The command line, the machine and the versions of this process."""
    versions = {"bnn-deploy": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    machine = f"{cpu_name()}, {plural(usable_cpus(), 'CPU')} usable, {platform.platform()}"
    arguments = click.get_current_context().meta.get(ARGUMENTS, [])
    return Run(parts, shlex.join(["bnn-deploy", *arguments]), machine, versions)
