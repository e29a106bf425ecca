"""The page of several boards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnn_deploy.page.colours import css
from bnn_deploy.page.render import environment
from bnn_deploy.quantities import TIMES, milliseconds, plural


def render_fleet(fleet: Mapping[str, Any]) -> bytes:
    """The page of a fleet, UTF-8.

    Args:
        fleet: what `bnn-deploy fleet --json` prints.

    Raises:
        SetupError: a package is missing.
    """
    from markupsafe import Markup

    templates = environment()
    columns = [
        *(("host", ""), ("proof", ""), ("board", ""), ("ran", "")),
        *(("median", "n"), ("speed-up", "n"), ("temperature", "n"), ("bundle", "n")),
    ]
    rows = [
        (
            board,
            (
                board["board"] or "-",
                _ran(board),
                "-" if board["median_ms"] is None else f"{milliseconds(board['median_ms'])} ms",
                "-" if board["speedup"] is None else f"{board['speedup']:.2f}{TIMES}",
                _temperature(board["temperature_c"], board["throttled"]),
                "-" if board["bundle"] is None else board["bundle"][:12],
            ),
        )
        for board in fleet["boards"]
    ]
    page = templates.get_template("fleet.html").render(
        passed=fleet["passed"],
        count=sum(board["verdict"] == "passed" for board in fleet["boards"]),
        boards=len(fleet["boards"]),
        models=sorted({board["model"] for board in fleet["boards"] if board["model"]}),
        columns=columns,
        rows=rows,
        css=Markup(templates.get_template("page.css").render()),
        light=css(dark=False),
        dark=css(dark=True),
    )
    return page.encode(errors="backslashreplace")


def _ran(board: Mapping[str, Any]) -> str:
    version = board["onnxruntime"] and f"onnxruntime {board['onnxruntime']}"
    threads = board["threads"] and plural(board["threads"], "thread")
    return ", ".join(part for part in (board["isa"], threads, version) if part) or "-"


def _temperature(degrees: float | None, throttled: bool | None) -> str:
    known = "-" if degrees is None else f"{degrees:.0f} °C"
    return f"{known}, throttled" if throttled else known
