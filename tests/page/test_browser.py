"""The page in a real browser: light and dark, a phone's width, printed, without a request and an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.page.render import render
from support.browser import DESKTOP, PHONE, Browser, browser
from support.pages import with_hostile_texts

Made = tuple[dict[str, Any], Path]

READABLE = 4.5
"""The contrast that WCAG 2 asks for of text."""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as found:
        yield found


def test_verdict_layers_and_pictures_are_there(record: Made, window: Browser) -> None:
    found, page = record
    window.open(page)
    assert window.text("h1") == "Equivalent: the model computes what its source computes."
    assert window.count("#layers tbody tr") == len(found["verification"]["layers"])
    nodes = len(found["model"]["layers"])
    assert nodes <= window.count("#network ol.network > li") <= nodes + 2
    assert window.count("#worst img") >= 1
    drawn = window.ask("return [...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().height)")
    assert len(drawn) >= 2 and min(drawn) > 50, "the errors and the roofline"
    assert window.count("#network .rail rect.bits") >= 2 and window.count("#network .rail circle.floats") >= 2


def test_the_console_is_silent_and_no_network_is_asked(record: Made, window: Browser) -> None:
    window.console(), window.requests()
    window.open(record[1])
    assert window.console() == []
    assert window.requests() == [record[1].resolve().as_uri()]


def test_requests_and_errors_are_noticed(tmp_path: Path, window: Browser) -> None:
    page = tmp_path / "loud.html"
    page.write_text("<script>console.error('loud')</script><img src='none.png'>")
    window.console(), window.requests()
    window.open(page)
    assert any("loud" in line for line in window.console())
    assert (tmp_path / "none.png").resolve().as_uri() in window.requests()


def test_a_hostile_record_runs_nothing(record: Made, window: Browser, tmp_path: Path) -> None:
    page = tmp_path / "hostile.html"
    page.write_bytes(render({**with_hostile_texts(record[0]), "sha256": ""}, "hostile"))
    window.console(), window.requests()
    window.open(page)
    assert window.console() == [] and window.requests() == [page.resolve().as_uri()]
    assert window.count("script, img[src=x]") == 0
    assert "<script>alert(1)</script>" in window.text("#network")
    window.open(page, PHONE)
    assert window.ask("return document.documentElement.scrollWidth") <= PHONE


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_is_readable(record: Made, window: Browser, dark: bool) -> None:
    window.open(record[1], dark=dark)
    window.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
    found = window.contrasts()
    assert len(found) > 100
    assert [(ratio, text) for ratio, text in found if ratio < READABLE] == []


def test_a_text_that_is_not_readable_is_found(tmp_path: Path, window: Browser) -> None:
    page = tmp_path / "pale.html"
    page.write_text("<body style='background: #fff'><p style='color: #999'>pale</p><p>dark</p>")
    window.open(page)
    assert [text for ratio, text in window.contrasts() if ratio < READABLE] == ["pale"]


def test_light_and_dark_differ_and_paper_is_light(record: Made, window: Browser) -> None:
    shots, colours = [], []
    for dark, media in ((False, "screen"), (True, "screen"), (True, "print")):
        window.open(record[1], dark=dark, media=media)
        shots.append(window.screenshot(900))
        colours.append(window.ask("return getComputedStyle(document.body).backgroundColor"))
    assert shots[0] != shots[1]
    assert colours[0] == colours[2] == "rgb(255, 255, 255)" != colours[1]


@pytest.mark.parametrize("width", [320, PHONE, 768, DESKTOP])
def test_nothing_is_wider_than_the_screen(record: Made, window: Browser, width: int) -> None:
    window.open(record[1], width)
    window.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert window.ask("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, PHONE])
def test_all_columns_of_the_confusion_matrix_are_in_sight(record: Made, window: Browser, width: int) -> None:
    hidden = "const box = document.querySelector('#confusion').parentElement; return box.scrollWidth - box.clientWidth"
    window.open(record[1], width)
    assert window.count("#confusion thead th") == 11
    assert window.ask(hidden) == 0
    window.ask("document.querySelectorAll('#confusion td').forEach(e => e.style.minWidth = '2.25rem')")
    assert window.ask(hidden) > 0


def test_a_long_name_breaks_behind_a_dot_or_an_underscore(record: Made, window: Browser) -> None:
    window.open(record[1], PHONE)
    assert "bin_conv2.conv" in window.ask("return [...document.querySelectorAll('.name')].map(e => e.textContent)")
    parts = "return [...document.querySelectorAll('.name')].map(e => e.innerHTML)"
    assert "bin_<wbr>conv2.<wbr>conv" in window.ask(parts)


_BROKEN = """
const lines = cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set(Array.from(range.getClientRects(), r => Math.round(r.top))).size;
};
const cells = [...document.querySelectorAll('.stack td.n')];
return cells.filter(cell => lines(cell) > 1).map(cell => cell.textContent.trim());
"""
"""The numbers of stacked tables that take more than one line."""


@pytest.mark.parametrize("width", [320, PHONE])
def test_no_number_is_broken_on_a_phone(record: Made, window: Browser, width: int) -> None:
    window.open(record[1], width)
    assert window.count(".stack td.n") > 20
    assert window.ask(_BROKEN) == []
    narrow = "display: block; width: 0.5rem; overflow-wrap: anywhere; white-space: normal"
    window.ask(f"document.querySelectorAll('.stack td.n').forEach(e => e.style = '{narrow}')")
    assert window.ask(_BROKEN) != []


def test_a_layer_opens_by_keyboard(record: Made, window: Browser) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    window.open(record[1])
    body = window.driver.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert window.ask("return document.activeElement.tagName") == "SUMMARY"
    window.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert window.count("details[open]") == 1
    assert "tensor of the source" in window.text("details[open] dl")


def test_it_prints(record: Made, window: Browser) -> None:
    window.open(record[1])
    paper = window.pdf()
    assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page/") > 1
