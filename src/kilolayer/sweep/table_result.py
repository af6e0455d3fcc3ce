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
        said = [one.proxy.removeprefix(PROXY).split(", ") for one in self.cells if one.proxy]
        parts = dict.fromkeys(part for parts in said for part in parts)
        return (
            PROXY + ", ".join(sorted(parts, key=lambda part: not part.startswith("depth"))) if parts else ""
        )

    @cached_property
    def groups(self) -> dict[str, dict[str, CellResult]]:
        """What is compared: by column its rows; or by row its columns, where the baseline is a column."""
        across_columns = self.table.baseline in self.table.columns
        groups: dict[str, dict[str, CellResult]] = {}
        for one in self.cells:
            group, member = one.cell.column, one.cell.row
            if across_columns:
                group, member = member, group
            groups.setdefault(group, {})[member] = one
        return groups

    @cached_property
    def same(self) -> dict[tuple[str, str], str]:
        """Cells, by group and member, that this scale makes the same network as another member's."""
        return {
            (group, name): other
            for group, members in self.groups.items()
            for name, other in _duplicates(members, self.table.baseline)
        }

    def same_as(self, one: CellResult) -> str:
        """The member whose network `one` has become at this scale; empty where it is its own."""
        row, column = one.cell.row, one.cell.column
        return self.same.get((column, row), "") or self.same.get((row, column), "")

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Rows against the baseline row by column; or columns against the baseline column by row."""
        found = {}
        for group, members in self.groups.items():
            kept = {
                name: one
                for name, one in members.items()
                if (group, name) not in self.same and one.by_seed and one.cell.metric.endswith(" error")
            }
            if len(kept) > 1:
                found[group] = self._compare(kept)
        return found

    def _compare(self, members: Mapping[str, CellResult]) -> Comparison:
        paper: dict[str, PublishedResult] = {name: one.cell.published for name, one in members.items()}
        return compare_with_paper(
            paper,
            {name: one.by_seed for name, one in members.items()},
            baseline=self.table.baseline if self.table.baseline in members else None,
            chance=next(iter(members.values())).chance,
        )


def _duplicates(members: Mapping[str, CellResult], baseline: str) -> list[tuple[str, str]]:
    """Members that repeat an earlier one; the baseline comes first."""
    names = sorted((name for name, one in members.items() if one.states), key=lambda name: name != baseline)
    found: dict[str, str] = {}
    for place, name in enumerate(names):
        before = (other for other in names[:place] if other not in found)
        same = next((other for other in before if _same(members[name], members[other])), None)
        if same is not None:
            found[name] = same
    return list(found.items())


def _same(one: CellResult, other: CellResult) -> bool:
    """Equal runs; or equal networks that in the paper are different ones."""
    if one.keys == other.keys:
        return True
    ours = [{trial.spec.experiment.network for trial, _ in each.states} for each in (one, other)]
    papers = [{plan.network for plan in each.cell.plans} for each in (one, other)]
    return ours[0] == ours[1] and papers[0] != papers[1]


def table_results(reproduction: Reproduction) -> tuple[TableResult, ...]:
    """Reads every run's folder as it is now."""
    states = {one.key: read_progress(one) for one in reproduction.runs}

    def of(name: str) -> tuple[CellResult, ...]:
        return tuple(cell_result(one, reproduction, states) for one in reproduction.of_table(name))

    return tuple(TableResult(table, of(table.name)) for table in reproduction.tables)
