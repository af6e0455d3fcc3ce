"""Exact permutation tests, which assume nothing about the distribution of errors, and Holm's adjustment.

A p-value is the share of rearrangements whose statistic is at least as extreme as the observed one, which is
one of them. So with few runs p cannot be small, whatever they show; `PValue.smallest` says how small it can
get. `scipy.stats.permutation_test` and `scipy.stats.kendalltau` compute them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kilolayer.errors import InputError
from kilolayer.statistics.intervals import DRAWS, MAX_ENUMERATED, SEED, FloatArray

Alternative = Literal["two-sided", "less", "greater"]


@dataclass(frozen=True)
class PValue:
    """The result of a permutation test."""

    p: float
    smallest: float
    """The smallest p that so many runs can reach."""
    name: str
    """The test, in words."""


def sign_flip_test(differences: Sequence[float], alternative: Alternative = "two-sided") -> PValue:
    """Test of the hypothesis that paired differences d are symmetric about 0.

        p = share of sign vectors s with |Σ sᵢ dᵢ| ≥ |Σ dᵢ|

    All 2^n sign vectors are used up to n = 16, random ones above. The smallest p of n pairs is 2/2^n: 0.25
    for three, 0.0625 for five, 0.03125 for six.

    Args:
        differences: one for each pair.
        alternative: "greater" or "less" for a centre above or below 0; the smallest p is then 1/2^n.

    Source: Fisher 1935; Good 2005.

    >>> sign_flip_test([1.0, 2.0, 3.0]).p
    0.25
    """
    # SciPy takes no single value; a zero beside it changes no share.
    values = np.array([*differences, *([0.0] if len(differences) == 1 else [])], np.float64)
    p = _permutation_p((values,), np.sum, "samples", alternative)
    step = sign_flip_step(len(differences), 2 if alternative == "two-sided" else 1)
    return PValue(p, min(1.0, step), "sign flips")


def sign_flip_step(n: int, sides: int = 2) -> float:
    """The step in which the sign-flip test's p comes, which is the smallest that n pairs can reach.

    >>> sign_flip_step(9) == 2 / 2**9
    True
    """
    return sides / (2**n if n <= MAX_ENUMERATED else DRAWS + 1)


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's rank correlation τ_b, from −1 to 1; 0 where all of x or of y are tied.

        τ_b = (concordant − discordant pairs) / √(pairs not tied in x · pairs not tied in y)

    Infinities are allowed and tie with one another. Source: Kendall 1945; `scipy.stats.kendalltau`.

    >>> round(kendall_tau([1, 2, 3], [1, 3, 2]), 4)
    0.3333
    """
    from scipy import stats

    tau = float(stats.kendalltau(x, y).statistic)
    return 0.0 if math.isnan(tau) else tau


def kendall_tau_test(x: Sequence[float], y: Sequence[float]) -> PValue:
    """One-sided test of the hypothesis that y's ranking has nothing to do with x's.

        p = share of permutations π with τ_b(x, y∘π) ≥ τ_b(x, y)

    One-sided, since only agreement counts. All permutations are used up to n = 8, random ones above. The
    smallest p of n rows without ties is 1/n!.

    >>> round(kendall_tau_test([1, 2, 3], [10, 20, 30]).p, 4)
    0.1667
    """
    from scipy import stats

    n, x_signs = len(x), _pairwise_signs(np.asarray(x, np.float64))

    def concordant(ranks: FloatArray, axis: int) -> FloatArray:
        # τ_b's denominator is the same for every permutation.
        return np.asarray((x_signs * _pairwise_signs(np.moveaxis(ranks, axis, -1))).sum(axis=(-2, -1)))

    # Ranks in place of values: infinities have no difference.
    p = _permutation_p((stats.rankdata(y),), concordant, "pairings", "greater")
    ties = math.prod(math.factorial(list(x).count(value)) for value in set(x))
    exact = math.factorial(n) <= DRAWS
    return PValue(p, ties / math.factorial(n) if exact else 1 / (DRAWS + 1), "τ of dealt-out rows")


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of m p-values, in the order given.

        p̃_(k) = max over j ≤ k of min(1, (m − j + 1) · p_(j)),   p_(1) ≤ p_(2) ≤ …

    Rejecting every p̃ ≤ α keeps the probability of any false rejection at most α. Source: Holm 1979.

    >>> holm_adjust([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def least_pairs(comparisons: int = 1, alpha: float = 0.05) -> int:
    """The least number of pairs with which the sign-flip test can decide one of `comparisons` under Holm.

        2/2^n ≤ α/m

    Six for a single comparison at 5 %, nine for ten of them. Raises `InputError` for numbers out of range.

    >>> least_pairs(), least_pairs(10)
    (6, 9)
    """
    if comparisons < 1 or not 0 < alpha < 1:
        raise InputError(f"{comparisons} comparisons at α = {alpha:g}; at least 1, and α between 0 and 1")
    n = 1
    while 2 / 2**n > alpha / comparisons * (1 + 1e-9):
        n += 1
    return n


def _permutation_p(
    samples: tuple[FloatArray, ...],
    statistic: Any,
    kind: Literal["samples", "pairings"],
    alternative: Alternative = "two-sided",
) -> float:
    from scipy import stats

    found = stats.permutation_test(
        samples,
        statistic,
        permutation_type=kind,
        n_resamples=DRAWS,
        vectorized=True,
        batch=10_000,
        alternative=alternative,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def _pairwise_signs(values: FloatArray) -> FloatArray:
    """sign(v_i − v_j) for every pair on the last axis; infinities tie with one another."""
    first, second = values[..., :, None], values[..., None, :]
    return (first > second).astype(np.float64) - (first < second)
