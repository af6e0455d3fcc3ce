"""Which cells of a table are compared with which: groups, repeated networks, and names for both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Protocol, TypeVar

from kilolayer.papers import Cell, Table
from kilolayer.sweep.reproduction import CellRuns

DECIDED_METRICS = ("top-1 error", "training curve")
"""The metrics whose figure is the final test error, which a registered sweep decides on."""


class HasCell(Protocol):
    @property
    def cell(self) -> Cell: ...


Item = TypeVar("Item", bound=HasCell)


def comparison_groups(table: Table, cells: Iterable[Item]) -> dict[str, dict[str, Item]]:
    """The cells to compare: by column its rows, or by row its columns where the baseline is one."""
    across_columns = table.baseline in table.columns
    groups: dict[str, dict[str, Item]] = {}
    for item in cells:
        group, member = item.cell.column, item.cell.row
        if across_columns:
            group, member = member, group
        groups.setdefault(group, {})[member] = item
    return groups


def repeated_networks(members: Mapping[str, CellRuns], baseline: str) -> dict[str, str]:
    """Members whose network repeats an earlier one's at this scale, with its name; the baseline is first."""
    names = sorted((name for name, runs in members.items() if runs.trials), key=lambda name: name != baseline)
    repeated: dict[str, str] = {}
    for position, name in enumerate(names):
        before = (earlier for earlier in names[:position] if earlier not in repeated)
        earlier_name = next((earlier for earlier in before if _same(members[name], members[earlier])), None)
        if earlier_name is not None:
            repeated[name] = earlier_name
    return repeated


def _same(first: CellRuns, second: CellRuns) -> bool:
    """Whether the runs are equal, or the networks are equal while the paper's are different."""
    keys = [{trial.spec.key for trial in runs.trials} for runs in (first, second)]
    if keys[0] == keys[1]:
        return True
    ours = [{trial.spec.experiment.network for trial in runs.trials} for runs in (first, second)]
    papers = [{plan.network for plan in runs.cell.plans} for runs in (first, second)]
    return ours[0] == ours[1] and papers[0] != papers[1]


def cell_label(table: Table, cell: Cell) -> str:
    """A cell's name within its table: the row, and the column where there are several."""
    return cell.row if len(table.columns) == 1 else f"{cell.row} ({cell.column})"


def compared_pairs(table: Table, cells: Iterable[CellRuns]) -> tuple[tuple[str, str], ...]:
    """The labels of the pairs that a registered sweep decides: each row and the baseline, or all pairs."""
    pairs: list[tuple[str, str]] = []
    for members in comparison_groups(table, cells).values():
        repeated = repeated_networks(members, table.baseline)
        labels = {
            name: cell_label(table, runs.cell)
            for name, runs in members.items()
            if runs.trials and name not in repeated and runs.cell.metric in DECIDED_METRICS
        }
        first = labels.get(table.baseline)
        pairs += (
            combinations(labels.values(), 2)
            if first is None
            else ((first, label) for label in labels.values() if label != first)
        )
    return tuple(pairs)
