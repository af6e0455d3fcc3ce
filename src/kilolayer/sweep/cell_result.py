"""What a cell's runs gave, beside the paper's figure, and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kilolayer.measure.layer_responses import measure_run_responses
from kilolayer.papers import Cell, is_proxy, proxy_sentence
from kilolayer.statistics import Agreement, RunSummary, judge_agreement, summarize_runs
from kilolayer.sweep.reproduction import CellRuns, Reproduction, Trial
from kilolayer.sweep.run_spec import RunProgress

RESULT_KEYS = {"top-1 error": "test_error", "training curve": "test_error", "top-5 error": "test_top5_error"}
PROXY = "proxy: "
PAPER_IMAGES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
"""What a run's result calls the papers' own images. ImageNet is a folder of the user's, of any name."""


@dataclass(frozen=True)
class CellResult:
    """A cell with what its runs gave."""

    runs: CellRuns
    states: tuple[tuple[Trial, RunProgress], ...]
    proxy: str
    chance: float

    @property
    def cell(self) -> Cell:
        return self.runs.cell

    @property
    def finished(self) -> int:
        return sum(state.finished for _, state in self.states)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(trial.spec.key for trial, _ in self.states)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why runs failed that did not diverge: this machine's doing, and no figure of the network's."""
        results = [state.result for _, state in self.states if state.result]
        return tuple(result.get("reason", "") for result in results if result["status"] == "failed")

    @cached_property
    def by_seed(self) -> dict[int, float | None]:
        """The final error by seed, None where the run diverged.

        Of a cell of several settings it is the best one's, the most favourable to the row, once all of
        the seed's settings have ended. A run that failed for want of memory counts for nothing.
        """
        states_by_seed: dict[int, list[tuple[Trial, RunProgress]]] = {}
        for trial, state in self.states:
            states_by_seed.setdefault(trial.seed, []).append((trial, state))
        ended = {
            seed: pairs
            for seed, pairs in states_by_seed.items()
            if all(progress.finished for _, progress in pairs)
        }
        figures = {
            seed: [self._figure(*pair) for pair in pairs if _counts(pair[1])] for seed, pairs in ended.items()
        }
        return {seed: _least(values) for seed, values in sorted(figures.items()) if values}

    def _figure(self, trial: Trial, state: RunProgress) -> float | None:
        """The run's final error; for P1's Fig. 7 the mean deviation of its layers' responses."""
        if self.cell.metric == "layer responses":
            finished = state.result is not None and state.result["status"] == "done"
            return measure_run_responses(trial.spec.path).mean_std if finished else None
        value = (state.result or {}).get(RESULT_KEYS.get(self.cell.metric, "test_error"))
        return value if value is not None and math.isfinite(value) else None

    @cached_property
    def summary(self) -> RunSummary | None:
        of = "mean" if self.cell.published.statistic.kind == "mean" else "median"
        return summarize_runs(list(self.by_seed.values()), of=of, chance=self.chance)  # type: ignore[arg-type]

    @cached_property
    def verdict(self) -> Agreement:
        """At the paper's own size only; a proxy's absolute value is never judged."""
        if not self.runs.trials:
            reason = "follows from the description" if self.cell.counted is not None else self.cell.reason
            return Agreement("no figure", reason)
        if not self.by_seed:
            return Agreement("not run", "; ".join(dict.fromkeys(self.failures)) or "no run has ended")
        if reason := self.proxy or self.cell.not_yet or ("" if self.cell.in_paper else "not in the paper"):
            return Agreement("no figure", reason)
        return judge_agreement(self.cell.published, list(self.by_seed.values()), chance=self.chance)


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
    real = PAPER_IMAGES.get(plan.data, "")
    used = {str(state.result.get("data", real)) for _, state in states if state.result} - {real}
    # A path can hold any images, and only the run knows which; a replacement by name is told already.
    if real and used and f"instead of {plan.data}" not in "".join(parts):
        parts.append(f"images of {' and '.join(sorted(used))} instead of {real}")
    return PROXY + ", ".join(parts) if parts else ""
