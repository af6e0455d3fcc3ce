"""A paper's table as rows of values, and its expansion into cells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from kilolayer.papers.plan import Plan
from kilolayer.statistics.published import SINGLE_RUN, PublishedResult, Statistic
from kilolayer.units import Aggregated

Metric = Literal[
    "top-1 error",
    "top-5 error",
    "parameters",
    "multiply-adds",
    "bottleneck width",
    "training curve",
    "layer responses",
]

FAIL = PublishedResult(above=20.0)
"""P2's "fail": a test error above 20 %."""

CURVE = PublishedResult()
"""A curve: which runs it shows is a fact, its points are not printed."""


@dataclass(frozen=True)
class Paper:
    label: str
    title: str
    arxiv: str
    year: int


@dataclass(frozen=True)
class Literature:
    """A row that the paper takes from elsewhere, and why no experiment here reproduces it."""

    reason: str


@dataclass(frozen=True, eq=False)
class EachSetting:
    """A row that stands for several runs: values of what varies, by the name of the setting."""

    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Column:
    """What a column measures, and what it changes in every row's plan."""

    metric: Metric = "top-1 error"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One printed figure. `plans` is empty where it is literature only, for the `reason` given;
    it holds several plans where the paper prints one figure for several settings."""

    table: str
    row: str
    column: str
    metric: Metric
    published: PublishedResult
    plans: tuple[Plan, ...] = ()
    reason: str = ""

    @property
    def reported(self) -> float | None:
        """The printed number: an error in percent, parameters in millions, multiply-adds in 10⁹."""
        return self.published.value

    @property
    def failed(self) -> bool:
        return self.published.failed

    @property
    def std(self) -> float | None:
        return self.published.std

    @property
    def plan(self) -> Plan | None:
        return self.plans[0] if self.plans else None

    @property
    def buildable(self) -> bool:
        return bool(self.plans)

    @property
    def not_yet(self) -> str:
        """Where Kilolayer's run of this cell would differ from the paper's; empty where it would not."""
        return self.plans[0].not_yet if self.plans and self.counted is None else ""

    @property
    def counted(self) -> float | None:
        """The figure where it follows from the description, with nothing to train; else None."""
        if self.plan is None:
            return None
        match self.metric:
            case "parameters":
                return self.plan.network.parameters / 1e6
            case "multiply-adds":
                return self.plan.network.multiply_adds / 1e9
            case "bottleneck width":
                branch = self.plan.unit.branch
                return float(branch.d) if isinstance(branch, Aggregated) else None
            case _:
                return None

    @property
    def slug(self) -> str:
        """A name for files: "p2-table-1--dropout-shortcut--error"."""
        return "--".join(_slug(part) for part in (self.table, self.row, self.column))


def _digits(figure: object) -> int:
    return len(str(figure).partition(".")[2]) if isinstance(figure, float) else 0


def _slug(text: str) -> str:
    spelled = text.lower().replace("−", "minus ").replace("×", "x").replace("…", " to ").replace("@", "at ")
    return re.sub(r"[^a-z0-9.=+_]+", "-", spelled).strip("-")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows beside columns, as printed. Each row is (change, figure, figure, …), a figure per column.

    `change` is the value of the field `vary` of the plan or of its unit, or a mapping of several
    fields, or `Each`, or `Literature`. A figure is a number, a `Published`, or None for a blank.
    `baseline` names the row, or the column, that the others are read against.
    """

    name: str
    paper: Paper
    source: str
    title: str
    base: Plan
    vary: str
    columns: Mapping[str, Column]
    rows: Mapping[str, tuple[Any, ...]]
    statistic: Statistic = SINGLE_RUN
    baseline: str = ""
    note: str = ""

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for label, row in self.rows.items() for cell in self._cells(label, row))

    def cell(self, row: str, column: str) -> Cell:
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The cell that `cell` is compared with: in the baseline's row or column; None for a baseline."""
        for candidate in self.cells:
            beside = (candidate.row, candidate.column) in (
                (self.baseline, cell.column),
                (cell.row, self.baseline),
            )
            if beside and candidate is not cell:
                return candidate
        return None

    def _cells(self, label: str, row: tuple[Any, ...]) -> Iterator[Cell]:
        change, *figures = row
        reason = change.reason if isinstance(change, Literature) else ""
        for index, (name, column) in enumerate(self.columns.items()):
            if figures[index] is None:
                continue
            plans = tuple(plan.with_changes(**column.changes) for plan in self._plans(change))
            published = self._published(figures[index], self._digits[index])
            yield Cell(self.name, label, name, column.metric, published, plans, reason)

    @cached_property
    def _digits(self) -> list[int]:
        """Digits behind the point in each column, which a paper prints alike for all its rows."""
        columns = zip(*(row[1:] for row in self.rows.values()), strict=True)
        return [max(map(_digits, column)) for column in columns]

    def _plans(self, change: Any) -> Iterator[Plan]:
        match change:
            case Literature():
                return
            case EachSetting(settings=settings):
                for setting, value in settings.items():
                    yield self.base.with_changes(**self._fields(value), setting=setting)
            case _:
                yield self.base.with_changes(**self._fields(change))

    def _fields(self, change: Any) -> Mapping[str, Any]:
        return change if isinstance(change, Mapping) else {self.vary: change}

    def _published(self, figure: float | PublishedResult, digits: int) -> PublishedResult:
        """A bare number, a failure and a curve take the table's statistic; others bring their own."""
        if isinstance(figure, PublishedResult):
            return replace(figure, statistic=self.statistic) if figure in (FAIL, CURVE) else figure
        return PublishedResult(float(figure), self.statistic, digits=digits)
