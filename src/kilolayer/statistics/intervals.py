"""Intervals that are named by what they cover.

A confidence interval of few runs is either honest or narrow. Where a method has no interval of the wanted
coverage at so few runs, the range stands in its place and is called "range": it promises nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

MAX_ENUMERATED = 16
"""Up to so many values every pattern of signs is used, 2^16 = 65,536; above, `DRAWS` random ones."""
DRAWS = 99_999
SEED = 0


@dataclass(frozen=True)
class Interval:
    """Two ends, and what lies between them how often.

    >>> str(Interval(6.4, 6.9, 0.95, "t")), str(Interval(6.4, 6.9))
    ('95 % interval', 'range')
    """

    low: float
    high: float
    coverage: float | None = None
    """The probability that intervals made like this one hold the true value; None for a range."""
    method: str = "range"
    """What it was computed by: "t", "sign flips", "order statistics", "Welch"."""

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return "range" if self.coverage is None else f"{coverage_text(self.coverage)} interval"


def coverage_text(coverage: float) -> str:
    """A coverage in percent, with three digits, cut off and never rounded up.

    >>> coverage_text(0.95), coverage_text(1 - 2 / 512), coverage_text(0.9999)
    ('95 %', '99.6 %', '99.99 %')
    """
    digits = max(1, 1 - math.floor(math.log10(1 - coverage) + 1e-9) - 2)
    return (
        f"{math.floor(100 * coverage * 10**digits + 1e-9) / 10**digits:.{digits}f}".rstrip("0").rstrip(".")
        + " %"
    )


def range_of(values: FloatArray) -> Interval:
    """The least and the greatest value: a range, which promises no coverage."""
    return Interval(float(np.min(values)), float(np.max(values)))


def has_no_spread(values: FloatArray) -> bool:
    """Whether all values are equal up to rounding. Such runs say nothing about how much others would vary:
    errors come in steps of one image, and a few of them are equal by chance."""
    return len(values) < 2 or bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


def t_interval(values: FloatArray, level: float = 0.05) -> Interval:
    """The interval of a mean by Student's t: x̄ ± t_{1−level/2, n−1} · s/√n.

    It covers with probability 1 − `level` where the values are normal. Values without spread have none; their
    range is returned. Source: Student 1908; `scipy.stats.ttest_1samp`.

    >>> interval = t_interval(np.array([6.4, 6.6, 6.9]))
    >>> round(interval.low, 2), round(interval.high, 2), str(interval)
    (6.01, 7.26, '95 % interval')
    """
    if has_no_spread(values):
        return range_of(values)
    from scipy import stats

    ends = stats.ttest_1samp(values, 0.0).confidence_interval(1 - level)
    return Interval(float(ends.low), float(ends.high), 1 - level, "t")


def median_interval(values: FloatArray, level: float = 0.05) -> Interval:
    """The interval of a median by order statistics, for any distribution; a range below six values.

        coverage = 1 − 2·P(B < k) ≥ 1 − level,   B ~ Binomial(n, ½),  from the k-th least to the k-th greatest

    The least and the greatest of n values hold the median with probability 1 − 2^(1−n): 75 % for three, 94 %
    for five, 97 % for six. Source: Thompson 1936; `scipy.stats.quantile_test`.

    >>> str(median_interval(np.array([6.4, 6.6, 6.9])))
    'range'
    >>> interval = median_interval(np.arange(9.0))
    >>> interval.low, interval.high, str(interval)
    (1.0, 7.0, '96 % interval')
    """
    from scipy import stats

    n = len(values)
    ends = stats.quantile_test(values, p=0.5).confidence_interval(1 - level)
    if not math.isfinite(ends.low) or not math.isfinite(ends.high):
        return range_of(values)
    # The least k with P(B < k) ≤ level/2 that SciPy chose.
    k = int(stats.binom.ppf(level / 2, n, 0.5))
    coverage = 1 - 2 * float(stats.binom.cdf(k - 1, n, 0.5))
    return Interval(float(ends.low), float(ends.high), coverage, "order statistics")


def sign_flip_interval(values: FloatArray, level: float = 0.05) -> Interval:
    """The interval of the centre of a symmetric distribution: the centres that the sign-flip test keeps.

    The 2^n − 1 means of all subsets of the values cut the line into 2^n parts, each of which holds the centre
    with the same probability. From the k-th least mean to the k-th greatest it is therefore

        coverage = 1 − 2k/2^n,   k = ⌊level · 2^n / 2⌋

    exactly, whatever the distribution's form and width. The difference of two rows trained with the same
    seeds is symmetric about 0 where the rows do not differ. Below 1 + log₂(1/level) values, six for 95 %, no
    such interval exists, and the range is returned.

    Source: Hartigan 1969 ("typical values").

    >>> interval = sign_flip_interval(np.array([0.2, 0.5, 0.3, 0.6, 0.4, 0.1]))
    >>> interval.low, interval.high, str(interval)
    (0.1, 0.6, '96.8 % interval')
    """
    subsets = _subsets(len(values))
    total = len(subsets) + 1
    k = math.floor(level * total / 2 + 1e-9)
    if k < 1:
        return range_of(values)
    means = np.sort(subsets @ values / subsets.sum(axis=1))
    return Interval(float(means[k - 1]), float(means[-k]), 1 - 2 * k / total, "sign flips")


@cache
def _subsets(n: int) -> NDArray[np.bool_]:
    """The non-empty subsets of n values as rows of flags: all of them, or `DRAWS` random ones."""
    if n <= MAX_ENUMERATED:
        return (np.arange(1, 2**n)[:, None] >> np.arange(n) & 1).astype(bool)
    subsets = np.random.default_rng(SEED).random((DRAWS, n)) < 0.5
    return subsets[subsets.any(axis=1)]
