"""`bnn-deploy cmake-dir`: where CMake finds the package bnn_deploy."""

from __future__ import annotations

import click

from bnn_deploy.cli.options import example
from bnn_deploy.errors import SetupError


@click.command(name="cmake-dir", epilog=example("bnn-deploy cmake-dir"))
def command() -> None:
    """Print the folder of the CMake package.

    With it as bnn_deploy_DIR, find_package(bnn_deploy) gives the target bnn_deploy::ops: the operator library and its
    C header, bnn_deploy.h.
    """
    from bnn_deploy.runtime.session import library_path

    folder = library_path().parent / "cmake" / "bnn_deploy"
    if not folder.is_dir():
        raise SetupError(f"the CMake package {folder} is missing: reinstall bnn-deploy")
    click.echo(folder)
