"""The results of a reproduction: each cell beside the paper's figure, and the rows of a table compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kilolayer.data.registry import DATASETS
from kilolayer.measure.layer_responses import measure_run_responses
from kilolayer.papers import Cell, Table, is_proxy, proxy_sentence
from kilolayer.statistics import (
    Agreement,
    Comparison,
    PublishedResult,
    RunSummary,
    compare_with_paper,
    judge_agreement,
    summarize_runs,
)
from kilolayer.sweep.comparable import comparison_groups, repeated_networks
from kilolayer.sweep.reproduction import CellRuns, Reproduction, Trial
from kilolayer.sweep.run_spec import RunProgress, read_progress


@dataclass(frozen=True)
class TableResult:
    """The results of a table's cells, and its rows compared with one another, by column."""

    table: Table
    cells: tuple[CellResult, ...]

    @property
    def proxy(self) -> str:
        """What the figures of the table leave out, each thing once. Empty at the paper's own size."""
        sentences = [cell.proxy.removeprefix(PROXY).split(", ") for cell in self.cells if cell.proxy]
        parts = dict.fromkeys(part for parts in sentences for part in parts)
        return (
            PROXY + ", ".join(sorted(parts, key=lambda part: not part.startswith("depth"))) if parts else ""
        )

    @cached_property
    def groups(self) -> dict[str, dict[str, CellResult]]:
        """The results to compare: by column its rows, or by row its columns where the baseline is one."""
        return comparison_groups(self.table, self.cells)

    @cached_property
    def same(self) -> dict[tuple[str, str], str]:
        """Cells, by group and member, whose network equals another member's at this scale."""
        return {
            (group, name): duplicate
            for group, members in self.groups.items()
            for name, duplicate in repeated_networks(
                {name: result.runs for name, result in members.items()}, self.table.baseline
            ).items()
        }

    def same_as(self, result: CellResult) -> str:
        """The member whose network a cell shares at this scale; empty where the network is its own."""
        row, column = result.cell.row, result.cell.column
        return self.same.get((column, row), "") or self.same.get((row, column), "")

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Rows compared with the baseline row by column; or columns with the baseline column by row."""
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


def table_results(reproduction: Reproduction) -> tuple[TableResult, ...]:
    """Reads the folders of all runs as they are now."""
    states = {spec.key: read_progress(spec) for spec in reproduction.runs}

    def of(name: str) -> tuple[CellResult, ...]:
        return tuple(cell_result(cell, reproduction, states) for cell in reproduction.of_table(name))

    return tuple(TableResult(table, of(table.name)) for table in reproduction.tables)


RESULT_KEYS = {"top-1 error": "test_error", "training curve": "test_error", "top-5 error": "test_top5_error"}
PROXY = "proxy: "
PAPER_IMAGES = {name: DATASETS[name].title for name in ("cifar10", "cifar100")}
"""The names of the papers' own images in a run's result. ImageNet is a folder of the user's, under any name.
"""


@dataclass(frozen=True)
class CellResult:
    """A cell with the results of its runs."""

    runs: CellRuns
    states: tuple[tuple[Trial, RunProgress], ...]
    proxy: str
    chance: float

    @property
    def cell(self) -> Cell:
        return self.runs.cell

    @property
    def num_finished(self) -> int:
        return sum(state.is_finished for _, state in self.states)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(trial.spec.key for trial, _ in self.states)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why runs failed that did not diverge. Such failures are this machine's, not the network's."""
        results = [state.result for _, state in self.states if state.result]
        return tuple(result.get("reason", "") for result in results if result["status"] == "failed")

    @cached_property
    def by_seed(self) -> dict[int, float | None]:
        """The final error by seed; None where the run diverged.

        For a cell of several settings it is the error of the best, which favours the row most, once all
        settings of the seed have ended. A run that failed for lack of memory does not count.
        """
        states_by_seed: dict[int, list[tuple[Trial, RunProgress]]] = {}
        for trial, state in self.states:
            states_by_seed.setdefault(trial.seed, []).append((trial, state))
        ended = {
            seed: pairs
            for seed, pairs in states_by_seed.items()
            if all(progress.is_finished for _, progress in pairs)
        }
        figures = {
            seed: [self._figure(*pair) for pair in pairs if _counts(pair[1])] for seed, pairs in ended.items()
        }
        return {seed: _least(values) for seed, values in sorted(figures.items()) if values}

    def _figure(self, trial: Trial, state: RunProgress) -> float | None:
        """The final error of a run; for P1's Fig. 7 the mean deviation of its layer responses."""
        if self.cell.metric == "layer responses":
            finished = state.result is not None and state.result["status"] == "done"
            return measure_run_responses(trial.spec.path).mean_std if finished else None
        figures: dict[str, object] = {**(state.result or {})}
        value = figures.get(RESULT_KEYS.get(self.cell.metric, "test_error"))
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    @cached_property
    def summary(self) -> RunSummary | None:
        of = "mean" if self.cell.published.statistic.kind == "mean" else "median"
        return summarize_runs(list(self.by_seed.values()), of=of, chance=self.chance)  # type: ignore[arg-type]

    @cached_property
    def verdict(self) -> Agreement:
        """The verdict on the figure, at the paper's own size only. A proxy's absolute value has none."""
        if not self.runs.trials:
            reason = "follows from the description" if self.cell.counted is not None else self.cell.reason
            return Agreement("no figure", reason)
        if not self.by_seed:
            return Agreement("not run", "; ".join(dict.fromkeys(self.failures)) or "no run has ended")
        if reason := self.proxy or self.cell.not_yet or ("" if self.cell.in_paper else "not in the paper"):
            return Agreement("no figure", reason)
        replications = {entry.laboratory: entry.result for entry in self.cell.replications}
        runs = list(self.by_seed.values())
        return judge_agreement(self.cell.published, runs, chance=self.chance, replications=replications)


def _counts(state: RunProgress) -> bool:
    return state.result is not None and state.result["status"] != "failed"


def _least(values: list[float | None]) -> float | None:
    values_known = [value for value in values if value is not None]
    return min(values_known) if values_known else None


def cell_result(runs: CellRuns, reproduction: Reproduction, states: Mapping[str, RunProgress]) -> CellResult:
    states_by_trial = tuple((trial, states[trial.spec.key]) for trial in runs.trials)
    classes = runs.trials[0].spec.experiment.network.num_classes if runs.trials else 10
    return CellResult(
        runs, states_by_trial, _proxy(runs, reproduction, states_by_trial), chance=100 * (1 - 1 / classes)
    )


def _proxy(runs: CellRuns, reproduction: Reproduction, states: tuple[tuple[Trial, RunProgress], ...]) -> str:
    request, plan = reproduction.request, runs.cell.plan
    if plan is None or not runs.trials:
        return ""
    parts = []
    scale = request.size.of(plan)
    if is_proxy(plan, request.data, scale):
        parts.append(proxy_sentence(plan, request.data, scale).removeprefix(PROXY))
    if request.recipe not in (None, plan.recipe):
        parts.append(f"recipe {request.recipe} instead of {plan.recipe}")
    real = PAPER_IMAGES.get(plan.data, "")
    used = {str(state.result.get("data", real)) for _, state in states if state.result} - {real}
    # A path can hold any images, and only the run knows which. A replacement by name is reported already.
    if real and used and f"instead of {plan.data}" not in "".join(parts):
        parts.append(f"images of {' and '.join(sorted(used))} instead of {real}")
    if not parts and request.recipe not in (None, plan.recipe):
        parts.append(f"recipe {request.recipe} instead of {plan.recipe}")
    return PROXY + ", ".join(parts) if parts else ""
