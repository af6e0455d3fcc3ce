"""Exact permutation tests, which assume nothing about how errors are distributed.

Every p-value is the share of rearrangements at least as extreme as what was observed, that one among
them. So a p-value is never below one share, and with few runs it cannot be small whatever they show:
`smallest` says how small it can get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_MAX_EXACT = 50_000
_DRAWS = 99_999
_SEED = 0
_TOLERANCE = 1e-9  # rearrangements that differ by rounding only are ties


@dataclass(frozen=True)
class PValue:
    """`p`, the smallest p that so many runs can reach, and the name of the test."""

    p: float
    smallest: float
    name: str


def _p_value(statistics: FloatArray, observed: float, exact: bool) -> float:
    extreme = int(np.sum(statistics >= observed - _TOLERANCE))
    # Of random rearrangements the observed one is counted in addition, which keeps the test valid.
    return extreme / len(statistics) if exact else (extreme + 1) / (len(statistics) + 1)


def sign_flip_test(differences: Sequence[float]) -> PValue:
    """Two-sided test that paired differences are symmetric about 0, by |their sum| under flipped signs.

    The smallest p of n pairs is 2/2^n: 0.25 for three, 0.0625 for five, 0.03125 for six.
    """
    values = np.asarray(differences, np.float64)
    n = len(values)
    exact = 2**n <= _MAX_EXACT
    if exact:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(_SEED).choice([1.0, -1.0], (_DRAWS, n))
    p = _p_value(np.abs(signs @ values), abs(values.sum()), exact)
    return PValue(p, 2 / 2**n if exact else 1 / (_DRAWS + 1), "sign flips")


def label_exchange_test(a: Sequence[float], b: Sequence[float]) -> PValue:
    """Two-sided test that a and b are drawn alike, by |difference of their means| under exchanged labels.

    The smallest p of three against three is 2/20 = 0.1, of five against five 2/252 = 0.008.
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
    # With equal sizes every division has a mirror image that is just as extreme.
    least = (2 if len(a) == len(b) else 1) / ways
    return PValue(p, least if exact else 1 / (_DRAWS + 1), "exchanged labels")


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's τ_b, from −1 to 1: (concordant − discordant pairs) over the pairs without ties; 0 if none."""
    a, b = _pairwise_signs(x), _pairwise_signs(y)
    scale = math.sqrt(float(np.sum(a * a)) * float(np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale else 0.0


def kendall_tau_test(x: Sequence[float], y: Sequence[float]) -> PValue:
    """One-sided test that y ranks as x does, by τ_b when y's values are dealt out anew.

    One-sided, since only agreement is asked for: the smallest p of n rows without ties is 1/n!.
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
    """Holm's step-down adjustment: the chance of any false alarm in the family stays below each."""
    adjusted, highest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
