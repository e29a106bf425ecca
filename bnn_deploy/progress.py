"""How long steps say what they are doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with what is being done."""
