"""Python in another process, which finds bnn_deploy where this one does.

The working directory may hold a source tree of bnn_deploy, which has no library; `python -P` leaves it out of the path,
but Python 3.10 has no such option.
"""

from __future__ import annotations

import sys


def command(code: str, python: str = sys.executable) -> list[str]:
    """The words that run the code; more may follow, as its arguments."""
    return [python, "-c", f"import sys\nsys.path[:] = [path for path in sys.path if path]\n{code}"]
