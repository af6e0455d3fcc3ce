"""What a report consists of: plain values, independent of the format they are shown in."""

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
    """Rows of plain text under a header; every row is as long as the header."""

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
        """The table without the columns that hold no value in any row; the first one names the rows."""
        columns = [
            column
            for column in range(len(self.header))
            if not column or not self.rows or any(row[column].strip() not in _ABSENT for row in self.rows)
        ]
        rows = tuple(tuple(row[column] for column in columns) for row in self.rows)
        return replace(self, header=tuple(self.header[column] for column in columns), rows=rows)

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds numbers and is therefore set flush right."""
        return tuple(_is_numeric([row[column] for row in self.rows]) for column in range(len(self.header)))


@dataclass(frozen=True)
class Figure:
    """A drawing of `kilolayer.report.plots`, with what it shows in words for those who cannot see it."""

    caption: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Listing:
    """Preformatted text: a command, a configuration, an environment."""

    caption: str
    text: str


@dataclass(frozen=True)
class Matrix:
    """Counts by two kinds of classes, each row's in percent of it too: a confusion matrix.

    counts[i][j] belongs to `rows[i]` and `columns[j]`; where the two names are equal, the answer is right.
    """

    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG and what is to be said of it, a line each."""

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
    """A heading, its paragraphs, then its tables, figures and listings."""

    title: str
    text: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Page:
    """A whole report. `provenance` are (what, value) pairs: command, version, machine, date."""

    title: str
    subtitle: str = ""
    sections: tuple[Section, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number, perhaps with a sign, an uncertainty or a unit: `6.61 ± 0.16`."""
    return len(cell) < 60 and _NUMBER.fullmatch(cell.strip()) is not None


def _is_numeric(cells: list[str]) -> bool:
    values = [cell for cell in cells if cell.strip() not in _NOTHING]
    return bool(values) and all(is_number(cell) for cell in values)
