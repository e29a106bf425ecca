"""`bnn-deploy library-path`: where the operator library is, for programs in other languages."""

from __future__ import annotations

import click

from bnn_deploy.cli.options import example


@click.command(name="library-path", epilog=example("bnn-deploy library-path"))
def command() -> None:
    """Print the path of the operator library.

    Hand it to the function of onnxruntime that registers custom operators, in any language: RegisterCustomOpsLibrary
    in C. The C header is in the folder include beside it, a pkg-config file in the folder pkgconfig.
    """
    from bnn_deploy.runtime.session import library_path

    click.echo(library_path())
