"""All tables of the three papers, and questions to them."""

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
    """Every table and figure: P2's, then P1's, then PX's."""
    return _TABLES


def find_table(name: str) -> Table:
    """The table called `name`, as "p2-table-1". Raises `InputError` naming the nearest."""
    for paper_table in _TABLES:
        if paper_table.name == name:
            return paper_table
    raise InputError(
        f"unknown table {name!r}; {suggest(name, [paper_table.name for paper_table in _TABLES])}"
    )


def cells() -> tuple[Cell, ...]:
    """Every cell of every table."""
    return tuple(cell for paper_table in _TABLES for cell in paper_table.cells)


@dataclass(frozen=True)
class CellCounts:
    """How many cells there are. `exact`: those buildable cells that Kilolayer runs as the paper did."""

    cells: int
    buildable: int
    literature_only: int
    exact: int


def count_cells(selected: Iterable[Cell] | None = None) -> CellCounts:
    """The counts of these cells, or of all."""
    chosen = cells() if selected is None else tuple(selected)
    buildable = [cell for cell in chosen if cell.buildable]
    exact = sum(not cell.not_yet for cell in buildable)
    return CellCounts(len(chosen), len(buildable), len(chosen) - len(buildable), exact)


class ReportedError(NamedTuple):
    """A top-1 error in percent, of which data, and where it is printed."""

    value: float
    data: DataSet
    source: str


def reported_errors(model_name: str) -> list[ReportedError]:
    """What the papers report for the network called `model_name`, whatever they call it.

    Networks are compared layer by layer, apart from their number of classes. Raises `InputError`
    for an unknown name.
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
    # The depth is cheap to compare and tells most networks apart before any is laid out.
    return plan.depth == network.depth and _planned_layers(plan.data, plan.depth, plan.unit) == _layers(
        network
    )


@lru_cache(maxsize=256)
def _planned_layers(data: DataSet, depth: int, unit: Unit) -> tuple[object, ...]:
    return _layers(Plan(data, depth, unit).network)


def _layers(network: Network) -> tuple[object, ...]:
    return (network.stem_ops, tuple(placed.layout for placed in network.units()), network.final_ops)
