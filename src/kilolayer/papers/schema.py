"""A paper's table as rows of values, and its cells.

    name      a short name for the command line, "p2-table-2"
    base      the plan that all rows share
    vary      the field of the plan, or of its unit, that the rows change
    columns   what each column measures, and what it changes in the plan
    rows      row: (change, figure of the first column, figure of the second column, …)

The cells of a table, with their plans and experiments, follow from these values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from kilolayer.errors import InputError
from kilolayer.papers.plan import Plan
from kilolayer.statistics.published import SINGLE_RUN, PublishedResult, Statistic
from kilolayer.units import Aggregated, Unit

Metric = Literal[
    "top-1 error",
    "top-5 error",
    "parameters",
    "multiply-adds",
    "bottleneck width",
    "group convolution width",
    "training curve",
    "layer responses",
]

FAIL = PublishedResult(above=20.0)
"""P2's entry "fail": a test error above 20 %."""

CURVE = PublishedResult()
"""A curve in a figure: the paper names its runs but does not print its points."""


@dataclass(frozen=True)
class Paper:
    """A paper: its label here (P1, P2, PX), title, number on arXiv and year.

    >>> from kilolayer.papers import find_table
    >>> find_table("p1-table-6").paper.label
    'P1'
    """

    label: str
    title: str
    arxiv: str
    year: int


@dataclass(frozen=True)
class Literature:
    """A row that the paper cites from elsewhere, with the reason why no experiment here reproduces it.

    >>> Literature("another architecture").reason
    'another architecture'
    """

    reason: str


@dataclass(frozen=True)
class NotHere:
    """A row of the paper's own that no experiment here reproduces, with the reason.

    >>> NotHere("needs ImageNet-5K").reason
    'needs ImageNet-5K'
    """

    reason: str


@dataclass(frozen=True)
class Omission:
    """Printed figures of a paper that are not entered: where they stand, how many they are, and why.

    >>> Omission("Table 8", "detection on COCO", 4, "no detector is trained here").figures
    4
    """

    source: str
    what: str
    figures: int
    reason: str


@dataclass(frozen=True)
class Replication:
    """The figure that another laboratory published for a cell.

    >>> str(Replication("ReScience 2016", PublishedResult(6.06)).result)
    '6.06'
    """

    laboratory: str
    result: PublishedResult


@dataclass(frozen=True, eq=False)
class EachSetting:
    """A row for several runs: a value of the varied field for each setting, by the setting's name.

    >>> list(EachSetting({"b_g = 0": 0.0, "b_g = −1": -1.0}).settings)
    ['b_g = 0', 'b_g = −1']
    """

    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class NotInPaper:
    """A row that the paper does not print: one of your own, or the released code's beside the paper's.

    `changes` are the fields that it changes in the table's plan.

    >>> from kilolayer.units import Scaled
    >>> list(NotInPaper({"h": Scaled(0.9)}).changes)
    ['h']
    """

    changes: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Column:
    """A column: its metric, and the fields that it changes in the plan of every row.

    >>> Column("top-5 error", {"depth": 164}).metric
    'top-5 error'
    """

    metric: Metric = "top-1 error"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One printed figure, with the plans that reproduce it.

    `plans` is empty for a figure that is cited from elsewhere (`cited`) or that nothing here reproduces;
    `reason` says why. It holds several plans where the paper prints one figure for several settings. A cell
    that is not `in_paper` has no published figure. `replications` are other laboratories' figures.

    >>> from kilolayer.papers import find_table
    >>> cell = find_table("px-table-1").cell("ResNet-50", "parameters")
    >>> cell.reported, round(cell.counted, 1), cell.slug
    (25.5, 25.6, 'px-table-1--resnet-50--parameters')
    """

    table: str
    row: str
    column: str
    metric: Metric
    published: PublishedResult
    plans: tuple[Plan, ...] = ()
    reason: str = ""
    in_paper: bool = True
    cited: bool = False
    replications: tuple[Replication, ...] = ()

    @property
    def reported(self) -> float | None:
        """The printed number: an error in percent, parameters in millions, or multiply-adds in 10⁹."""
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
        """The difference between Kilolayer's run of this cell and the paper's; empty if there is none."""
        return self.plans[0].not_yet if self.plans and self.counted is None else ""

    @property
    def remark(self) -> str:
        """What a report says beside this figure; empty where the plan is exactly the paper's, or counted."""
        return self.plans[0].remark if self.plans and self.counted is None else ""

    @property
    def counted(self) -> float | None:
        """The figure, if it follows from the description without training; else None."""
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
            case "group convolution width":
                branch = self.plan.unit.branch
                return float(branch.cardinality * branch.d) if isinstance(branch, Aggregated) else None
            case _:
                return None

    @property
    def slug(self) -> str:
        """A name for files, such as "p2-table-1--dropout-shortcut--error"."""
        return "--".join(_slug(part) for part in (self.table, self.row, self.column))


def _digits(figure: object) -> int:
    return len(str(figure).partition(".")[2]) if isinstance(figure, float | str) else 0


def _slug(text: str) -> str:
    spelled = text.lower().replace("−", "minus ").replace("×", "x").replace("…", " to ").replace("@", "at ")
    return re.sub(r"[^a-z0-9.=+_]+", "-", spelled).strip("-")


@dataclass(frozen=True, eq=False)
class Table:
    """A table or a figure of a paper. Each row is (change, figure, figure, …), with a figure for each column.

    `change` is the value of the field `vary` (of the plan, or of its unit), or a mapping of several fields,
    or an `EachSetting`, a `Literature`, a `NotHere` or a `NotInPaper`. A figure is a number, a
    `PublishedResult`, or None for an empty cell; as a string it keeps its own number of digits, where others
    of the column have more. `baseline` names the row, or the column, that the others are compared with.
    `replications` maps a row and a column to other laboratories' figures of that cell.

    >>> from kilolayer.papers import Plan
    >>> table = Table(
    ...     "p1-part",
    ...     Paper("P1", "Deep Residual Learning for Image Recognition", "1512.03385", 2015),
    ...     "Table 6",
    ...     "two networks on CIFAR-10",
    ...     Plan("cifar10"),
    ...     vary="depth",
    ...     columns={"error": Column("top-1 error")},
    ...     rows={"ResNet-20": (20, 8.75), "ResNet-56": (56, 6.97)},
    ... )
    >>> [(cell.row, cell.reported, cell.plan.depth) for cell in table.cells]
    [('ResNet-20', 8.75, 20), ('ResNet-56', 6.97, 56)]
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
    replications: Mapping[tuple[str, str], tuple[Replication, ...]] = field(default_factory=dict)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for label, row in self.rows.items() for cell in self._cells(label, row))

    def cell(self, row: str, column: str) -> Cell:
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))

    def with_own_row(self, name: str, changes: Mapping[str, Any]) -> Table:
        """This table with one more row, which is not in the paper and makes `changes` in the table's plan.

        Raises `InputError` where the table has a row of this name, or no network can have these changes.
        """
        if name in self.rows:
            raise InputError(f"{self.name} has a row {name!r} already; choose another name for yours")
        row = (NotInPaper(changes), *(PublishedResult(),) * len(self.columns))
        table = replace(self, rows={**self.rows, name: row})
        try:
            for plan in (plan for cell in table.cells if cell.row == name for plan in cell.plans):
                plan.network  # noqa: B018 - building the description checks it
        except InputError as error:
            raise InputError(f"the row {name!r} in {self.name}: {error}") from None
        return table

    def columns_that_set(self, changes: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns that change the same part of the unit as a row with `changes` would."""
        parts = {field.name for field in fields(Unit)} | {"unit"}
        return tuple(
            name
            for name, column in self.columns.items()
            if (ours := parts & set(column.changes))
            and (ours & set(changes) or "unit" in ours or "unit" in changes)
        )

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The cell of the baseline that `cell` is compared with; None for a cell of the baseline itself."""
        for candidate in self.cells:
            shares_line = (candidate.row, candidate.column) in (
                (self.baseline, cell.column),
                (cell.row, self.baseline),
            )
            if shares_line and candidate is not cell:
                return candidate
        return None

    def _cells(self, label: str, row: tuple[Any, ...]) -> Iterator[Cell]:
        change, *figures = row
        reason = change.reason if isinstance(change, Literature | NotHere) else ""
        for index, (name, column) in enumerate(self.columns.items()):
            if figures[index] is None:
                continue
            plans = tuple(plan.with_changes(**column.changes) for plan in self._plans(change))
            published = self._figure(figures[index], self._digits[index])
            in_paper = not isinstance(change, NotInPaper)
            yield Cell(
                self.name, label, name, column.metric, published, plans, reason, in_paper,
                isinstance(change, Literature), self.replications.get((label, name), ()),
            )  # fmt: skip

    @cached_property
    def _digits(self) -> list[int]:
        """Decimal places of each column; a paper prints most columns with the same number in all rows."""
        columns = zip(*(row[1:] for row in self.rows.values()), strict=True)
        return [max(map(_digits, column)) for column in columns]

    def _plans(self, change: Any) -> Iterator[Plan]:
        match change:
            case Literature() | NotHere():
                return
            case NotInPaper(changes=changes):
                yield self.base.with_changes(**changes)
            case EachSetting(settings=settings):
                for setting, value in settings.items():
                    yield self.base.with_changes(**self._fields(value), setting=setting)
            case _:
                yield self.base.with_changes(**self._fields(change))

    def _fields(self, change: Any) -> Mapping[str, Any]:
        return change if isinstance(change, Mapping) else {self.vary: change}

    def _figure(self, figure: float | str | PublishedResult, digits: int) -> PublishedResult:
        """A number, a failure or a curve has the table's statistic; other figures have their own."""
        if isinstance(figure, PublishedResult):
            return replace(figure, statistic=self.statistic) if figure in (FAIL, CURVE) else figure
        own = _digits(figure) if isinstance(figure, str) else digits
        return PublishedResult(float(figure), self.statistic, digits=own)
