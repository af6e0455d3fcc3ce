"""The course's pages run, and what they assert holds."""

from __future__ import annotations

from pathlib import Path

import pytest

COURSE = Path(__file__).parents[1] / "docs" / "theory" / "course"
PAGES = sorted(COURSE.glob("*.ipynb"))


def test_the_index_names_every_page() -> None:
    index = (COURSE / "index.md").read_text(encoding="utf-8")
    assert PAGES
    assert [page.name for page in PAGES if f"({page.name})" not in index] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(page, as_version=4)
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
