"""A report as one self-contained HTML page: without scripts, without requests, with our own markup alone."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from kilolayer.report import svg_markup
from kilolayer.report.clean_text import replace_unprintable
from kilolayer.report.document import Figure, Item, Matrix, Page, Picture, Table
from kilolayer.report.extra import report_extra
from kilolayer.system import durable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


_SHORT = 26
"""A cell of at most so many characters stands on one line."""


ITEM_WORDS = {
    "Table": "Table",
    "Matrix": "Table",
    "Figure": "Figure",
    "Gallery": "Figure",
    "Listing": "Listing",
}
"""The word for each kind of item, as in "Table 2"."""


@dataclass(frozen=True)
class _Numbered:
    """An item with its number, for the template."""

    kind: str
    number: int
    item: Item
    drawing: Markup | None = None

    @property
    def word(self) -> str:
        return ITEM_WORDS[self.kind]

    @property
    def anchor(self) -> str:
        return f"{self.word.lower()}-{self.number}"


def render_page(page: Page) -> str:
    """The page as HTML, with all of its text escaped.

    >>> render_page(Page("a < b")).count("a &lt; b")
    2

    Raises:
        ValueError: a figure is not a drawing of `kilolayer.report.plots`.
    """
    with report_extra():
        from markupsafe import Markup
    counts = {label: count(1) for label in ITEM_WORDS.values()}

    def number_item(item: Item) -> _Numbered:
        kind = type(item).__name__
        drawing = Markup(svg_markup.validate_svg(item.svg)) if isinstance(item, Figure) else None  # noqa: S704 (checked)
        content = item.without_empty_columns() if isinstance(item, Table) else item
        return _Numbered(kind, next(counts[ITEM_WORDS[kind]]), content, drawing)

    sections = [(section, [number_item(item) for item in section.items]) for section in page.sections]
    template = template_environment().from_string(_text("page.html.j2"))
    return template.render(page=page, sections=sections, css=Markup(_text("page.css")))  # noqa: S704 (ours)


def write_page(page: Page, path: Path) -> Path:
    """Write the page to `path`, completely or not at all, and return the path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_page(Page("Report"), Path(folder) / "report.html").name
    'report.html'

    Raises:
        InputError: the path cannot be written.
    """
    durable.write_file(path, render_page(page).encode())
    return path


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def template_environment() -> Environment:
    """The template environment of all pages: it escapes all text, and replaces unprintable characters."""
    with report_extra():
        from jinja2 import Environment, StrictUndefined
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean_value,
    )
    environment.filters |= {"cells": _cells, "shares": _shares, "data_uri": _data_uri, "typeset": typeset}
    return environment


_INDEX = re.compile(r"(?<!\w)([^\W\d_]′?)_([lLi])(?!\w)")
"""A unit's index, as in x_l and x_L; a name such as test_error or run_1 does not match."""


def typeset(text: str) -> Markup:
    """The text, escaped, with indices as subscripts."""
    with report_extra():
        from markupsafe import Markup, escape
    escaped = str(escape(replace_unprintable(text)))
    return Markup(_INDEX.sub(r"\1<sub>\2</sub>", escaped))  # noqa: S704


def _clean_value(value: object) -> object:
    # Markup is a subclass of str and comes from us.
    return replace_unprintable(value) if type(value) is str else value


def _cells(table: Table, row: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each cell of a row, with its CSS classes: numbers align to the right, short cells stay on one line."""
    for numeric, cell in zip(table.numeric, row, strict=True):
        yield ("number" if numeric else "words") + (" short" if len(cell) <= _SHORT else ""), cell


@dataclass(frozen=True)
class _Share:
    """A cell of a matrix: its count, its percentage of the row, and its shade, from 0 to 9."""

    count: str
    percent: str
    shade: int
    kind: str


def _shares(matrix: Matrix) -> Iterator[tuple[str, list[_Share]]]:
    for row, counts in zip(matrix.rows, matrix.counts, strict=True):
        total = sum(counts) or 1
        yield (
            row,
            [
                _Share(
                    f"{count:,}",
                    f"{100 * count / total:.1f} %" if count else "",
                    math.ceil(9 * count / total),
                    "right" if row == column else "wrong",
                )
                for column, count in zip(matrix.columns, counts, strict=True)
            ],
        )


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
