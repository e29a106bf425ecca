"""The program `bnn-deploy`, also `python -m bnn_deploy`; in a module of its own, so that Ctrl-C may come this early."""

from __future__ import annotations

import sys


def program() -> None:
    """Import the command line, and run it."""
    try:
        from bnn_deploy.cli import main

        main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    program()
