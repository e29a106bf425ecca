"""`bnn-deploy completion`: the script by which a shell completes commands, options and file names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from bnn_deploy.cli.options import example

SHELLS = ("bash", "zsh", "fish")

_USE = """\b
bash  in ~/.bashrc:
        eval "$(bnn-deploy completion bash)"
zsh   in ~/.zshrc, below compinit:
        eval "$(bnn-deploy completion zsh)"
fish  once:
        bnn-deploy completion fish > ~/.config/fish/completions/bnn-deploy.fish

"""


@click.command(name="completion", epilog=_USE + example('eval "$(bnn-deploy completion bash)"'))
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options and file names."""
    script = get_completion_class(shell)
    assert script is not None
    # The variable is that by which click knows that a shell asks.
    click.echo(script(ctx.find_root().command, {}, "bnn-deploy", "_BNN_DEPLOY_COMPLETE").source(), nl=False)
