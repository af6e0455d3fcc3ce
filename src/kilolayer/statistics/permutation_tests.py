"""Exact permutation tests, which assume nothing about the distribution of errors.

A p-value is the share of rearrangements whose statistic is at least as extreme as the observed one, which is
one of them. So with few runs p cannot be small, whatever they show; `PValue.smallest` says how small it can
get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.errors import InputError

FloatArray = NDArray[np.float64]
Alternative = Literal["two-sided", "less", "greater"]

_MAX_EXACT = 50_000
_DRAWS = 99_999
_SEED = 0
_TOLERANCE = 1e-9  # rearrangements that differ by rounding only are ties


@dataclass(frozen=True)
class PValue:
    """The result of a permutation test."""

    p: float
    smallest: float
    """The smallest p that so many runs can reach."""
    name: str
    """The test, in words."""


def _p_value(statistics: FloatArray, observed: float, exact: bool) -> float:
    extreme = int(np.sum(statistics >= observed - _TOLERANCE))
    # Random rearrangements do not include the observed one; counting it keeps the test valid.
    return extreme / len(statistics) if exact else (extreme + 1) / (len(statistics) + 1)


def sign_flip_test(differences: Sequence[float], alternative: Alternative = "two-sided") -> PValue:
    """Test of the hypothesis that paired differences d are symmetric about 0.

        p = share of sign vectors s with |Σ sᵢ dᵢ| ≥ |Σ dᵢ|

    All 2^n sign vectors are used up to n = 15, random ones above. The smallest p of n pairs is 2/2^n: 0.25
    for three, 0.0625 for five, 0.03125 for six.

    Args:
        differences: one for each pair.
        alternative: "greater" or "less" for a centre above or below 0; the smallest p is then 1/2^n.

    Source: Fisher 1935; Good 2005.

    >>> sign_flip_test([1.0, 2.0, 3.0]).p
    0.25
    """
    values = np.asarray(differences, np.float64)
    n = len(values)
    exact = 2**n <= _MAX_EXACT
    if exact:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(_SEED).choice([1.0, -1.0], (_DRAWS, n))
    sums, observed = signs @ values, float(values.sum())
    if alternative == "two-sided":
        sums, observed = np.abs(sums), abs(observed)
    elif alternative == "less":
        sums, observed = -sums, -observed
    p = _p_value(sums, observed, exact)
    return PValue(p, sign_flip_step(n, 2 if alternative == "two-sided" else 1), "sign flips")


def sign_flip_step(n: int, sides: int = 2) -> float:
    """The step in which the sign-flip test's p comes, which is the smallest that n pairs can reach.

    >>> sign_flip_step(9) == 2 / 2**9
    True
    """
    return sides / 2**n if 2**n <= _MAX_EXACT else 1 / (_DRAWS + 1)


def label_exchange_test(a: Sequence[float], b: Sequence[float]) -> PValue:
    """Two-sided test of the hypothesis that a and b have the same distribution.

        p = share of divisions of the pooled values into groups of these sizes whose means differ by at least
        |ā − b̄|

    All divisions are used if there are at most 50,000, random ones otherwise. The smallest p of three
    against three is 2/20 = 0.1, of five against five 2/252 = 0.008.

    Source: Fisher 1935; Good 2005.

    >>> label_exchange_test([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]).p
    0.1
    """
    values, n, m = np.array([*a, *b], np.float64), len(a), len(a) + len(b)
    ways = math.comb(m, n)
    exact = ways <= _MAX_EXACT
    if exact:
        chosen = np.array(list(combinations(range(m), n)))
    else:
        chosen = np.argsort(np.random.default_rng(_SEED).random((_DRAWS, m)), axis=1)[:, :n]
    sums = values[chosen].sum(axis=1)
    gaps = np.abs(sums / n - (values.sum() - sums) / (m - n))
    p = _p_value(gaps, abs(float(np.mean(a) - np.mean(b))), exact)
    # With equal sizes every division has a mirror image that is equally extreme.
    least = (2 if len(a) == len(b) else 1) / ways
    return PValue(p, least if exact else 1 / (_DRAWS + 1), "exchanged labels")


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's rank correlation τ_b, from −1 to 1; 0 where all of x or of y are tied.

        τ_b = (concordant − discordant pairs) / √(pairs not tied in x · pairs not tied in y)

    Infinities are allowed and tie with one another. Source: Kendall 1945.

    >>> kendall_tau([1, 2, 3], [1, 3, 2])
    0.3333333333333333
    """
    a, b = _pairwise_signs(x), _pairwise_signs(y)
    scale = math.sqrt(float(np.sum(a * a)) * float(np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale else 0.0


def kendall_tau_test(x: Sequence[float], y: Sequence[float]) -> PValue:
    """One-sided test of the hypothesis that y's ranking has nothing to do with x's.

        p = share of permutations π with τ_b(x, y∘π) ≥ τ_b(x, y)

    One-sided, since only agreement counts. All permutations are used up to n = 8, random ones above. The
    smallest p of n rows without ties is 1/n!.

    >>> kendall_tau_test([1, 2, 3], [10, 20, 30]).p
    0.16666666666666666
    """
    n = len(x)
    exact = math.factorial(n) <= _MAX_EXACT
    a, b = _pairwise_signs(x), _pairwise_signs(y)
    rows, columns = np.triu_indices(n, 1)
    orders = (
        np.array(list(permutations(range(n))))
        if exact
        else np.argsort(np.random.default_rng(_SEED).random((_DRAWS, n)), axis=1)
    )
    x_signs = a[rows, columns]
    sums = sum(
        (
            x_signs[k] * b[orders[:, i], orders[:, j]]
            for k, (i, j) in enumerate(zip(rows, columns, strict=True))
        ),
        start=np.zeros(len(orders)),
    )
    p = _p_value(sums, float(np.sum(x_signs * b[rows, columns])), exact)
    ties = math.prod(math.factorial(list(x).count(value)) for value in set(x))
    return PValue(p, ties / math.factorial(n) if exact else 1 / (_DRAWS + 1), "τ of dealt-out rows")


def _pairwise_signs(values: Sequence[float]) -> FloatArray:
    """sign(v_i − v_j) for every pair; infinities tie with one another."""
    column = np.asarray(values, np.float64)[:, None]
    return (column > column.T).astype(np.float64) - (column < column.T)


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
