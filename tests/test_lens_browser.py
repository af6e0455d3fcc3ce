"""The lens' page in a browser, from a server that runs as the user starts it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from browsing import SIZES, chromium, clipped, opened, says, wide
from kilolayer.system.stopping import STOPPED_STATUS
from test_report_page import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DEADLINE = 120
"""Seconds that nothing here takes."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a lens that runs; at the end Ctrl-C has to end it."""
    pytest.importorskip("uvicorn")
    words = (sys.executable, "-m", "kilolayer", "lens", "--no-browser")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.match(r"lens: (http://127\.0\.0\.1:\d+/) ", process.stdout.readline())
        assert found, process.communicate()[1]
        yield found[1]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
        assert (process.returncode, said) == (STOPPED_STATUS, "")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def address(server: str, **words: Any) -> str:
    return server + "?" + urlencode({"depth": 20, "width": 4} | words)


def wait_measured(page: Any) -> None:
    says(page.locator("#state"), "^Measured")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_lens_opens_without_a_fault(browser: Browser, server: str, size: Any, scheme: Any) -> None:
    shape = {"viewport": {"width": size[0], "height": size[1]}, "color_scheme": scheme}
    with opened(browser, address(server), **shape) as (page, seen):
        wait_measured(page)
        assert not wide(page)
        assert not clipped(page)
        assert page.locator("#drawing svg").count() == 1
        assert page.locator("#error").is_hidden()
    assert seen.faults == []
    assert [re.split(r"[?-]", url.removeprefix(server))[0] for url in seen.requests] == [
        "",
        "plotly",
        "predict",
        "measure",
    ]


def test_the_lens_answers_a_change(browser: Browser, server: str) -> None:
    with opened(browser, address(server, shortcut="scaled", scale=0.9)) as (page, seen):
        wait_measured(page)
        assert page.locator("#meaning").inner_text().startswith("0.99 = 0.39 of the signal")
        before = page.evaluate("places.map(place => place.frame.curves)")
        page.locator("#scale").fill("0.5")
        says(page.locator("#meaning"), r"^0\.59 = 0\.002")
        wait_measured(page)
        after = page.evaluate("places.map(place => place.frame.curves)")
        assert json.dumps(before) != json.dumps(after)
        assert page.evaluate("location.search").endswith(
            "scale=0.5&branch=basic&depth=20&width=4&images=noise"
        )
        # Whoever gets the address sees the same.
        page.reload()
        wait_measured(page)
        assert page.locator("#scale").input_value() == "0.5"
        assert page.evaluate("places.map(place => place.frame.curves)") == after
    assert seen.faults == []


def test_the_lens_shows_only_what_the_shortcut_has(browser: Browser, server: str) -> None:
    with opened(browser, address(server)) as (page, _):
        for shortcut, shown in (("identity", []), ("exclusive_gate", ["bias"]), ("dropout", ["p"])):
            page.locator("#shortcut").select_option(shortcut)
            visible = [name for name in ("scale", "bias", "p") if page.locator(f"#{name}").is_visible()]
            assert visible == shown
        page.locator("#branch").select_option("bottleneck")
        wait_measured(page)
        assert page.locator("#error").is_hidden()
        assert "W3" in page.locator("#equation").inner_text()


def test_the_lens_works_from_the_keyboard(browser: Browser, server: str) -> None:
    with opened(browser, address(server)) as (page, _):
        wait_measured(page)
        page.get_by_label("depth in layers, slider").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#depth").input_value() == "26"
        says(page.locator("#size"), "^12 units")
        wait_measured(page)
        page.locator(".chart").first.focus()
        page.keyboard.press("Home")
        reading = page.locator(".reading").first.inner_text()
        assert re.fullmatch(r"unit l 0 · signal: [\d.]+ · signal, predicted: [\d.]+", reading)


@pytest.mark.parametrize("text", ["many", "-1", HOSTILE[0]])
def test_a_bad_parameter_is_one_clear_line_on_the_page(browser: Browser, server: str, text: str) -> None:
    with opened(browser, address(server, scale=text)) as (page, seen):
        page.locator("#error").wait_for(state="visible")
        assert page.locator("#error").inner_text().startswith("scale is ")
        assert "\n" not in page.locator("#error").inner_text()
        # And it is mended by picking something that can be.
        page.locator("#scale").fill("1")
        wait_measured(page)
        assert page.locator("#error").is_hidden()
    assert [fault for fault in seen.faults if "400" not in fault] == []


def test_only_the_latest_choice_is_measured(browser: Browser, server: str) -> None:
    with opened(browser, address(server, branch="bottleneck", depth=1001, width=16)) as (page, seen):
        says(page.locator("#state"), "^Measuring")
        page.locator("#depth").fill("20")
        wait_measured(page)
        assert page.locator("#size").inner_text().startswith("6 units")
        page.wait_for_load_state("networkidle")
        assert page.locator("#size").inner_text().startswith("6 units")
    assert seen.faults == []
