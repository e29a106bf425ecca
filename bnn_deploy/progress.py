"""The callback by which long-running functions report their progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with one line of text that names the current step."""
