"""Every decimal of the documentation is in the result file named for it, or is recognisably no result."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from documentation_decimals import RESULTS, ROOT, Found, decimals, fields, of_one_field, on_file
from kilolayer.papers import cells

PAGES = [
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]
BEFORE_NO_RESULT = re.compile(
    r"(?:PyTorch|Python|Triton|NumPy|capability|Apache|CC BY|Sec\.|(?:PyTorch|Python) [\d., or]*|"
    r"λ [=≈]|[Rr]ate|peak(?: is)?|multiplied by|shortcut of|factor of)\s*$"
)
"""What stands before a version, a section's number or a setting."""
A_PAPER = re.compile(r"\bP1|\bP2|\bPX|paper|Table|summary|blog|chapter")
PRINTED = {
    f"{value:.{cell.published.digits}f}"
    for cell in cells()
    for value in (cell.reported, cell.published.mean, cell.std, cell.counted)
    if value is not None
}


def _marks() -> dict[tuple[str, str], str]:
    """tests/decimals_elsewhere.tsv: why a page's decimal is in no result file, by page and decimal."""
    lines = Path(__file__).with_name("decimals_elsewhere.tsv").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return {(page, decimal): why for page, numbers, why in rows for decimal in numbers.split()}


MARKS = _marks()
EVERY = [found for page in PAGES for found in decimals(page)]


def _elsewhere(found: Found) -> str:
    """Why a decimal need not be in a result file; empty if it must be."""
    if BEFORE_NO_RESULT.search(found.before):
        return "a version, a section or a setting"
    if found.decimal in PRINTED and A_PAPER.search(found.block):
        return "a paper's"
    if "/log/" in found.page and "by hand" in found.block:
        return "not on file"
    return MARKS.get((found.page, found.decimal), "")


def test_every_decimal_is_in_the_file_that_is_named_for_it() -> None:
    assert len(EVERY) > 700
    lost = [one for one in EVERY if not on_file(one) and not _elsewhere(one)]
    assert not [
        f"{one.page}:{one.line}: {one.decimal} is not in {one.files}: {one.text[:80]}" for one in lost
    ]


def test_most_decimals_are_results_and_a_mark_is_for_no_other() -> None:
    assert sum(map(on_file, EVERY)) > 0.6 * len(EVERY)
    needed = {(one.page, one.decimal) for one in EVERY if not on_file(one)}
    assert set(MARKS) - needed == set()


def test_arithmetic_that_a_mark_states_is_right() -> None:
    sums = {key: why for key, why in MARKS.items() if why.startswith("=")}
    assert len(sums) >= 10
    for (page, decimal), why in sums.items():
        text = (ROOT / page).read_text(encoding="utf-8").replace(",", "")
        operands = re.findall(r"\d+(?:\.\d+)?", why)
        assert all(operand in text for operand in operands), (page, why)
        value = eval(why.removeprefix("=").replace("^", "**"), {"__builtins__": {}})  # noqa: S307 - ours
        assert abs(value - float(decimal)) <= 0.5001 * 10.0 ** -len(decimal.partition(".")[2]), (
            page,
            decimal,
        )


def _starts(name: str) -> Callable[[dict[str, Any]], float]:
    def mean(result: dict[str, Any]) -> float:
        of_starts = [
            start["signal"][-1] if name == "signal" else start["gradient"][0] / start["gradient"][-1]
            for start in result["starts"]
        ]
        return math.exp(sum(map(math.log, of_starts)) / len(of_starts))

    return mean


def _branches(result: dict[str, Any]) -> float:
    """The mean length of paths, each weighted by its share of the squared gradient."""
    weights = [norm**2 for norm in result["gradients"]["together"]]
    return sum(length * weight for length, weight in enumerate(weights)) / sum(weights)


@pytest.mark.parametrize(
    ("page", "file", "of_result", "figures"),
    [
        ("propagation", "depth-110/initialisation", _starts("signal"), ("27.5", "18.4", "0.504")),
        ("propagation", "depth-110/initialisation", _starts("gradient"), ("43.9", "42.9", "1.68·10⁷")),
        ("propagation", "depth-110/paths", _branches, ("9.87", "9.93")),
    ],
)
def test_means_over_a_file_are_as_the_page_says(
    page: str, file: str, of_result: Callable[[dict[str, Any]], float], figures: tuple[str, ...]
) -> None:
    results = json.loads((RESULTS / "analyses" / f"{file}.json").read_text(encoding="utf-8"))["results"]
    text = (ROOT / "docs" / "theory" / f"{page}.md").read_text(encoding="utf-8")
    for result, figure in zip(results, figures, strict=False):
        number, _, power = figure.partition("·10")
        value = of_result(result) / (1e7 if power else 1.0)
        assert f"{value:.{len(number.partition('.')[2])}f}" == number
        assert figure in text


def test_a_wrong_file_and_a_wrong_digit_are_found() -> None:
    ours = [one for one in EVERY if one.page == "docs/results/tables-1-2.md" and on_file(one)]
    assert len(ours) > 40
    wrong_file = [replace(one, files=("unit-kernels.json",)) for one in ours]
    assert sum(map(on_file, wrong_file)) < 0.3 * len(ours)
    digits = [one for one in EVERY if on_file(one) and len(one.decimal) >= 5]
    moved = [replace(one, decimal=str(Decimal(one.decimal) + Decimal("0.07"))) for one in digits]
    assert sum(map(on_file, moved)) < 0.3 * len(digits)


TABLES = [one for one in EVERY if one.text.startswith("|") and on_file(one)]
SCATTERED = Path(__file__).with_name("scattered_decimals.tsv")
"""The decimals of tables whose column and row are no one field of a result file: page, decimals."""


def test_a_column_or_a_row_of_a_table_is_one_field_of_a_file() -> None:
    rows = [line.split("\t") for line in SCATTERED.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    known = {(page, decimal) for page, decimals in rows for decimal in decimals.split()}
    together = of_one_field(TABLES)
    scattered = {(o.page, o.decimal) for o in TABLES if (o.page, o.line, o.decimal) not in together}
    assert len(together) > 5 * len(scattered)
    assert scattered - known == set()
    assert known - scattered == set()


def test_a_wrong_digit_of_a_short_number_breaks_its_column() -> None:
    """A number of two digits stands in most files by chance: with its column in one field it rarely does."""
    columns: dict[tuple[str, str, int], list[Found]] = {}
    for one in TABLES:
        columns.setdefault((one.page, one.block, one.before.count("|")), []).append(one)
    moved, missed, missed_alone = 0, 0, 0
    for column in columns.values():
        common = set.intersection(*map(fields, column)) if len(column) > 1 else set()
        for one in column if common else ():
            others = [fields(other) for other in column if other is not one]
            if len(one.decimal.replace(".", "").lstrip("0")) <= 2:
                for step in (-3, -1, 1, 3):
                    value = Decimal(one.decimal) + step * Decimal(1).scaleb(
                        -len(one.decimal.partition(".")[2])
                    )
                    wrong = replace(one, decimal=str(abs(value)))
                    moved, missed_alone = moved + 1, missed_alone + on_file(wrong)
                    missed += bool(fields(wrong) & set.intersection(*others))
    assert moved > 200
    assert missed < 0.45 * moved, (missed, missed_alone, moved)
    assert missed < 0.75 * missed_alone, (missed, missed_alone, moved)
