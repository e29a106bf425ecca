"""`bnn-deploy info`: what a bug report should say of the machine and the installation."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click
from packaging.requirements import Requirement

import bnn_deploy
from bnn_deploy.cli.console import facts, print_json, show, table
from bnn_deploy.cli.options import example
from bnn_deploy.errors import SetupError, one_line
from bnn_deploy.installation import origin, requirements
from bnn_deploy.json_form import JsonDocument
from bnn_deploy.quantities import plural
from bnn_deploy.system import usable_cpus

_DEVELOPMENT = ("test", "docs")
"""The extras of those who develop bnn-deploy."""

_VARIABLES = ("BNN_DEPLOY_", "OMP_", "ORT_", "PYTHONPATH", "LD_LIBRARY_PATH", "LC_ALL", "LANG", "NO_COLOR", "TERM")
"""What the names of the environment variables begin with that change what bnn-deploy does."""


@dataclass(frozen=True)
class Installation:
    """Where bnn-deploy is, and what it was installed from.

    Attributes:
        version: its version.
        path: the folder of the package.
        installed_from: a folder, a file or a URL; None for a package index or a folder of wheels.
        editable: whether that folder is the package itself.
    """

    version: str
    path: str
    installed_from: str | None
    editable: bool


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs."""

    version: str
    implementation: str
    executable: str


@dataclass(frozen=True)
class Library:
    """The operator library and onnxruntime.

    Attributes:
        path: the library's file; None if it is missing.
        isas: the instruction sets that this CPU has kernels for, the best first.
        selected: the one that is used.
        cpu: the CPU's name.
        providers: those of onnxruntime.
        error: why they could not be asked; None if they could.
    """

    path: str | None = None
    isas: tuple[str, ...] = ()
    selected: str | None = None
    cpu: str | None = None
    providers: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Package:
    """A package that is needed, and what of it is here.

    Attributes:
        name: its name.
        version: that which is installed; None if none is.
        needs: the versions that are needed.
        extra: the extra that brings it; None if bnn-deploy itself does.
        state: whether it fits.
    """

    name: str
    version: str | None
    needs: str
    extra: str | None
    state: Literal["ok", "missing", "does not fit"]


@dataclass(frozen=True)
class Environment(JsonDocument):
    """The machine and the installation.

    Attributes:
        bnn_deploy: the installation.
        python: the Python that runs.
        system: name and version of the operating system.
        machine: the architecture.
        cpus: the machine's.
        usable_cpus: those that this process may use.
        stdout_encoding: of what it prints.
        library: the operator library and onnxruntime.
        packages: those that bnn-deploy needs, but for its development.
        environment: the variables that change what bnn-deploy does.
    """

    JSON_FORMAT = "environment"

    bnn_deploy: Installation
    python: Interpreter
    system: str
    machine: str
    cpus: int
    usable_cpus: int
    stdout_encoding: str
    library: Library
    packages: tuple[Package, ...]
    environment: dict[str, str]


@click.command(name="info", epilog=example("bnn-deploy info"))
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(as_json: bool) -> None:
    """Print the environment for a bug report: versions, CPU, instruction sets, threads, paths.

    What is missing or broken is said in its place, and is no error of this command.
    """
    found = environment()
    if as_json:
        print_json(found.to_json())
    else:
        print_environment(found)


def environment() -> Environment:
    """The machine and the installation."""
    source = origin()
    return Environment(
        bnn_deploy=Installation(
            version=bnn_deploy.__version__,
            path=str(Path(bnn_deploy.__file__).parent),
            installed_from=None if source is None else source[0],
            editable=source is not None and source[1],
        ),
        python=Interpreter(platform.python_version(), platform.python_implementation(), sys.executable),
        system=platform.platform(),
        machine=platform.machine(),
        cpus=os.cpu_count() or usable_cpus(),
        usable_cpus=usable_cpus(),
        stdout_encoding=sys.stdout.encoding,
        library=_library(),
        packages=tuple(_package(need, extra) for extra, need in requirements() if extra not in _DEVELOPMENT),
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    )


def _library() -> Library:
    """The operator library and onnxruntime, as far as they can be asked."""
    result = Library()
    try:
        import onnxruntime

        from bnn_deploy.runtime.machine import cpu_name
        from bnn_deploy.runtime.session import library_info, library_path

        result = replace(result, cpu=cpu_name(), providers=tuple(onnxruntime.get_available_providers()))
        result = replace(result, path=str(library_path()))
        library = library_info()
        return replace(result, isas=tuple(library.isas), selected=library.selected)
    except (SetupError, ImportError) as error:
        return replace(result, error=one_line(error))


def _package(need: Requirement, extra: str | None) -> Package:
    """A package that is needed, and what of it is here."""
    try:
        here = version(need.name)
    except PackageNotFoundError:
        return Package(need.name, None, str(need.specifier), extra, "missing")
    fits = need.specifier.contains(here, prereleases=True)
    return Package(need.name, here, str(need.specifier), extra, "ok" if fits else "does not fit")


def print_environment(found: Environment) -> None:
    """Print the environment as tables."""
    own, python, library = found.bnn_deploy, found.python, found.library
    source = own.installed_from or "a package index, or a folder of wheels"
    isas = f"{', '.join(library.isas)}; {library.selected} is used"
    rows = [
        ("bnn-deploy", own.version),
        ("installed from", f"{source}{' (editable)' if own.editable else ''}"),
        ("package", own.path),
        ("library", library.path or "none"),
        ("instruction sets", isas if library.isas else f"unknown: {library.error}"),
        ("CPU", f"{library.cpu or found.machine}, {found.usable_cpus} of {plural(found.cpus, 'CPU')} usable"),
        ("system", found.system),
        ("Python", f"{python.implementation} {python.version}, {python.executable}"),
        ("providers", ", ".join(library.providers) or "none"),
        ("threads", "as each command's --threads says; else onnxruntime's default, one per core"),
        ("output", found.stdout_encoding),
        *found.environment.items(),
    ]
    show(facts(rows), result=True)
    show("")
    packages = table(None, ["package", "version", "needed", "brought by", ""], optional=["brought by", "needed"])
    for package in found.packages:
        extra = f"[{package.extra}]" if package.extra else "bnn-deploy"
        packages.add_row(package.name, package.version or "-", package.needs, extra, package.state)
    show(packages, result=True)
