"""Two rows whose runs share seeds: their difference, its interval, and tests of difference and equivalence.

A seed decides the initial weights and the order of the images for both rows, so the difference b − a of one
seed has less spread than either row, and is symmetric about 0 where the rows do not differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kilolayer.errors import InputError
from kilolayer.statistics.intervals import (
    FloatArray,
    Interval,
    coverage_text,
    has_no_spread,
    range_of,
    sign_flip_interval,
    t_interval,
)
from kilolayer.statistics.permutation_tests import sign_flip_test

Runs = Mapping[int, float | None]
"""A row's test errors in percent by seed; None for a run that diverged."""

PairedTest = Literal["sign flips", "paired t"]
PAIRED_TESTS: tuple[PairedTest, ...] = ("sign flips", "paired t")


@dataclass(frozen=True)
class PairedDifference:
    """Differences b − a of n pairs, with the tests of "no difference" and of "a difference of the margin"."""

    n: int
    mean: float
    std: float
    """The paired spread: the differences' standard deviation, with n − 1; NaN for a single pair."""
    interval: Interval
    """The mean difference's interval, or the range where none of the wanted coverage exists."""
    p: float
    """Of no difference, two-sided."""
    p_equivalence: float | None
    """Of a difference of at least the margin (TOST): the greater of two one-sided p; None without a margin.
    """
    test: PairedTest

    @property
    def interval_text(self) -> str:
        """The interval's name, with its test."""
        if self.interval.coverage is None:
            return f"range of {self.n} differences"
        return f"{coverage_text(self.interval.coverage)} interval ({self.interval.method})"


def paired_difference(
    differences: FloatArray,
    *,
    margin: float | None = None,
    level: float = 0.05,
    test: PairedTest = "sign flips",
) -> PairedDifference:
    """Tests paired differences for a difference, and for equivalence within ± `margin`.

    Equivalence is shown by two one-sided tests (TOST), of a difference ≤ −margin and of one ≥ margin; its p
    is the greater of the two. Both tests use the same assumption:

    | `test` | assumes | smallest p of n pairs |
    |---|---|---|
    | "sign flips" | differences symmetric about their centre | 2/2^n |
    | "paired t" | normal differences | none; but differences without spread are not judged (p = 1) |

    Args:
        differences: b − a for each pair, (n,).
        margin: the greatest difference that still counts as equivalent, in the differences' unit.
        level: 1 − the interval's coverage.
        test: the test, and the interval that belongs to it.

    Raises:
        InputError: without differences, or for a margin that is not positive.

    Source: Schuirmann 1987 (TOST); Fisher 1935 (sign flips); Student 1908.

    >>> found = paired_difference(np.array([0.2, 0.5, 0.3, 0.6, 0.4, 0.1]), margin=1.0)
    >>> round(found.mean, 2), found.p, found.p_equivalence, found.interval_text
    (0.35, 0.03125, 0.015625, '96.8 % interval (sign flips)')
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        raise InputError("no differences to test; allowed: at least 1")
    if margin is not None and not margin > 0:
        raise InputError(f"margin is {margin:g}; allowed: above 0")
    tested = _sign_flips(values, margin, level) if test == "sign flips" else _paired_t(values, margin, level)
    interval, p, p_equivalence = tested
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return PairedDifference(len(values), float(values.mean()), std, interval, p, p_equivalence, test)


def _sign_flips(
    values: FloatArray, margin: float | None, level: float
) -> tuple[Interval, float, float | None]:
    interval, p = sign_flip_interval(values, level), sign_flip_test(values.tolist()).p
    if margin is None:
        return interval, p, None
    above = sign_flip_test((values + margin).tolist(), "greater").p
    below = sign_flip_test((values - margin).tolist(), "less").p
    return interval, p, max(above, below)


def _paired_t(values: FloatArray, margin: float | None, level: float) -> tuple[Interval, float, float | None]:
    from scipy import stats

    if has_no_spread(values):
        return range_of(values), 1.0, None if margin is None else 1.0
    interval, p = t_interval(values, level), float(stats.ttest_1samp(values, 0.0).pvalue)
    if margin is None:
        return interval, p, None
    above = float(stats.ttest_1samp(values, -margin, alternative="greater").pvalue)
    below = float(stats.ttest_1samp(values, margin, alternative="less").pvalue)
    return interval, p, max(above, below)
