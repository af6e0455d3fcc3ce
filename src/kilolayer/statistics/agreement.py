"""A cell's runs as figures, and whether they agree with the paper's.

Errors are in percent. A run that diverged (None, infinite or not a number) counts as a network that
guesses, `chance` percent wrong: it is never dropped, since dropping failures is how a bad unit looks good.
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
"""Below three runs nothing is said about agreement: two have no middle and hardly a spread."""

CHANCE_ERROR = 90.0
"""The error of guessing among ten classes."""

RESAMPLES = 10_000
_SEED = 0
_TWO_SIDED = 1.96  # standard errors to each side of 95 % of a normal distribution
_MEDIAN_ERROR = math.sqrt(math.pi / 2)  # a median's standard error in those of a mean, for normal runs
_TOLERANCE = 1e-9  # what floating point may lose where a bound is met exactly


def error_rates(runs: Sequence[float | None], chance: float = CHANCE_ERROR) -> FloatArray:
    """The runs' errors, with `chance` for those that diverged."""
    return np.array([chance if run is None or not math.isfinite(run) else run for run in runs], np.float64)


def median(values: FloatArray, axis: int | None = None) -> FloatArray:
    """The middle value, or the mean of the two middle ones."""
    return np.asarray(np.median(values, axis=axis), np.float64)


def mean(values: FloatArray, axis: int | None = None) -> FloatArray:
    return np.asarray(np.mean(values, axis=axis), np.float64)


def bootstrap_interval(
    values: FloatArray, statistic: Callable[[FloatArray, int], FloatArray] = median, *, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic, from `RESAMPLES` samples drawn with a fixed seed.

    For the median of so few runs as 3 or 5 it is simply their range, and covers the true median with
    probability 1 − 2^(1−n): 75 % of the time for n = 3, 94 % for n = 5.
    """
    return percentile_interval(statistic(bootstrap_samples(values), 1), level)


def bootstrap_samples(values: FloatArray, seed: int = _SEED) -> FloatArray:
    """`RESAMPLES` samples of the values, drawn with replacement: shape (RESAMPLES, n)."""
    indices = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return values[indices]


def percentile_interval(statistics: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the values, between two of them."""
    tail = (1 - level) / 2
    low = np.quantile(statistics, tail, method="lower")
    return float(low), float(np.quantile(statistics, 1 - tail, method="higher"))


@dataclass(frozen=True)
class RunSummary:
    """`n` runs, `diverged` of them; `low` and `high` bound the median, or the mean where that was asked for.

    `std` is the sample standard deviation, with n − 1; 0 for a single run.
    """

    n: int
    diverged: int
    median: float
    mean: float
    std: float
    low: float
    high: float


def summarize_runs(
    runs: Sequence[float | None], *, of: Literal["median", "mean"] = "median", chance: float = CHANCE_ERROR
) -> RunSummary | None:
    """The figures of these runs; None where there are none."""
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
    """A word, and why: the interval [low, high] that the paper's figure was held against, where one was."""

    word: AgreementWord
    text: str
    low: float | None = None
    high: float | None = None


def judge_agreement(
    published: PublishedResult, runs: Sequence[float | None], *, chance: float = CHANCE_ERROR
) -> Agreement:
    """Whether runs at the paper's own size agree with its figure.

    The figure's own kind is compared: a median with the median of these runs, a mean with their mean,
    a single run with their median, and a best run by the mean printed beside it. The bootstrap interval
    of ours is widened to both sides by 1.96 standard errors of the paper's figure, from the spread that
    the paper gives, else from that of these runs (the same experiment, so the same spread); and by half
    a unit of the last printed digit. Inside agrees, outside differs.

    A failure ("above 20 %") agrees where the median run lies above the bound too.
    """
    value, kind = _compared_value(published)
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


def _compared_value(published: PublishedResult) -> tuple[float | None, str]:
    """The figure to hold against, and of what kind it is."""
    kind = published.statistic.kind
    if kind == "best" and published.mean is not None:
        return published.mean, "mean"
    return published.value, kind


def _judge_failure(above: float, middle: float) -> Agreement:
    if middle > above:
        return Agreement("agrees", f"fails as in the paper: the median error {middle:.2f} is above {above:g}")
    return Agreement("differs", f"does not fail: the median error {middle:.2f} is not above {above:g}")
