"""What a reproduction has found so far: every cell's figures, and the rows of a table compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kilolayer.papers import Table
from kilolayer.statistics import Comparison, PublishedResult, compare_with_paper
from kilolayer.sweep.cell_result import PROXY, CellResult, cell_result
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.sweep.run_spec import read_progress


@dataclass(frozen=True)
class TableResult:
    """A table's findings, and its rows compared with one another, by column."""

    table: Table
    cells: tuple[CellResult, ...]

    @property
    def proxy(self) -> str:
        """What the figures of the table leave out, each thing once; empty at the paper's own size."""
        sentences = [cell.proxy.removeprefix(PROXY).split(", ") for cell in self.cells if cell.proxy]
        parts = dict.fromkeys(part for parts in sentences for part in parts)
        return (
            PROXY + ", ".join(sorted(parts, key=lambda part: not part.startswith("depth"))) if parts else ""
        )

    @cached_property
    def groups(self) -> dict[str, dict[str, CellResult]]:
        """What is compared: by column its rows; or by row its columns, where the baseline is a column."""
        across_columns = self.table.baseline in self.table.columns
        groups: dict[str, dict[str, CellResult]] = {}
        for cell in self.cells:
            group, member = cell.cell.column, cell.cell.row
            if across_columns:
                group, member = member, group
            groups.setdefault(group, {})[member] = cell
        return groups

    @cached_property
    def same(self) -> dict[tuple[str, str], str]:
        """Cells, by group and member, that this scale makes the same network as another member's."""
        return {
            (group, name): duplicate
            for group, members in self.groups.items()
            for name, duplicate in _duplicates(members, self.table.baseline)
        }

    def same_as(self, result: CellResult) -> str:
        """The member whose network `one` has become at this scale; empty where it is its own."""
        row, column = result.cell.row, result.cell.column
        return self.same.get((column, row), "") or self.same.get((row, column), "")

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Rows against the baseline row by column; or columns against the baseline column by row."""
        by_group = {}
        for group, members in self.groups.items():
            comparable = {
                name: result
                for name, result in members.items()
                if (group, name) not in self.same and result.by_seed and result.cell.metric.endswith(" error")
            }
            if len(comparable) > 1:
                by_group[group] = self._compare(comparable)
        return by_group

    def _compare(self, members: Mapping[str, CellResult]) -> Comparison:
        paper: dict[str, PublishedResult] = {name: result.cell.published for name, result in members.items()}
        return compare_with_paper(
            paper,
            {name: result.by_seed for name, result in members.items()},
            baseline=self.table.baseline if self.table.baseline in members else None,
            chance=next(iter(members.values())).chance,
            not_in_paper={name for name, result in members.items() if not result.cell.in_paper},
        )


def _duplicates(members: Mapping[str, CellResult], baseline: str) -> list[tuple[str, str]]:
    """Members that repeat an earlier one; the baseline comes first."""
    names = sorted(
        (name for name, result in members.items() if result.states), key=lambda name: name != baseline
    )
    duplicates: dict[str, str] = {}
    for position, name in enumerate(names):
        before = (earlier for earlier in names[:position] if earlier not in duplicates)
        same = next((earlier for earlier in before if _same(members[name], members[earlier])), None)
        if same is not None:
            duplicates[name] = same
    return list(duplicates.items())


def _same(first: CellResult, second: CellResult) -> bool:
    """Equal runs; or equal networks that in the paper are different ones."""
    if first.keys == second.keys:
        return True
    ours = [{trial.spec.experiment.network for trial, _ in result.states} for result in (first, second)]
    papers = [{plan.network for plan in result.cell.plans} for result in (first, second)]
    return ours[0] == ours[1] and papers[0] != papers[1]


def table_results(reproduction: Reproduction) -> tuple[TableResult, ...]:
    """Reads every run's folder as it is now."""
    states = {spec.key: read_progress(spec) for spec in reproduction.runs}

    def of(name: str) -> tuple[CellResult, ...]:
        return tuple(cell_result(cell, reproduction, states) for cell in reproduction.of_table(name))

    return tuple(TableResult(table, of(table.name)) for table in reproduction.tables)
