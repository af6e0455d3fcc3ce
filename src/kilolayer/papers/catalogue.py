"""All tables of the three papers, and queries over them.

To add a table, define it in the module of its paper and add it to `TABLES` there; nothing else lists tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from kilolayer.errors import InputError, suggest
from kilolayer.networks import Network, describe
from kilolayer.papers import p1, p2, px
from kilolayer.papers.plan import DataSet, Plan
from kilolayer.papers.schema import Cell, Omission, Paper, Table
from kilolayer.units import Unit

_TABLES = (*p2.TABLES, *p1.TABLES, *px.TABLES)
_OMISSIONS = {p2.P2: p2.OMISSIONS, p1.P1: p1.OMISSIONS, px.PX: px.OMISSIONS}


def tables() -> tuple[Table, ...]:
    """Every table and figure: those of P2, then of P1, then of PX.

    >>> [paper_table.name for paper_table in tables()][:2]
    ['p2-table-1', 'p2-table-2']
    """
    return _TABLES


def find_table(name: str) -> Table:
    """The table called `name`, such as "p2-table-1".

    >>> find_table("p2-table-2").title
    'where activations stand, on CIFAR-10'

    Raises:
        InputError: no table has this name; the message names the nearest one.
    """
    for paper_table in _TABLES:
        if paper_table.name == name:
            return paper_table
    raise InputError(
        f"unknown table {name!r}; {suggest(name, [paper_table.name for paper_table in _TABLES])}"
    )


def cells() -> tuple[Cell, ...]:
    """Every cell of every table.

    >>> len({cell.slug for cell in cells()}) == len(cells())
    True
    """
    return tuple(cell for paper_table in _TABLES for cell in paper_table.cells)


def omissions() -> dict[Paper, tuple[Omission, ...]]:
    """The printed figures of each paper that are in no table here, with the reasons.

    >>> [(paper.label, sum(omission.figures for omission in left)) for paper, left in omissions().items()]
    [('P2', 2), ('P1', 170), ('PX', 17)]
    """
    return dict(_OMISSIONS)


@dataclass(frozen=True)
class CellCounts:
    """Numbers of printed figures, by the plan that they have.

    cells: all that papers print. Every one is buildable, literature_only or not_here.
    buildable: with a plan. Every one is exact, of other_origin or departing.
    literature_only: cited from elsewhere. not_here: the paper's own, without a plan.
    exact: counted, or trained and tested exactly as the paper states.
    other_origin: as the authors' README or released code states, where that differs from the paper.
    departing: with a difference that `Cell.not_yet` names.
    beside: cells that no paper prints, such as the released code's rows.

    >>> CellCounts(11, 10, 1, 0, 8, 1, 1, 0).literature_only
    1
    """

    cells: int
    buildable: int
    literature_only: int
    not_here: int
    exact: int
    other_origin: int
    departing: int
    beside: int


def count_cells(selected: Iterable[Cell] | None = None) -> CellCounts:
    """The numbers of cells among `selected`, by default among all.

    >>> from kilolayer.papers import find_table
    >>> count_cells(find_table("p2-table-2").cells)
    CellCounts(cells=10, buildable=10, literature_only=0, not_here=0, exact=10, other_origin=0, departing=0, beside=0)
    """  # noqa: E501
    chosen = cells() if selected is None else tuple(selected)
    printed = [cell for cell in chosen if cell.in_paper]
    buildable = [cell for cell in printed if cell.buildable]
    cited = sum(cell.cited for cell in printed)
    departing = sum(bool(cell.not_yet) for cell in buildable)
    exact = sum(not cell.remark for cell in buildable)
    return CellCounts(
        cells=len(printed),
        buildable=len(buildable),
        literature_only=cited,
        not_here=len(printed) - len(buildable) - cited,
        exact=exact,
        other_origin=len(buildable) - exact - departing,
        departing=departing,
        beside=len(chosen) - len(printed),
    )


class ReportedError(NamedTuple):
    """A top-1 error in percent, the data set, and where the error is printed.

    >>> reported_errors("resnet20_cifar")[0].value
    8.75
    """

    value: float
    data: DataSet
    source: str


def reported_errors(model_name: str) -> list[ReportedError]:
    """The errors that the papers report for the network called `model_name`.

    Networks are compared layer by layer, without their number of classes, so the papers' own names do not
    matter.

    >>> reported_errors("resnet20_cifar")
    [ReportedError(value=8.75, data='cifar10', source='P1 Table 6')]

    Raises:
        InputError: the name is unknown.
    """
    network = describe(model_name)
    errors = {
        ReportedError(cell.reported, plan.data, _source(owner, plan)): None
        for owner in _TABLES
        for cell in owner.cells
        if cell.metric == "top-1 error" and cell.reported is not None
        for plan in cell.plans
        if _is_same_network(plan, network)
    }
    return list(errors)


def _source(owner: Table, plan: Plan) -> str:
    details: list[str] = [plan.protocol, f"{plan.variation} augmentation"] if plan.data == "imagenet" else []
    details += [f"recipe {plan.recipe}"] if plan.origin != "paper" else []
    return f"{owner.paper.label} {owner.source}" + (f" ({', '.join(details)})" if details else "")


def _is_same_network(plan: Plan, network: Network) -> bool:
    # The depth is cheap to compare, and differs for most networks.
    return plan.depth == network.depth and _plan_layers(plan.data, plan.depth, plan.unit) == _layers(network)


@lru_cache(maxsize=256)
def _plan_layers(data: DataSet, depth: int, unit: Unit) -> tuple[object, ...]:
    return _layers(Plan(data, depth, unit).network)


def _layers(network: Network) -> tuple[object, ...]:
    return (network.stem_ops, tuple(placed.layout for placed in network.units()), network.final_ops)
