"""Every figure and file that the documentation names exists, and every result says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
RESULTS = [page for page in sorted((DOCS / "results").glob("*.md")) if page.name != "index.md"]
FACTS = ("Command", "Machine", "Date", "File")


def images(page: Path) -> list[Path]:
    found = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    return [(page.parent / name).resolve() for name in found if "://" not in name]


def test_every_figure_exists_and_is_shown() -> None:
    shown = {image for page in [*PAGES, ROOT / "README.md"] for image in images(page)}
    assert not [str(image) for image in shown if not image.exists()]
    assert {figure for figure in (DOCS / "_static").glob("*.svg") if figure not in shown} == set()


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_a_result_has_a_figure_and_names_command_machine_date_and_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(images(page)) == 1
    for fact in FACTS:
        assert re.search(rf"^- \*\*{fact}s?\*\*: ", text, re.MULTILINE), fact


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_files_under_results_that_a_page_names_exist(page: Path) -> None:
    if "log" in page.parts:
        return  # the log names files of its day
    for name in re.findall(r"`(results/[^`\s]+)`", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists() or "gpu-first" in name, name


def test_the_walks_through_the_code_name_what_is_there() -> None:
    """Rows of docs/contribute/architecture.md: `| … | `FILE` | `NAME` |`, and files in other tables."""
    source, text = (
        ROOT / "src" / "kilolayer",
        (DOCS / "contribute" / "architecture.md").read_text(encoding="utf-8"),
    )
    walks = re.findall(r"^\| \d+\. .* \| `(.+?)` \| `(.+?)` \|$", text, re.MULTILINE)
    assert len(walks) >= 20
    for file, name in walks:
        assert re.search(rf"(def|class) {name}\b", (source / file).read_text(encoding="utf-8")), (file, name)
    assert [
        file
        for file in re.findall(r"`([a-z_/]+\.py)`", text)
        if "/" in file and "tests" not in file and not (source / file).exists()
    ] == []
