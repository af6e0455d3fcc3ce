"""How many paired seeds a comparison needs, from the paired spread that a pilot measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kilolayer.errors import InputError
from kilolayer.statistics.agreement import CHANCE_ERROR, error_rates
from kilolayer.statistics.intervals import MAX_ENUMERATED, SEED, FloatArray
from kilolayer.statistics.paired import PairedTest, Runs
from kilolayer.statistics.permutation_tests import least_pairs

MAX_PAIRS = 10_000
_TRIALS = 4_000
_MIN_PAIRS = 3


@dataclass(frozen=True)
class PowerPlan:
    """The least number of pairs that reaches the wanted power, and what it reaches."""

    n: int
    power: float
    """The probability of the decision with n pairs."""
    level: float
    """α / comparisons: what the first comparison to be decided has to reach (Holm)."""
    least: int
    """The number below which the test decides nothing, whatever the runs."""


def paired_spread(a: Runs, b: Runs, chance: float = CHANCE_ERROR) -> float:
    """The standard deviation of b − a over the seeds that both rows have, with n − 1.

    Raises `InputError` for fewer than two shared seeds.

    >>> round(paired_spread({0: 6.0, 1: 7.0, 2: 6.5}, {0: 6.5, 1: 7.4, 2: 7.1}), 2)
    0.1
    """
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        raise InputError(f"{len(seeds)} shared seeds have no spread; allowed: at least 2")
    first, second = (error_rates([row[seed] for seed in seeds], chance) for row in (a, b))
    return float((second - first).std(ddof=1))


def spread_bound(spread: float, pairs: int, confidence: float = 0.8) -> float:
    """The upper bound of a spread that a pilot of so few pairs measured, for normal differences.

        s · √((n − 1) / χ²_{1−confidence, n−1})

    A plan by the pilot's own s has too little power half of the time. Source: Browne 1995.

    >>> round(spread_bound(0.3, 4), 2)
    0.52
    """
    from scipy import stats

    return spread * math.sqrt((pairs - 1) / float(stats.chi2.ppf(1 - confidence, pairs - 1)))


def pairs_needed(
    difference: float,
    spread: float,
    *,
    comparisons: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
    test: PairedTest = "sign flips",
) -> PowerPlan:
    """The pairs that find a true difference with the wanted probability, for normal differences.

    The t test's power is that of the noncentral t; the sign-flip test's is simulated with a fixed seed (4,000
    trials, ± 0.006), and the t test's above 16 pairs, where the two are the same within that.

    Args:
        difference: the true mean of b − a, in percentage points.
        spread: the standard deviation of b − a over seeds (`paired_spread`).
        comparisons: of the family; the first to be decided has to reach α / comparisons.
        alpha: the family's error.
        power: the wanted probability.
        test: "sign flips" or "paired t".

    Raises:
        InputError: for numbers out of range, and where 10,000 pairs are too few.

    Source: Cohen 1988; `scipy.stats.nct`.

    >>> plan = pairs_needed(2.0, 0.5, comparisons=10)
    >>> plan.n, plan.least
    (9, 9)
    >>> pairs_needed(2.0, 0.5, comparisons=10, test="paired t").n
    5
    """
    level = _level(comparisons, alpha, power)
    _check_positive(difference=abs(difference), spread=spread)
    return _plan(
        comparisons,
        alpha,
        power,
        test,
        lambda n: _t_power(n, difference, spread, level),
        lambda n: _sign_flip_power(n, difference, spread, level, None),
    )


def pairs_for_equivalence(
    margin: float,
    spread: float,
    *,
    comparisons: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
    true_difference: float = 0.0,
    test: PairedTest = "sign flips",
) -> PowerPlan:
    """The pairs that show equivalence within ± `margin` (TOST) with the wanted probability.

    Args:
        margin: in percentage points.
        spread: the standard deviation of b − a over seeds.
        comparisons: of the family.
        alpha: the family's error.
        power: the wanted probability.
        true_difference: what b − a truly is; it must lie within the margin.
        test: "sign flips" or "paired t".

    Raises:
        InputError: for numbers out of range, and where 10,000 pairs are too few.

    Source: Schuirmann 1987; Phillips 1990.

    >>> pairs_for_equivalence(0.5, 0.3, test="paired t").n
    5
    """
    level = _level(comparisons, alpha, power)
    _check_positive(margin=margin, spread=spread)
    if abs(true_difference) >= margin:
        raise InputError(f"true_difference is {true_difference:g}; allowed: within ± {margin:g}, the margin")
    return _plan(
        comparisons,
        alpha,
        power,
        test,
        lambda n: _t_equivalence_power(n, true_difference, spread, level, margin),
        lambda n: _sign_flip_power(n, true_difference, spread, level, margin),
    )


def _level(comparisons: int, alpha: float, power: float) -> float:
    if comparisons < 1:
        raise InputError(f"comparisons is {comparisons}; allowed: 1 or more")
    for name, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value:g}; allowed: between 0 and 1")
    return alpha / comparisons


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value:g}; allowed: above 0, in percentage points")


def _plan(
    comparisons: int,
    alpha: float,
    power: float,
    test: PairedTest,
    t_power: Callable[[int], float],
    sign_flip_power: Callable[[int], float],
) -> PowerPlan:
    least = least_pairs(comparisons, alpha) if test == "sign flips" else _MIN_PAIRS
    n = _least_t(t_power, power, least)
    reached = t_power(n)
    if test == "sign flips":
        while n <= MAX_ENUMERATED and (reached := sign_flip_power(n)) < power:
            n += 1
        reached = reached if n <= MAX_ENUMERATED else t_power(n)
    return PowerPlan(n, reached, alpha / comparisons, least)


def _least_t(power_of: Callable[[int], float], power: float, least: int) -> int:
    """The least n whose power is enough, by bisection: power grows with n."""
    if power_of(MAX_PAIRS) < power:
        raise InputError(f"more than {MAX_PAIRS:,} pairs would be needed for a power of {power:g}")
    low, high = least - 1, MAX_PAIRS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def _t_power(n: int, difference: float, spread: float, level: float) -> float:
    from scipy import stats

    critical = stats.t.isf(level / 2, n - 1)
    shift = abs(difference) * math.sqrt(n) / spread
    # Beyond 37 standard errors the noncentral t underflows, and the power is 1.
    return 1.0 if shift - critical > 37 else float(stats.nct.sf(critical, n - 1, shift))


def _t_equivalence_power(n: int, difference: float, spread: float, level: float, margin: float) -> float:
    """P(|x̄| + t·s/√n < margin): for each s the normal probability of x̄, averaged over s."""
    from scipy import stats

    shares = (np.arange(1000) + 0.5) / 1000
    error = spread / math.sqrt(n)
    half = stats.t.isf(level, n - 1) * error * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))
    room = margin - half
    inside = stats.norm.cdf((room - difference) / error) - stats.norm.cdf((-room - difference) / error)
    return float(np.maximum(inside, 0).mean())


def _sign_flip_power(n: int, difference: float, spread: float, level: float, margin: float | None) -> float:
    """The share of simulated trials that the sign-flip test decides."""
    trials = np.random.default_rng(SEED).normal(difference, spread, (_TRIALS, n))
    if margin is None:
        tests = [np.logical_or(_reaches(trials, level / 2), _reaches(-trials, level / 2))]
    else:
        tests = [_reaches(trials + margin, level), _reaches(margin - trials, level)]
    return float(np.logical_and.reduce(tests).mean())


def _reaches(trials: FloatArray, level: float) -> NDArray[np.bool_]:
    """Which trials the one-sided sign-flip test finds above 0: P(Σ of a random subset ≤ 0) ≤ level."""
    subsets = (np.arange(2 ** trials.shape[1])[:, None] >> np.arange(trials.shape[1]) & 1).astype(np.float64)
    chunks = np.array_split(trials, max(1, trials.size * len(subsets) // 10**8))
    return np.concatenate([((subsets @ part.T) <= 0).mean(axis=0) <= level * (1 + 1e-9) for part in chunks])
