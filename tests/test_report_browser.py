"""The report pages in a browser: nothing is cut off or asked for, wide or narrow, light or dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browsing import SIZES, chromium, clipped, opened, wide
from kilolayer.__main__ import main
from kilolayer.cli.demo import DemoOptions, execute
from kilolayer.report.document import Page, Section, Table
from kilolayer.report.page import write_page
from test_reproduce_findings import SMOKE, as_in_the_paper, pretend

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def of_a_sweep(folder: Path) -> Path:
    pretend(replace(SMOKE, tables=("p2-table-1", "p2-table-3")), folder, as_in_the_paper)
    assert main(["report", str(folder)]) == 0
    return folder


def of_runs(folder: Path) -> Path:
    runs = pretend(SMOKE, folder, as_in_the_paper).folder / "runs"
    assert main(["report", str(runs)]) == 0
    return runs


def of_a_run(folder: Path) -> Path:
    small = "--model resnet8_cifar --subset 64 --batch-size 16 --epochs 3 --threads 1 --no-tensorboard"
    assert main(["train", *small.split(), "--snapshots", "2", "--out", str(folder / "run")]) == 0
    assert main(["report", str(folder / "run")]) == 0
    return folder / "run"


def of_the_demo(folder: Path) -> Path:
    assert execute(DemoOptions(depths=(8, 14), iterations=46, out=folder / "demo")) == 0
    return folder / "demo"


PAGES = {"sweep": of_a_sweep, "runs": of_runs, "run": of_a_run, "demo": of_the_demo}


@pytest.fixture(scope="module", params=PAGES.values(), ids=PAGES)
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    made: Callable[[Path], Path] = request.param
    return (made(tmp_path_factory.mktemp("report")) / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_report_fits_any_window_and_theme(
    browser: Browser, address: str, size: tuple[int, int], scheme: Any
) -> None:
    width, height = size
    shape = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    with opened(browser, address, **shape) as (page, seen):
        assert not wide(page)
        assert not clipped(page)
        assert not seen.faults
        assert seen.requests == [address]
        # No text of a figure is drawn beyond the figure.
        beyond = page.evaluate("""() => [...document.querySelectorAll(".plot svg")].flatMap(svg => {
            const box = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text")].filter(text => {
              const {left, right, top, bottom} = text.getBoundingClientRect();
              return Math.min(left - box.left, box.right - right, top - box.top, box.bottom - bottom) < -1;
            }).map(text => text.textContent);
        })""")
        assert beyond == []


def test_a_table_uses_the_window(browser: Browser, tmp_path: Path) -> None:
    """What is wider than the text is not to be scrolled where the window has room for it."""
    cells = tuple(f"a column {number}" for number in range(10))
    path = write_page(
        Page("t", sections=(Section("s", items=(Table("t", cells, (cells,)),)),)), tmp_path / "t.html"
    )
    shape: Any = {"viewport": {"width": 1280, "height": 800}}
    with opened(browser, path.as_uri(), **shape) as (page, _):
        assert not page.evaluate("""[...document.querySelectorAll(".scroll")].some(box =>
          box.scrollWidth > box.clientWidth)""")
