"""What a reproduction has found so far: every cell's figures, and the rows of a table compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kilolayer.analysis import Comparison, Published, compare
from kilolayer.papers import Table
from kilolayer.sweep.finding import PROXY, Finding, finding
from kilolayer.sweep.plan import state_of
from kilolayer.sweep.reproduction import Reproduction


@dataclass(frozen=True)
class TableFindings:
    """A table's findings, and its rows compared with one another, by column."""

    table: Table
    findings: tuple[Finding, ...]

    @property
    def proxy(self) -> str:
        """What the figures of the table leave out, each thing once; empty at the paper's own size."""
        said = [one.proxy.removeprefix(PROXY).split(", ") for one in self.findings if one.proxy]
        parts = dict.fromkeys(part for parts in said for part in parts)
        return (
            PROXY + ", ".join(sorted(parts, key=lambda part: not part.startswith("depth"))) if parts else ""
        )

    @cached_property
    def groups(self) -> dict[str, dict[str, Finding]]:
        """What is compared: by column its rows; or by row its columns, where the baseline is a column."""
        across_columns = self.table.baseline in self.table.columns
        groups: dict[str, dict[str, Finding]] = {}
        for one in self.findings:
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

    def same_as(self, one: Finding) -> str:
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

    def _compare(self, members: Mapping[str, Finding]) -> Comparison:
        paper: dict[str, Published] = {name: one.cell.published for name, one in members.items()}
        return compare(
            paper,
            {name: one.by_seed for name, one in members.items()},
            baseline=self.table.baseline if self.table.baseline in members else None,
            chance=next(iter(members.values())).chance,
        )


def _duplicates(members: Mapping[str, Finding], baseline: str) -> list[tuple[str, str]]:
    """Members that repeat an earlier one; the baseline comes first."""
    names = sorted((name for name, one in members.items() if one.states), key=lambda name: name != baseline)
    found: dict[str, str] = {}
    for place, name in enumerate(names):
        before = (other for other in names[:place] if other not in found)
        same = next((other for other in before if _same(members[name], members[other])), None)
        if same is not None:
            found[name] = same
    return list(found.items())


def _same(one: Finding, other: Finding) -> bool:
    """Equal runs; or equal networks that in the paper are different ones."""
    if one.keys == other.keys:
        return True
    ours = [{trial.planned.experiment.network for trial, _ in each.states} for each in (one, other)]
    papers = [{plan.network for plan in each.cell.plans} for each in (one, other)]
    return ours[0] == ours[1] and papers[0] != papers[1]


def findings(reproduction: Reproduction) -> tuple[TableFindings, ...]:
    """Reads every run's folder as it is now."""
    states = {one.key: state_of(one) for one in reproduction.runs}

    def of(name: str) -> tuple[Finding, ...]:
        return tuple(finding(one, reproduction, states) for one in reproduction.of_table(name))

    return tuple(TableFindings(table, of(table.name)) for table in reproduction.tables)
