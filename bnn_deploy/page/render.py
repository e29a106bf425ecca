"""The page: one HTML file without scripts, which asks no network for anything.

Needs the extra `report`: Jinja2, which escapes all that comes from files, and matplotlib, which draws (see `plots`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from bnn_deploy.errors import SetupError, reading
from bnn_deploy.installation import install_command
from bnn_deploy.page import view
from bnn_deploy.page.colours import css
from bnn_deploy.quantities import human_bytes, human_count, milliseconds, percent, plural

if TYPE_CHECKING:
    import jinja2

_LANE = 14
"""Distance of the lanes beside the network, in pixels; less where there are many."""

_MOST = 96
"""Width of all lanes, at most, in pixels: a phone's screen is 375 wide."""


def require_renderer() -> None:
    """Check that a page can be made, before long work whose result it is to show.

    Raises:
        SetupError: a package is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as missing:
        raise SetupError(
            f"a page needs {missing.name}: run {install_command('report')}; or use --json here, and make the page of "
            "it where that is installed: bnn-deploy report FILE.json -o FILE.html"
        ) from missing


def render(record: Mapping[str, Any], where: str) -> bytes:
    """The page of a record, UTF-8.

    Args:
        record: see `record`.
        where: what it was read from, for messages.

    Raises:
        SetupError: a package is missing.
        InputError: the record was damaged, or written by hand.
    """
    require_renderer()
    with reading(where, "not a record that bnn-deploy wrote, or a damaged one"):
        return _render(record).encode(errors="backslashreplace")


def environment() -> jinja2.Environment:
    """What makes pages of the templates.

    Raises:
        SetupError: a package is missing.
    """
    require_renderer()
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("bnn_deploy.page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "breakable": _breakable,
        "bytes": lambda count: "" if count is None else human_bytes(count),
        "count": human_count,
        "count_of": plural,
        "file_name": lambda path: PurePath(path).name,
        "ms": lambda value: f"{milliseconds(value)} ms",
        "percent_of": lambda count, of: "-" if count is None else percent(count, of),
        "thousands": lambda count: "-" if count is None else f"{count:,}",
        "scientific": lambda value: "not finite" if value is None else f"{value:.1e}" if value else "0",
    }
    return made


def _breakable(name: str) -> str:
    """A layer's name, which a narrow page breaks behind a dot or an underscore, as HTML."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[._])(?=\w)", "<wbr>", str(escape(name))))


def _render(record: Mapping[str, Any]) -> str:
    from markupsafe import Markup

    from bnn_deploy.page import plots

    templates = environment()
    network = view.network(record)
    numbers = {row.name: row.number for row in network.rows if row.number is not None}
    step = min(_LANE, (_MOST - 20) / max(network.lanes - 1, 1))
    return templates.get_template("page.html").render(
        record=record,
        name=view.name_of(record),
        verdict=view.verdict(record),
        figures=view.figures(record),
        missing=view.missing(record),
        network={
            "rows": network.rows,
            "bits": network.bits,
            "step": step,
            "width": round(20 + step * max(network.lanes - 1, 0)),
        },
        operators=view.operators(record),
        models=view.models(record),
        settings=view.settings(record),
        waterfall=view.waterfall(record),
        layer_sizes=view.layer_sizes(record),
        reasons=view.reasons(record),
        no_flips=view.no_flips(record),
        class_table=view.class_table(record),
        confusion=view.confusion(record),
        worst=view.samples(record, "worst"),
        disagreeing=view.samples(record, "disagreements"),
        plots={name: Markup(picture) for name, picture in plots.pictures(record, numbers).items()},
        css=Markup(templates.get_template("page.css").render()),
        light=css(dark=False),
        dark=css(dark=True),
    )
