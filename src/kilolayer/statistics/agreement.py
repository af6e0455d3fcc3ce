"""A table cell's runs as figures, and whether they agree with the paper's.

Errors are in percent. A run that diverged (None, infinite or not a number) counts as a network that guesses,
with an error of `chance` percent. It is never dropped: dropping failures would make a bad unit look good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kilolayer.errors import InputError
from kilolayer.statistics.intervals import (
    FloatArray,
    Interval,
    has_no_spread,
    median_interval,
    range_of,
    t_interval,
)
from kilolayer.statistics.published import PublishedResult

AgreementWord = Literal["agrees", "differs", "undecided", "not enough runs", "not run", "no figure"]

MIN_RUNS = 3
"""With fewer runs there is no verdict: two runs have no middle and hardly a spread."""

MIN_INTERVAL_RUNS = 6
"""With fewer runs a summary shows their range; no interval of a median covers 95 % of the time."""

CHANCE_ERROR = 90.0
"""The error of guessing among ten classes, in percent."""

AGREEMENT_MARGIN = 0.5
"""Runs agree with a figure if their mean lies within so many percentage points of it, and this is certain."""

LEVEL = 0.05
_MEDIAN_VARIANCE = math.pi / 2  # a median's variance in those of a mean, for many normal runs
_TOLERANCE = 1e-9  # what floating point may lose where a bound is met exactly


def error_rates(runs: Sequence[float | None], chance: float = CHANCE_ERROR) -> FloatArray:
    """The runs' errors, with `chance` for runs that diverged.

    >>> error_rates([6.5, None]).tolist()
    [6.5, 90.0]
    """
    return np.array([chance if run is None or not math.isfinite(run) else run for run in runs], np.float64)


def median(values: FloatArray) -> float:
    """The middle value, or the mean of the two middle values."""
    return float(np.median(values))


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
    """The lower end of the runs' range, or of an interval from six runs on."""
    high: float
    """The upper end."""
    coverage: float | None = None
    """How often such an interval holds the true median (or mean); None for a range, which promises nothing.
    """

    @property
    def interval_name(self) -> str:
        """What `low` and `high` are: "range", or an interval with its coverage."""
        return str(Interval(self.low, self.high, self.coverage))


def summarize_runs(
    runs: Sequence[float | None], *, of: Literal["median", "mean"] = "median", chance: float = CHANCE_ERROR
) -> RunSummary | None:
    """Summarises runs; None without runs.

    Below six runs `low` and `high` are the least and the greatest error. From six on they are the interval
    of the median by order statistics, which covers at least 95 % of the time for any distribution
    (`median_interval`), or of the mean by Student's t, which covers 95 % for normal runs (`t_interval`).

    Args:
        runs: test errors in percent; None for a run that diverged.
        of: the statistic that `low` and `high` bound.
        chance: the error that a diverged run counts as.

    >>> summary = summarize_runs([6.4, 6.6, 6.9])
    >>> summary.median, summary.low, summary.high, summary.interval_name
    (6.6, 6.4, 6.9, 'range')
    """
    if not runs:
        return None
    values = error_rates(runs, chance)
    if len(values) < MIN_INTERVAL_RUNS:
        interval = range_of(values)
    else:
        interval = t_interval(values, LEVEL) if of == "mean" else median_interval(values, LEVEL)
    return RunSummary(
        n=len(values),
        diverged=sum(run is None or not math.isfinite(run) for run in runs),
        median=median(values),
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        low=interval.low,
        high=interval.high,
        coverage=interval.coverage,
    )


@dataclass(frozen=True)
class Agreement:
    """Whether runs agree with a published figure."""

    word: AgreementWord
    text: str
    """The reason in words."""
    low: float | None = None
    """The lower end of the 95 % interval of our mean minus the figure, in percentage points."""
    high: float | None = None
    """The upper end."""
    margin: float | None = None
    """The greatest difference that counts as agreement."""
    replications: Mapping[str, AgreementWord] = field(default_factory=dict)
    """The verdict beside each further laboratory's figure of the same experiment, by its name."""


def judge_agreement(
    published: PublishedResult,
    runs: Sequence[float | None],
    *,
    chance: float = CHANCE_ERROR,
    margin: float = AGREEMENT_MARGIN,
    replications: Mapping[str, PublishedResult] | None = None,
) -> Agreement:
    """Judges whether runs at the paper's own size agree with its figure, within ± `margin`.

    D is the mean of our n runs minus the paper's figure, which is itself of m runs. Its 95 % interval is

        D ± (t · √(s²/n + c·s_p²/m) + half a unit of the last printed digit)

    where s is our runs' spread, s_p the paper's, or ours where it prints none (the experiment is the same), t
    has n − 1 degrees of freedom, or m − 1 where the paper prints a spread of fewer runs, and c = π/2 for a
    median of more than two runs, else 1. A best run is judged by the mean printed beside it.

    | the interval | verdict |
    |---|---|
    | lies within ± margin | agrees |
    | leaves out 0, and lies not within ± margin | differs |
    | otherwise | undecided |

    So runs that vary more never agree more easily. It holds for runs that are normal, or many, and where a
    paper's median and mean are about the same. A failure ("above 20 %") is judged by a sign test of the
    median against the bound: five runs decide at the earliest.

    Args:
        published: the paper's figure.
        runs: test errors in percent; None for a run that diverged.
        chance: the error that a diverged run counts as.
        margin: in percentage points.
        replications: further laboratories' figures of the same experiment, by name; each is judged by itself.

    Raises:
        InputError: for a margin that is not positive.

    Source: Schuirmann 1987; Scheffé 1970 (the fewer degrees of freedom are conservative).

    >>> judge_agreement(PublishedResult(6.61), [6.5, 6.6, 6.7, 6.6, 6.6]).text
    'our mean 6.60 less 6.61 is −0.01, 95 % interval −0.23 to 0.21, within ± 0.5'
    >>> judge_agreement(PublishedResult(6.61), [5.4, 6.6, 7.9]).word
    'undecided'
    """
    if not margin > 0:
        raise InputError(f"margin is {margin:g}; allowed: above 0, in percentage points")
    agreement = _judge(published, runs, chance, margin)
    if agreement.word not in ("agrees", "differs", "undecided") or not replications:
        return agreement
    by_laboratory = {name: _judge(figure, runs, chance, margin) for name, figure in replications.items()}
    text = "; ".join(
        [
            agreement.text,
            *(f"{name}, {replications[name]}: {verdict.word}" for name, verdict in by_laboratory.items()),
        ]
    )
    words = {name: verdict.word for name, verdict in by_laboratory.items()}
    return Agreement(agreement.word, text, agreement.low, agreement.high, margin, words)


def _judge(
    published: PublishedResult, runs: Sequence[float | None], chance: float, margin: float
) -> Agreement:
    if not runs:
        return Agreement("not run", "no run yet")
    if len(runs) < MIN_RUNS:
        return Agreement("not enough runs", f"{len(runs)} of at least {MIN_RUNS} runs")
    values = error_rates(runs, chance)
    if published.above is not None:
        return _judge_failure(published.above, values)
    value, kind = _comparable_value(published)
    if value is None:
        return Agreement("no figure", "the paper prints no figure here")
    figure = f"{value:.{published.digits}f}"
    if has_no_spread(values):
        return Agreement("undecided", f"{len(runs)} equal errors show no spread to judge {figure} by")
    difference = float(values.mean()) - value
    half = _half_width(values, published, kind) + 0.5 * 10.0**-published.digits
    low, high = difference - half, difference + half
    word: AgreementWord = "undecided"
    if max(-low, high) <= margin + _TOLERANCE:
        word, outcome = "agrees", f"within ± {margin:g}"
    elif low > _TOLERANCE or high < -_TOLERANCE:
        word, outcome = "differs", f"without 0 and not within ± {margin:g}"
    else:
        outcome = f"undecided at ± {half:.2g}, the margin being ± {margin:g}"
    text = (
        f"our mean {values.mean():.2f} less {figure} is {difference:.2f}, 95 % interval "
        f"{low:.2f} to {high:.2f}, {outcome}"
    )
    return Agreement(word, text.replace("-", "−"), low, high, margin)


def _half_width(values: FloatArray, published: PublishedResult, kind: str) -> float:
    """t times the standard error of our mean minus the figure."""
    from scipy import stats

    n, runs = len(values), published.statistic.runs
    factor = _MEDIAN_VARIANCE if kind == "median" and runs > 2 else 1.0
    ours = float(values.var(ddof=1)) / n
    if published.std is None:
        theirs, freedom = ours * n * factor / runs, float(n - 1)
    else:
        theirs = factor * published.std**2 / runs
        # The fewer, not Welch's: those grow where one spread does, and a noisier paper would narrow t.
        freedom = float(min(n, runs if runs > 1 else n) - 1)
    return float(stats.t.isf(LEVEL / 2, freedom)) * math.sqrt(ours + theirs)


def _comparable_value(published: PublishedResult) -> tuple[float | None, str]:
    """The figure to compare with, and its kind of statistic."""
    kind = published.statistic.kind
    if kind == "best" and published.mean is not None:
        return published.mean, "mean"
    return published.value, kind


def _judge_failure(above: float, values: FloatArray) -> Agreement:
    from scipy import stats

    n, failed = len(values), int((values > above).sum())
    text = f"{failed} of {n} runs fail as the paper's do, above {above:g} %"
    if stats.binomtest(failed, n, 0.5, alternative="greater").pvalue <= LEVEL:
        return Agreement("agrees", text)
    if stats.binomtest(failed, n, 0.5, alternative="less").pvalue <= LEVEL:
        return Agreement("differs", text)
    return Agreement("undecided", f"{text}; five that all do would decide" if n < 5 else text)
