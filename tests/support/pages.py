"""Records and pages for tests."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

from click.testing import CliRunner

from bnn_deploy.cli import main

HOSTILE = "</title></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"'$\\frac{$&amp;{{ 7 * 7 }}"
"""A name that would run a script, load an image or break a picture, were it not escaped."""


def run(*arguments: object) -> str:
    """What a command prints on stdout; it must succeed."""
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


VOID = {"meta", "link", "br", "wbr", "img", "hr"}


KEPT = frozenset({"format", "kind", "network", "domain", "pictures"})
"""The keys of entries that are no free texts."""


def with_hostile_texts(value: Any, keep: frozenset[str] = KEPT) -> Any:
    """A copy of a record with HOSTILE behind every text, but for those under the keys `keep` and of hashes."""
    if isinstance(value, dict):
        return {key: entry if key in keep else with_hostile_texts(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_hostile_texts(entry) for entry in value]
    return value + HOSTILE if isinstance(value, str) and value else copy.copy(value)


class Elements(HTMLParser):
    """The elements of a page.

    Attributes:
        found: name and attributes of each.
        texts: all texts between them.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def loads(elements: Elements) -> list[str]:
    """What a browser would fetch for a page: sources, links and addresses in styles, but for data in the page."""
    found = []
    for tag, attributes in elements.found:
        for name, value in attributes.items():
            inside = value.startswith(("data:", "#"))
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data", "background") and not inside:
                found.append(f"<{tag} {name}={value!r}>")
            if "url(" in value and "url(#" not in value:
                found.append(f"<{tag} {name}={value!r}>")
        if tag in ("script", "iframe", "object", "embed", "base", "form"):
            found.append(f"<{tag}>")
    return found
