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
from kilolayer.papers.schema import Cell, Table
from kilolayer.units import Unit

_TABLES = (*p2.TABLES, *p1.TABLES, *px.TABLES)


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


@dataclass(frozen=True)
class CellCounts:
    """Numbers of cells: all, those with an experiment, those cited from elsewhere, and the exact ones.

    A cell is `exact` if Kilolayer trains and tests its network as the paper did.

    >>> CellCounts(cells=11, buildable=10, literature_only=1, exact=10).literature_only
    1
    """

    cells: int
    buildable: int
    literature_only: int
    exact: int


def count_cells(selected: Iterable[Cell] | None = None) -> CellCounts:
    """The numbers of cells among `selected`, by default among all.

    >>> from kilolayer.papers import find_table
    >>> count_cells(find_table("p2-table-2").cells)
    CellCounts(cells=10, buildable=10, literature_only=0, exact=10)
    """
    chosen = cells() if selected is None else tuple(selected)
    buildable = [cell for cell in chosen if cell.buildable]
    exact = sum(not cell.not_yet for cell in buildable)
    return CellCounts(len(chosen), len(buildable), len(chosen) - len(buildable), exact)


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
    details += [f"batch {plan.batch_size}"] if plan.batch_size else []
    return f"{owner.paper.label} {owner.source}" + (f" ({', '.join(details)})" if details else "")


def _is_same_network(plan: Plan, network: Network) -> bool:
    # The depth is cheap to compare, and differs for most networks.
    return plan.depth == network.depth and _plan_layers(plan.data, plan.depth, plan.unit) == _layers(network)


@lru_cache(maxsize=256)
def _plan_layers(data: DataSet, depth: int, unit: Unit) -> tuple[object, ...]:
    return _layers(Plan(data, depth, unit).network)


def _layers(network: Network) -> tuple[object, ...]:
    return (network.stem_ops, tuple(placed.layout for placed in network.units()), network.final_ops)
