"""A table cell's runs as figures, and whether they agree with the paper's.

Errors are in percent. A run that diverged (None, infinite or not a number) counts as a network that guesses,
with an error of `chance` percent. It is never dropped: dropping failures would make a bad unit look good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.statistics.published import PublishedResult

FloatArray = NDArray[np.float64]
AgreementWord = Literal["agrees", "differs", "not enough runs", "not run", "no figure"]

MIN_RUNS = 3
"""With fewer runs there is no verdict: two runs have no middle and hardly a spread."""

CHANCE_ERROR = 90.0
"""The error of guessing among ten classes, in percent."""

RESAMPLES = 10_000
"""Samples drawn for a bootstrap interval."""
_SEED = 0
_TWO_SIDED = 1.96  # standard errors to each side of 95 % of a normal distribution
_MEDIAN_ERROR = math.sqrt(math.pi / 2)  # a median's standard error in those of a mean, for normal runs
_TOLERANCE = 1e-9  # what floating point may lose where a bound is met exactly


def error_rates(runs: Sequence[float | None], chance: float = CHANCE_ERROR) -> FloatArray:
    """The runs' errors, with `chance` for runs that diverged.

    >>> error_rates([6.5, None]).tolist()
    [6.5, 90.0]
    """
    return np.array([chance if run is None or not math.isfinite(run) else run for run in runs], np.float64)


def median(values: FloatArray, axis: int | None = None) -> FloatArray:
    """The middle value, or the mean of the two middle values."""
    return np.asarray(np.median(values, axis=axis), np.float64)


def mean(values: FloatArray, axis: int | None = None) -> FloatArray:
    """The arithmetic mean."""
    return np.asarray(np.mean(values, axis=axis), np.float64)


def bootstrap_interval(
    values: FloatArray, statistic: Callable[[FloatArray, int], FloatArray] = median, *, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic, from `RESAMPLES` samples drawn with a fixed seed.

    For the median of as few runs as 3 or 5 it is simply their range, and covers the true median with
    probability 1 − 2^(1−n): 75 % of the time for n = 3, 94 % for n = 5.

    Args:
        values: the observations, (n,).
        statistic: a function of samples (RESAMPLES, n) and the axis to reduce.
        level: the interval's coverage.

    Source: Efron and Tibshirani 1993, Sec. 13.3.

    >>> bootstrap_interval(np.array([6.4, 6.6, 6.9]))
    (6.4, 6.9)
    """
    return percentile_interval(statistic(bootstrap_samples(values), 1), level)


def bootstrap_samples(values: FloatArray, seed: int = _SEED) -> FloatArray:
    """`RESAMPLES` samples of the values, drawn with replacement; shape (RESAMPLES, n)."""
    indices = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return values[indices]


def percentile_interval(statistics: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """The ends of the middle `level` of the values; both are values themselves."""
    tail = (1 - level) / 2
    low = np.quantile(statistics, tail, method="lower")
    return float(low), float(np.quantile(statistics, 1 - tail, method="higher"))


@dataclass(frozen=True)
class RunSummary:
    """The test errors of some runs, in percent."""

    n: int
    diverged: int
    """Runs among the n that diverged."""
    median: float
    mean: float
    std: float
    """The sample standard deviation, with n − 1; 0 for a single run."""
    low: float
    """The lower end of the 95 % bootstrap interval of the median (or of the mean, see `summarize_runs`)."""
    high: float
    """The upper end."""


def summarize_runs(
    runs: Sequence[float | None], *, of: Literal["median", "mean"] = "median", chance: float = CHANCE_ERROR
) -> RunSummary | None:
    """Summarises runs; None without runs.

    Args:
        runs: test errors in percent; None for a run that diverged.
        of: the statistic that `low` and `high` bound.
        chance: the error that a diverged run counts as.

    >>> summary = summarize_runs([6.4, 6.6, 6.9])
    >>> summary.median, summary.low, summary.high
    (6.6, 6.4, 6.9)
    """
    if not runs:
        return None
    values = error_rates(runs, chance)
    low, high = bootstrap_interval(values, mean if of == "mean" else median)
    return RunSummary(
        n=len(values),
        diverged=sum(run is None or not math.isfinite(run) for run in runs),
        median=float(median(values)),
        mean=float(mean(values)),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        low=low,
        high=high,
    )


@dataclass(frozen=True)
class Agreement:
    """Whether runs agree with a paper's figure."""

    word: AgreementWord
    text: str
    """The reason in words."""
    low: float | None = None
    """The lower end of the interval that the paper's figure was compared with, in percent."""
    high: float | None = None
    """The upper end."""


def judge_agreement(
    published: PublishedResult, runs: Sequence[float | None], *, chance: float = CHANCE_ERROR
) -> Agreement:
    """Judges whether runs at the paper's own size agree with its figure.

    Like is compared with like: a median with the median of these runs, a mean with their mean, a single run
    with their median, and a best run through the mean printed beside it. The runs' 95 % bootstrap interval
    is widened on both sides by

        1.96 · c · s / √m + half a unit of the last printed digit,

    where the paper's figure is of m runs with spread s (the paper's, or else that of these runs, since the
    experiment is the same), and c = √(π/2) for a median of more than two runs, else 1. A figure inside
    agrees, a figure outside differs. A failure ("above 20 %") agrees if the median run lies above the bound
    too.

    Args:
        published: the paper's figure.
        runs: test errors in percent; None for a run that diverged.
        chance: the error that a diverged run counts as.

    >>> judge_agreement(PublishedResult(6.61), [6.4, 6.6, 6.9]).word
    'agrees'
    >>> judge_agreement(PublishedResult(6.61), [8.1, 8.2, 8.3]).word
    'differs'
    """
    value, kind = _comparable_value(published)
    summary = summarize_runs(runs, of="mean" if kind == "mean" else "median", chance=chance)
    if summary is None:
        return Agreement("not run", "no run yet")
    if len(runs) < MIN_RUNS:
        return Agreement("not enough runs", f"{len(runs)} of at least {MIN_RUNS} runs")
    if published.above is not None:
        return _judge_failure(published.above, summary.median)
    if value is None:
        return Agreement("no figure", "the paper prints no figure here")
    spread = summary.std if published.std is None else published.std
    factor = _MEDIAN_ERROR if kind == "median" and published.statistic.runs > 2 else 1.0
    margin = _TWO_SIDED * factor * spread / math.sqrt(published.statistic.runs)
    margin += 0.5 * 10.0**-published.digits
    low, high = summary.low - margin, summary.high + margin
    inside = low - _TOLERANCE <= value <= high + _TOLERANCE
    word: AgreementWord = "agrees" if inside else "differs"
    where = "inside" if inside else "outside"
    return Agreement(
        word, f"the paper's {value:.{published.digits}f} lies {where} {low:.2f} … {high:.2f}", low, high
    )


def _comparable_value(published: PublishedResult) -> tuple[float | None, str]:
    """The figure to compare with, and its kind of statistic."""
    kind = published.statistic.kind
    if kind == "best" and published.mean is not None:
        return published.mean, "mean"
    return published.value, kind


def _judge_failure(above: float, middle: float) -> Agreement:
    if middle > above:
        return Agreement("agrees", f"fails as in the paper: the median error {middle:.2f} is above {above:g}")
    return Agreement("differs", f"does not fail: the median error {middle:.2f} is not above {above:g}")
