"""What the interactive page of analyses does in a browser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browsing import SIZES, chromium, clipped, opened, says, until, wide
from kilolayer.chart import Chart
from kilolayer.report import lab
from test_lab_page import BOTH, UNITS, Fading
from test_report_page import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lab.write_lab(BOTH, tmp_path_factory.mktemp("lab") / "page.html").as_uri()


def readings(page: Page) -> list[str]:
    return [reading.inner_text() for reading in page.locator(".reading").all()]


def curve(page: Page) -> str | None:
    """The first line of the first chart, as it is drawn."""
    return page.locator(".chart .js-line").first.get_attribute("d")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_opens_without_a_fault_or_a_request(
    browser: Browser, address: str, size: tuple[int, int], scheme: Any
) -> None:
    width, height = size
    shape = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    with opened(browser, address, **shape) as (page, seen):
        page.mouse.wheel(0, 5000)
        page.locator("details summary").first.click()
        assert not wide(page)
        assert not clipped(page)
        first, second = (figure.bounding_box() for figure in page.locator("figure").all())
        assert first
        assert second
        stacked = first["y"] + first["height"] <= second["y"]
        assert stacked is (width == 400)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(22, 23, 26)") is (scheme == "dark")
        # No bar of tools, and no way to the makers of the library.
        assert page.locator(".modebar-btn, a, [href^=http]").count() == 0
    assert seen.faults == []
    assert seen.requests == [address]


def test_charts_follow_the_window_and_the_colours(browser: Browser, address: str) -> None:
    with opened(browser, address) as (page, seen):
        line, drawing = page.locator(".chart .js-line").first, page.locator(".chart .main-svg").first
        light = line.evaluate("line => getComputedStyle(line).stroke")
        page.emulate_media(color_scheme="dark")
        until(lambda: line.evaluate("line => getComputedStyle(line).stroke") != light)
        page.set_viewport_size({"width": 400, "height": 800})
        until(lambda: float(drawing.get_attribute("width") or 0) < 400)
        assert not wide(page)
    assert seen.faults == []


def test_the_slider_moves_curves_and_figures(browser: Browser, address: str) -> None:
    with opened(browser, address) as (page, seen):
        cell = page.locator("#figure-0-0")
        assert page.locator("#iteration").inner_text() == "iteration 100"
        assert cell.inner_text() == "0.0002"
        late = curve(page)
        page.locator("#time").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#iteration").inner_text() == "iteration 0"
        assert cell.inner_text() == "0.0156"
        assert page.locator(".when").all_inner_texts() == ["iteration 0"] * 2
        assert curve(page) != late
        page.keyboard.press("ArrowRight")
        assert curve(page) == late
    assert seen.faults == []


def test_pointing_at_a_curve_tells_its_values_in_every_network(browser: Browser, address: str) -> None:
    with opened(browser, address) as (page, _):
        box = page.locator(".chart").first.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] - 24, box["y"] + box["height"] / 2)
        told = "unit 6 · gradient: 1.25 · gradient, predicted: 1 · weights gradient: 3"
        for reading in page.locator(".reading").all():
            says(reading, f"^{told}$")
        for label in page.locator(".chart .hoverlayer").all():
            says(label, "unit 6.*gradient: 1.25.*gradient, predicted: 1.*weights gradient: 3")
        page.mouse.move(2, 2)
        for reading in page.locator(".reading").all():
            says(reading, "^$")


def test_a_touch_tells_the_values(browser: Browser, address: str) -> None:
    shape = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}
    with opened(browser, address, **shape) as (page, seen):
        page.locator(".chart").first.scroll_into_view_if_needed()
        box = page.locator(".chart").first.bounding_box()
        assert box
        page.touchscreen.tap(box["x"] + box["width"] - 24, box["y"] + box["height"] / 2)
        says(page.locator(".reading").first, "^unit 6 · gradient: 1.25")
    assert seen.faults == []


def test_the_arrow_keys_walk_along_the_curves(browser: Browser, address: str) -> None:
    with opened(browser, address) as (page, _):
        page.locator(".chart").first.focus()
        page.keyboard.press("ArrowRight")
        assert readings(page)[0].startswith("unit 1 · gradient: 0.00122")
        page.keyboard.press("ArrowRight")
        assert [reading[:6] for reading in readings(page)] == ["unit 2", "unit 2"]
        page.keyboard.press("End")
        assert readings(page)[1].startswith("unit 6")
        page.keyboard.press("Escape")
        assert readings(page) == ["", ""]


def test_a_curve_can_be_hidden_in_every_network(browser: Browser, address: str) -> None:
    with opened(browser, address) as (page, _):
        button = page.get_by_role("button", name="gradient, predicted", exact=True)
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "false"
        page.locator(".chart").first.focus()
        page.keyboard.press("Home")
        assert all("predicted" not in reading and "weights" in reading for reading in readings(page))
        page.locator("#time").focus()
        page.keyboard.press("ArrowLeft")
        # Two of three series are left: a line and a set of markers each, in two charts.
        assert page.locator(".chart .trace").count() == 8


def test_the_numbers_are_a_table_under_a_fold(browser: Browser, address: str) -> None:
    with opened(browser, address) as (page, _):
        table = page.locator("details table").first
        served = table.evaluate(
            "table => [...table.rows].map(row => [...row.cells].map(at => at.textContent))"
        )
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        page.locator("details[open]").wait_for()

        def rows() -> list[list[str]]:
            return [row.locator("th, td").all_inner_texts() for row in table.locator("tr").all()]

        assert rows()[0] == ["unit", "gradient", "gradient, predicted", "weights gradient"]
        assert rows()[UNITS] == ["6", "1.25", "1", "3"]
        page.locator("#time").focus()
        page.keyboard.press("ArrowLeft")
        assert rows()[UNITS - 1] == ["5", "0.625", "0.5", "1.5"]
        # The script writes the numbers as the page held them before.
        page.keyboard.press("ArrowRight")
        assert rows() == served


def test_curves_are_told_apart_without_colour(browser: Browser, address: str) -> None:
    with opened(browser, address) as (page, _):
        lines = page.evaluate("panels[0].chart.div.data")
        dashes = [trace["line"]["dash"] for trace in lines[::2]]
        marks = [trace["marker"] for trace in lines[1::2]]
    assert dashes == ["solid", "6px,4px", "solid"]
    assert [mark["color"] == mark["line"]["color"] for mark in marks] == [True, False, True]
    assert marks[0]["symbol"] == marks[1]["symbol"] != marks[2]["symbol"]


@dataclass(frozen=True)
class Named(Fading):
    """A name stands along both axes, too."""

    def charts(self) -> tuple[Chart, ...]:
        return tuple(replace(chart, x_label=self.text) for chart in super().charts())


@pytest.mark.parametrize(
    "name", ["<b>bold</b> <a href='https://evil.example'>link</a>", "&lt;i&gt; & %{y} %{x}", "$x^2$ <br>"]
)
def test_a_name_is_shown_as_it_is_where_plotly_would_read_html(
    browser: Browser, tmp_path: Path, name: str
) -> None:
    path = lab.write_lab([(None, Named("net", text=name))], tmp_path / "page.html")
    with opened(browser, path.as_uri()) as (page, seen):
        page.locator(".chart").focus()
        page.keyboard.press("End")
        for axis in ("x", "y"):
            assert page.locator(f".chart .{axis}title").text_content() == name
        until(lambda: page.locator(".chart .hoverlayer .legendtext").count() == 3)
        assert page.locator(".chart .hoverlayer .legendtitletext").text_content() == f"{name} 6"
        assert page.locator(".chart .hoverlayer .legendtext").first.text_content() == f"{name}: 1.25"
        assert page.locator("a").count() == 0
    assert seen.faults == []


def test_hostile_names_are_shown_and_do_nothing(browser: Browser, tmp_path: Path) -> None:
    for start in range(0, len(HOSTILE), 20):
        frames = [(None, Fading("n" + text, text=text)) for text in HOSTILE[start : start + 20]]
        path = lab.write_lab(frames, tmp_path / "page.html", title=HOSTILE[start])
        with opened(browser, path.as_uri()) as (page, seen):
            page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
            page.locator(".chart").first.focus()
            page.keyboard.press("ArrowRight")
            assert page.locator(".legend button").count() == 3 * 20 or start
            assert page.locator("script").count() == 4
            assert page.locator("img, iframe, form, a").count() == 0
        assert seen.faults == []
        assert seen.requests == [path.as_uri()]


def test_no_line_of_a_chart_joins_two_stages_and_every_point_is_in_sight(
    browser: Browser, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Staged(Fading):
        def charts(self) -> tuple[Chart, ...]:
            (chart,) = super().charts()
            return (replace(chart, stages=(3.0, 5.0)),)

    path = lab.write_lab([(0, Staged("net")), (100, Staged("net", 0.25))], tmp_path / "page.html")
    with opened(browser, path.as_uri()) as (page, seen):
        (lines, shapes, (low, high)) = page.evaluate("""() => {
            const {data, layout, _fullLayout} = document.querySelector(".chart");
            return [data.filter(trace => trace.mode === "lines").map(({x, y}) => [x, y]), layout.shapes,
                    _fullLayout.yaxis.range];
        }""")
        assert [shape["x0"] for shape in shapes] == [2.5, 4.5]
        for x, y in lines:
            assert x == [1, 2, 2.5, 3, 4, 4.5, 5, 6]
            assert [value is None for value in y] == [at in (2.5, 4.5) for at in x]
            assert all(low <= math.log10(value) <= high for value in y if value is not None)
        page.locator("details summary").first.click()
        assert page.locator("details tbody tr").count() == UNITS
        assert not seen.faults
