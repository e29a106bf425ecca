"""A real browser that shows a page: Debian's chromium without a screen, driven by selenium."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)

DESKTOP, PHONE = 1280, 375
"""Widths of screens in pixels."""

_CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return Array.from(canvas.getImageData(0, 0, 1, 1).data);
};
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = rgba(getComputedStyle(element).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const result = [];
for (let node; (node = walker.nextNode());) {
  const element = node.parentElement, text = node.textContent.trim();
  if (!text || !element.getClientRects().length || element.tagName === 'title') continue;
  const style = getComputedStyle(element);
  const colour = rgba(element instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
  result.push([(a + 0.05) / (b + 0.05), text.slice(0, 40)]);
}
return result;
"""


class Browser:
    """A browser window; `open` shows a page in it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = DESKTOP, dark: bool = False, media: str = "screen") -> None:
        """Show a page anew.

        Args:
            page: the HTML file.
            width: of the window, in pixels.
            dark: whether the user prefers dark pages.
            media: "screen" or "print".
        """
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.driver.get(page.resolve().as_uri())

    def _call(self, command: str, **arguments: object) -> dict[str, Any]:
        """Call the DevTools protocol."""
        result: dict[str, Any] = self.driver.execute_cdp_cmd(command, arguments)
        return result

    def ask(self, script: str) -> Any:
        """What a function body in JavaScript returns."""
        return self.driver.execute_script(script)

    def count(self, selector: str) -> int:
        """The number of elements that a CSS selector finds."""
        return int(self.ask(f"return document.querySelectorAll({json.dumps(selector)}).length"))

    def text(self, selector: str) -> str:
        """The text of the first element that a CSS selector finds."""
        return str(self.ask(f"return document.querySelector({json.dumps(selector)}).innerText"))

    def console(self) -> list[str]:
        """What the console has been told since the last call: errors and warnings of the page."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call, but for data in the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        found = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [address for address in found if not address.startswith("data:")]

    def contrasts(self) -> list[tuple[float, str]]:
        """The contrast of each visible text with what is behind it, by the formula of the WCAG, and its beginning."""
        return [(ratio, text) for ratio, text in self.ask(_CONTRAST)]

    def screenshot(self, height: int | None = None) -> bytes:
        """The page as PNG: all of it, or its first `height` pixels."""
        width, whole = self.ask("const e = document.documentElement; return [innerWidth, e.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height or whole, whole), "scale": 1}
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"])


@contextmanager
def browser() -> Iterator[Browser]:
    """A new browser, with a profile of its own; skips the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from selenium import webdriver

    with TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            window.get("about:blank")  # not the page that new windows show
            yield Browser(window)
        finally:
            window.quit()
