"""The page of `evaluate --html` in a real browser: nothing is fetched, clipped, or wider than the window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browsing import SIZES, chromium, clipped, opened, wide
from kilolayer.report.evaluation_page import write_evaluation_page
from test_evaluate import example

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
NAMES = ("<script>alert(1)</script>", "a, b", "=1+1", "a very long name of a class that never seems to end")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(
    scheme: str, size: tuple[int, int], classes: int, browser: Browser, tmp_path: Path
) -> None:
    names = (*NAMES, *(f"class {i}" for i in range(classes)))[:classes]
    where = "'/home/somebody/pictures/holiday/<b>IMG_2031.jpeg'"
    path = write_evaluation_page(example(names, 3 * classes, where), "runs/mine", tmp_path / "page.html")
    viewport = dict(zip(("width", "height"), size, strict=True))
    with opened(browser, path.as_uri(), viewport=viewport, color_scheme=scheme) as (page, seen):
        assert seen.faults == []
        assert [one for one in seen.requests if not one.startswith("data:")] == [path.as_uri()]
        assert not wide(page)
        assert clipped(page) == []
        assert page.locator("ul.pictures img").count() == min(24, -(-3 * classes // 4))
        loaded = page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert loaded
