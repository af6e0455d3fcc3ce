"""The findings of one run, or of several runs: one or two sentences for the top of their page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean, stdev

from kilolayer.data.registry import DATASETS
from kilolayer.runs import Run
from kilolayer.training import Experiment

LEARNED_SHARE = 0.5
"""A network whose error stays above this share of the error of guessing has learned little."""


def run_findings(runs: Mapping[str, Run]) -> tuple[str, ...]:
    """The outcome of one run; of several runs the best, the worst, and the spread over seeds."""
    if len(runs) == 1:
        ((name, run),) = runs.items()
        return (_alone(name, run),)
    return tuple(filter(None, (*_by_data(runs), _seeds(runs))))


def data_name(experiment: Experiment) -> str:
    """The name of the data that a test error belongs to. Errors on different data cannot be compared."""
    data = experiment.data
    split = "" if data.source in DATASETS else f", drawn by seed {data.split_seed}" if data.split_seed else ""
    test = f", {data.test}" if data.test else ""
    return f"{data.source}{test}{split}, {experiment.network.num_classes} classes"


def reached_iteration(run: Run) -> int:
    """The last iteration of a run, from its result, or else from its newest state or epoch."""
    ended = (run.result() or {}).get("iterations")
    if ended is not None:
        return int(ended)
    rows = run.metrics()
    return max(rows[-1]["iteration"] if rows else 0, run.saved_iteration())


def final_test_error(run: Run) -> float | None:
    """The final test error in percent; None before the run ends."""
    value = (run.result() or {}).get("test_error")
    return None if value is None else float(value)


def _alone(name: str, run: Run) -> str:
    result, experiment, at = run.result(), run.experiment(), reached_iteration(run)
    total = experiment.recipe.iterations
    if result is None:
        return f"{name} has not ended: it is at iteration {at:,} of {total:,}, so it has no final error."
    error = result.get("test_error")
    if error is None:
        reason = result.get("reason", "no reason was recorded")
        return f"{name} {result['status']} at iteration {at:,} of {total:,} and has no final error: {reason}."
    chance = 100 - 100 / experiment.network.num_classes
    return (
        f"{name}, a network of {experiment.network.depth} layers, ends at {error:.2f} % test error after "
        f"{at:,} iterations; guessing would be {chance:.0f} % wrong, so "
        f"{_learned(error, chance)}. This is one run: train other seeds to see how much the error varies."
    )


def _learned(error: float, chance: float) -> str:
    if error > 0.95 * chance:
        return "it has learned nothing"
    return "it has learned little" if error > LEARNED_SHARE * chance else "it has learned"


def _by_data(runs: Mapping[str, Run]) -> list[str]:
    groups: dict[str, dict[str, Run]] = {}
    for name, run in runs.items():
        groups.setdefault(data_name(run.experiment()), {})[name] = run
    if len(groups) == 1:
        return [_several(runs)]
    apart = f"These runs use {len(groups)} different data sets, so their errors cannot all be compared."
    return [apart, *(f"{data}: {_of_one_data(group)}" for data, group in groups.items())]


def _of_one_data(runs: Mapping[str, Run]) -> str:
    if len(runs) > 1:
        return _several(runs)
    ((name, run),) = runs.items()
    error = final_test_error(run)
    return (
        f"{name} has no final test error." if error is None else f"{name} ends at {error:.2f} % test error."
    )


def _several(runs: Mapping[str, Run]) -> str:
    error_of = {name: error for name, run in runs.items() if (error := final_test_error(run)) is not None}
    if not error_of:
        return f"None of the {len(runs)} runs has a final test error yet."
    best, worst = min(error_of, key=error_of.__getitem__), max(error_of, key=error_of.__getitem__)
    ended = (
        f"{len(error_of)} of {len(runs)} runs have"
        if len(error_of) < len(runs)
        else f"All {len(runs)} runs have"
    )
    if len(error_of) == 1:
        return f"Only {best} of {len(runs)} runs has a final test error: {error_of[best]:.2f} %."
    return (
        f"{ended} a final test error: the lowest is {error_of[best]:.2f} % ({best}), "
        f"the highest {error_of[worst]:.2f} % ({worst})."
    )


def _seeds(runs: Mapping[str, Run]) -> str:
    """Whether experiments were repeated with other seeds, and the largest spread."""
    groups: dict[Experiment, list[float]] = {}
    for run in runs.values():
        if (error := final_test_error(run)) is not None:
            groups.setdefault(replace(run.experiment(), seed=0), []).append(error)
    repeated = [errors for errors in groups.values() if len(errors) > 1]
    if not groups:
        return ""
    if not repeated:
        return (
            "Every experiment was run once, so a difference between these errors may be chance; "
            "train each with several seeds."
        )
    spread = max(repeated, key=stdev)
    return (
        f"{len(repeated)} of {len(groups)} experiments were run with several seeds; the largest spread is "
        f"{mean(spread):.2f} ± {stdev(spread):.2f} % (mean ± standard deviation of {len(spread)} runs): "
        "smaller differences may be chance."
    )
