"""`bnn-deploy info`: what a bug report should say of the machine and the installation."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement

import bnn_deploy
from bnn_deploy.cli.console import facts, print_json, show, table
from bnn_deploy.cli.options import example
from bnn_deploy.errors import SetupError, one_line
from bnn_deploy.installation import origin, requirements
from bnn_deploy.quantities import plural
from bnn_deploy.system import usable_cpus

_DEVELOPMENT = ("test", "docs")
"""The extras of those who develop bnn-deploy."""

_VARIABLES = ("BNN_DEPLOY_", "OMP_", "ORT_", "PYTHONPATH", "LD_LIBRARY_PATH", "LC_ALL", "LANG", "NO_COLOR", "TERM")
"""What the names of the environment variables begin with that change what bnn-deploy does."""


@click.command(name="info", epilog=example("bnn-deploy info"))
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(as_json: bool) -> None:
    """Print the environment for a bug report: versions, CPU, instruction sets, threads, paths.

    What is missing or broken is said in its place, and is no error of this command.
    """
    found = environment()
    if as_json:
        print_json(found)
    else:
        print_environment(found)


def environment() -> dict[str, Any]:
    """The machine and the installation, as JSON."""
    source = origin()
    return {
        "bnn_deploy": {
            "version": bnn_deploy.__version__,
            "path": str(Path(bnn_deploy.__file__).parent),
            "installed_from": None if source is None else source[0],
            "editable": source is not None and source[1],
        },
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count() or usable_cpus(),
        "usable_cpus": usable_cpus(),
        "stdout_encoding": sys.stdout.encoding,
        "library": _library(),
        "packages": [_package(need, extra) for extra, need in requirements() if extra not in _DEVELOPMENT],
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _library() -> dict[str, Any]:
    """The operator library and onnxruntime; `error` says why they could not be asked."""
    result: dict[str, Any] = {"path": None, "isas": [], "selected": None, "cpu": None, "providers": [], "error": None}
    try:
        import onnxruntime

        from bnn_deploy.runtime.machine import cpu_name
        from bnn_deploy.runtime.session import library_info, library_path

        result |= {"cpu": cpu_name(), "providers": onnxruntime.get_available_providers()}
        result["path"] = str(library_path())
        library = library_info()
        result |= {"isas": list(library.isas), "selected": library.selected}
    except (SetupError, ImportError) as error:
        result["error"] = one_line(error)
    return result


def _package(need: Requirement, extra: str | None) -> dict[str, Any]:
    """A package that is needed, and what of it is here: `state` is ok, missing, or does not fit."""
    result = {"name": need.name, "version": None, "needs": str(need.specifier), "extra": extra, "state": "missing"}
    with suppress(PackageNotFoundError):
        here = version(need.name)
        fits = need.specifier.contains(here, prereleases=True)
        result |= {"version": here, "state": "ok" if fits else "does not fit"}
    return result


def print_environment(found: dict[str, Any]) -> None:
    """Print the environment as tables."""
    own, python, library = found["bnn_deploy"], found["python"], found["library"]
    source = own["installed_from"] or "a package index, or a folder of wheels"
    cpus = f"{library['cpu'] or found['machine']}, {found['usable_cpus']} of {plural(found['cpus'], 'CPU')} usable"
    isas = f"{', '.join(library['isas'])}; {library['selected']} is used"
    rows = [
        ("bnn-deploy", own["version"]),
        ("installed from", f"{source}{' (editable)' if own['editable'] else ''}"),
        ("package", own["path"]),
        ("library", library["path"] or "none"),
        ("instruction sets", isas if library["isas"] else f"unknown: {library['error']}"),
        ("CPU", cpus),
        ("system", found["system"]),
        ("Python", f"{python['implementation']} {python['version']}, {python['executable']}"),
        ("providers", ", ".join(library["providers"]) or "none"),
        ("threads", "as each command's --threads says; else onnxruntime's default, one per core"),
        ("output", f"{found['stdout_encoding']}"),
        *((name, value) for name, value in found["environment"].items()),
    ]
    show(facts(rows), result=True)
    show("")
    packages = table(None, ["package", "version", "needed", "brought by", ""])
    for package in found["packages"]:
        extra = f"[{package['extra']}]" if package["extra"] else "bnn-deploy"
        packages.add_row(package["name"], package["version"] or "-", package["needs"], extra, package["state"])
    show(packages, result=True)
