"""The parts of a report as plain values, independent of the output format."""

import re
from dataclasses import dataclass, replace
from functools import cached_property

_NUMBER = re.compile(
    r"[≈~<>≤≥]?\s?[-+−]?\d[\d,\u2009\u202f ]*(\.\d+)?([eE][-+]?\d+)?(\s?±\s?\d+(\.\d+)?)?\s?[%×kMGT]?"
    r"(\s?\([-+−]?[\d.]+%?\))?"
)
_NOTHING = {"", "-", "–", "—", "n/a", "nan", "NaN", "inf", "none", "None", "fail", "failed", "diverged"}

_ABSENT = {"", "-", "–", "—"}


@dataclass(frozen=True)
class Table:
    """Rows of plain text under a header.

    >>> Table("Errors.", ("unit", "error"), (("original", "6.61"), ("proposed", "6.37"))).numeric
    (False, True)

    Raises:
        ValueError: a row and the header differ in length.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.header):
                raise ValueError(
                    f"Table.rows: row {number} has {len(row)} cells, but the header has {len(self.header)}"
                )

    def without_empty_columns(self) -> "Table":
        """The table without its empty columns. The first column stays, since it names the rows."""
        columns = [
            column
            for column in range(len(self.header))
            if not column or not self.rows or any(row[column].strip() not in _ABSENT for row in self.rows)
        ]
        rows = tuple(tuple(row[column] for column in columns) for row in self.rows)
        return replace(self, header=tuple(self.header[column] for column in columns), rows=rows)

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds numbers, which are aligned to the right."""
        return tuple(_is_numeric([row[column] for row in self.rows]) for column in range(len(self.header)))


@dataclass(frozen=True)
class Figure:
    """A drawing of `kilolayer.report.plots`, with a description for readers who cannot see it.

    >>> Figure("Training.", "<svg …/>", alt="Both errors fall.").alt
    'Both errors fall.'
    """

    caption: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Listing:
    """Preformatted text, such as a command or a configuration.

    >>> Listing("Command.", "kilolayer train").text
    'kilolayer train'
    """

    caption: str
    text: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: counts, shown with their percentage of the row.

    `counts[i][j]` belongs to the classes `rows[i]` and `columns[j]`; the answer is right where these are
    equal.
    """

    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG and the lines of text below it."""

    png: bytes
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    caption: str
    pictures: tuple[Picture, ...]


Item = Table | Figure | Listing | Matrix | Gallery


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and then tables, figures and listings.

    >>> Section("Training", ("Two runs.",)).text
    ('Two runs.',)
    """

    title: str
    text: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Page:
    """A whole report. `provenance` are pairs of name and value: command, version, machine, date.

    >>> Page("ResNet-110", sections=(Section("Training"),)).title
    'ResNet-110'
    """

    title: str
    subtitle: str = ""
    sections: tuple[Section, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()


def is_number(cell: str) -> bool:
    """Whether a cell is a number, possibly with a sign, an uncertainty or a unit.

    >>> is_number("6.61 ± 0.16"), is_number("−3"), is_number("two")
    (True, True, False)
    """
    return len(cell) < 60 and _NUMBER.fullmatch(cell.strip()) is not None


def _is_numeric(cells: list[str]) -> bool:
    values = [cell for cell in cells if cell.strip() not in _NOTHING]
    return bool(values) and all(is_number(cell) for cell in values)
