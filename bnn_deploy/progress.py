"""The callback by which long-running functions report their progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with one line of text that names the current step; a `ProgressStep` also says how much is done."""


class ProgressStep(str):
    """One line of text that names the current step.

    Attributes:
        share: how much of the whole command is done when the step begins, from 0 to 1.
    """

    share: float

    def __new__(cls, text: str, share: float) -> ProgressStep:
        """A text with a share."""
        step = super().__new__(cls, text)
        step.share = share
        return step
