"""The colours of the page, by what they are for: in CSS they are variables, which the pictures use, too."""

from __future__ import annotations

COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171b"),
    "wash": ("#f4f6f8", "#1d2228"),
    "line": ("#d3d9df", "#343c45"),
    "ink": ("#1b1f24", "#e4e7eb"),
    "muted": ("#56606b", "#a0aab5"),
    "bits": ("#1c5eac", "#7fb5f5"),
    "floats": ("#865600", "#dba94d"),
    "good": ("#186a3b", "#68ca90"),
    "bad": ("#b32017", "#ff8f84"),
}
"""What for -> the colour on a light screen and on paper, and that on a dark screen. No two light ones are equal."""


def css(dark: bool) -> str:
    """The declarations of one of the two sets: "--paper: #ffffff; ..."."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in COLOURS.items())
