"""A real browser without a window, for the pages that run scripts, and what it saw."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
SIZES = ((1280, 900), (400, 800))
DEADLINE = 60
"""Seconds after which nothing is waited for any more."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; skips the tests, saying why, where it or the library that drives it is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="drives the browser: pip install 'kilolayer[browser]'"
    )
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """What a page asked for, and what it complained of."""

    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, address: str, **context: Any) -> Iterator[tuple[Page, Seen]]:
    """The page at `address` in a fresh context, 1280 × 900 unless told otherwise."""
    seen = Seen()
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context)
    try:
        page = made.new_page()
        page.set_default_timeout(1000 * DEADLINE)
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.faults.append(str(error)))
        page.on("dialog", lambda dialog: (seen.faults.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda said: seen.faults.append(said.text) if said.type == "error" else None)
        page.goto(address)
        yield page, seen
    finally:
        made.close()


def says(part: Locator, pattern: str) -> None:
    """Waits until the part's text matches; waiting by a script is what a page's policy forbids."""
    from playwright.sync_api import expect

    expect(part).to_have_text(re.compile(pattern), timeout=1000 * DEADLINE)


def until(met: Callable[[], bool]) -> None:
    """Waits for what is not a text."""
    end = time.monotonic() + DEADLINE
    while not met():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def wide(page: Page) -> bool:
    """Whether the page has to be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def clipped(page: Page) -> list[str]:
    """Texts that are wider than the box they stand in and cannot be scrolled to."""
    found: list[str] = page.evaluate("""
        [...document.querySelectorAll("h1, h2, h3, p, li, label, button, figcaption, output, select")]
          .filter(part => part.offsetParent && part.scrollWidth > part.clientWidth + 1 && part.clientWidth)
          .map(part => part.textContent)""")
    return found
