"""The rule by which a sweep's comparisons are decided, stated before its first run, and its decisions.

Runs are added in looks: after each stated number of paired seeds all comparisons are tested, and those that
are decided need no further runs. Looking several times at 5 % each would find differences that are not there
in more than 5 % of all sweeps, so the looks share the error, and the comparisons share it too (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.errors import InputError
from kilolayer.statistics.agreement import CHANCE_ERROR, error_rates
from kilolayer.statistics.intervals import FloatArray
from kilolayer.statistics.paired import PAIRED_TESTS, PairedDifference, PairedTest, Runs, paired_difference
from kilolayer.statistics.permutation_tests import least_pairs, sign_flip_step

Spending = Literal["O'Brien-Fleming", "Pocock"]
SPENDINGS: tuple[Spending, ...] = ("O'Brien-Fleming", "Pocock")

DecisionWord = Literal["A is better", "B is better", "equivalent", "undecided", "not enough runs"]

MIN_PAIRS = 3
"""With fewer pairs there is no decision: two differences have no middle and hardly a spread."""

LEARNED_NOTHING = 0.95
"""A run whose error is above this share of the error of guessing has learned nothing."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class DecisionRule:
    """How paired comparisons are decided: test, margin, error, and when to look.

    At look k, after n_k of at most n_K pairs, a comparison is tested at the level

        α_k = α(n_k/n_K) − α(n_{k−1}/n_K),   α(t) = 4·(1 − Φ(z_{α/4}/√t))  or  α·ln(1 + (e − 1)·t)

    by the spending functions of Lan and DeMets, the first like O'Brien and Fleming's boundary, the second
    like Pocock's. The levels add up to α, so the overall error is at most α however the looks depend on each
    other, for normal differences and any others for which the test of one look holds. (Boundaries that
    reckon with the looks' correlation are a little wider: with three looks the last level would be 4.6 %, not
    3.8 %. Their values are exact for many pairs only; with t tests of 3, 6 and 9 pairs they err in 5.3 % of
    cases instead of 5 %.) The sign-flip test has p in steps of 2/2^n; what it cannot spend at one look is
    left for the next.

    Raises:
        InputError: for numbers out of range, and looks that do not increase.

    Source: Lan and DeMets 1983; Holm 1979.

    >>> [round(level, 4) for level in DecisionRule((3, 6, 9), test="paired t").look_levels()]
    [0.0002, 0.0119, 0.0379]
    """

    looks: tuple[int, ...] = ()
    """The numbers of paired seeds at which you look; the last is the most that is run. None: one look, at
    whatever runs there are; such a comparison was not planned, and more runs may not be added to decide it.
    """
    margin: float | None = None
    """The difference in percentage points up to which rows count as equivalent. None: none ever do."""
    alpha: float = 0.05
    """The probability of any false decision of "better" among all comparisons, and of any of "equivalent".
    """
    test: PairedTest = "sign flips"
    """What it assumes: see `paired_difference`."""
    spending: Spending = "O'Brien-Fleming"
    """How the looks share α: early looks very little, or all about the same."""

    def __post_init__(self) -> None:
        if any(later <= earlier for earlier, later in pairwise((MIN_PAIRS - 1, *self.looks))):
            raise InputError(f"looks are {self.looks}; allowed: increasing numbers from {MIN_PAIRS} on")
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise InputError(f"margin is {self.margin:g}; allowed: above 0, in percentage points")
        if not 0 < self.alpha < 0.5:
            raise InputError(f"alpha is {self.alpha:g}; allowed: between 0 and 0.5")
        for name, value, allowed in (
            ("test", self.test, PAIRED_TESTS),
            ("spending", self.spending, SPENDINGS),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")

    def look_levels(self, comparisons: int = 1) -> tuple[float, ...]:
        """The two-sided level of each look, for the first of so many comparisons to be decided (Holm).

        >>> DecisionRule((9,)).look_levels(10)
        (0.005,)
        """
        return _look_levels(self, self.looks, self.alpha / comparisons)

    def check(self, comparisons: int) -> None:
        """Raises `InputError` where no look can decide the first of so many comparisons, whatever the runs.

        >>> DecisionRule((9,)).check(10)  # nine pairs can: 2/2^9 ≤ 0.05/10
        """
        if self.test == "paired t" or not self.looks:
            return
        levels = zip(self.looks, self.look_levels(comparisons), strict=True)
        if not any(_reaches(sign_flip_step(n), level) for n, level in levels):
            least = least_pairs(comparisons, self.alpha)
            raise InputError(
                f"{self.looks[-1]} pairs cannot decide any of {comparisons} comparisons at α = "
                f"{self.alpha:g} by sign flips; allowed: {least} pairs or more, or the paired t test"
            )


def _spent(rule: DecisionRule, share: float, alpha: float) -> float:
    """The error that may be spent once this share of the pairs is there."""
    if share >= 1:
        return alpha
    if rule.spending == "Pocock":
        return alpha * math.log1p((math.e - 1) * share)
    normal = NormalDist()
    return 4 * normal.cdf(normal.inv_cdf(alpha / 4) / math.sqrt(share))


def _look_levels(rule: DecisionRule, looks: Sequence[int], alpha: float, sides: int = 2) -> tuple[float, ...]:
    """The level of each look. What a test in steps leaves of it is added to the next look's."""
    levels, used = [], 0.0
    for n in looks:
        level = _spent(rule, n / looks[-1], alpha) - used
        levels.append(level)
        if rule.test == "sign flips":
            step = sign_flip_step(n, sides)
            level = math.floor(level / step * (1 + _ROUNDING)) * step
        used += level
    return tuple(levels)


def _reaches(p: float, level: float) -> bool:
    return p <= level * (1 + _ROUNDING)


@dataclass(frozen=True)
class Decision:
    """What the runs say about rows a and b, whose errors are compared seed by seed."""

    a: str
    b: str
    word: DecisionWord
    text: str
    """The decision in words, with the rows' names."""
    final: bool = False
    """Whether no further seeds are to be run: the pair is decided, or at its last look."""
    n: int = 0
    """The pairs at the look that decided, or else at the last look that is complete; before the first look,
    the pairs that there are."""
    difference: float = math.nan
    """The mean of b − a, in percentage points."""
    low: float = math.nan
    """The lower end of its interval."""
    high: float = math.nan
    """The upper end."""
    coverage: float | None = None
    """The interval's coverage; None where it is a range, since so few pairs have no interval."""
    interval: str = ""
    """The interval's name."""
    p: float = 1.0
    """Of no difference, two-sided, unadjusted."""
    level: float = math.nan
    """What p had to reach: the look's share of α, divided by the comparisons left (Holm)."""
    p_equivalence: float | None = None
    """Of a difference of at least the margin (TOST), unadjusted; None without a margin."""
    margin: float | None = None
    failed: tuple[int, int] = (0, 0)
    """The runs of a, and of b, that diverged, among the n of each."""

    @property
    def half_width(self) -> float:
        """The x of "undecided at ± x": half the interval's width."""
        return (self.high - self.low) / 2


def decide(
    rule: DecisionRule,
    rows: Mapping[str, Runs],
    pairs: Sequence[tuple[str, str]],
    *,
    seeds: Sequence[int] | None = None,
    chance: float = CHANCE_ERROR,
) -> tuple[Decision, ...]:
    """Decides each pair of rows (a, b), with one error α for all of them.

    Every decision is one of: "A is better", "B is better" (the two-sided test reaches its level),
    "equivalent" (within ± margin, by TOST at the same level), "undecided". Where both hold at one look, the
    difference is named; it is then smaller than the margin, and the text says so. A decision of an early look
    stands, whatever comes later.

    All pairs count for Holm, those without runs too: they were planned. Differences and equivalences are two
    families, each with α.

    A run that diverged counts as `chance`. Sign flips need no more: a seed's difference is symmetric about 0
    under "no difference", with failures as without. The t test's error stays below α with failures in both
    rows (its differences then have heavy tails), but it finds less. If all runs of both rows failed, the rows
    are not called equivalent.

    Args:
        rule: what was planned.
        rows: the rows' errors by seed; None for a run that diverged. A seed counts once both rows have it.
        pairs: the names (a, b) of the rows to compare.
        seeds: the order in which seeds are used; look k uses the first n_k. Ascending if not given.
        chance: the error in percent that a diverged run counts as.

    Raises:
        InputError: for a rule that no runs can fulfil (`DecisionRule.check`).

    Source: Holm 1979; Lan and DeMets 1983; Maurer and Bretz 2013 (Holm with several looks).

    >>> rows = {"original": {s: 6.6 + 0.1 * (s % 3) for s in range(9)}, "full": {s: 6.3 for s in range(9)}}
    >>> decide(DecisionRule((9,), margin=1.0), rows, [("original", "full")])[0].text
    '“full” is better than “original”, by less than the margin of 1 points'
    """
    rule.check(len(pairs))
    cases = [_case(rule, rows, pair, seeds, chance) for pair in pairs]
    better = _first_looks(rule, cases, [[test.p for test in case.tests] for case in cases], sides=2)
    equal = _first_looks(rule, cases, [case.equivalence for case in cases], sides=1)
    remaining = len(pairs) - len(better)
    return tuple(
        _decision(rule, case, better.get(index), equal.get(index), len(pairs), max(1, remaining))
        for index, case in enumerate(cases)
    )


@dataclass(frozen=True)
class _Case:
    """A pair of rows, with its tests at every look that is complete."""

    a: str
    b: str
    looks: tuple[int, ...]
    """All looks of the rule, or the one at all pairs."""
    errors: FloatArray
    """(2, pairs)."""
    failed: NDArray[np.bool_]
    """(2, pairs): which runs learned nothing."""
    tests: tuple[PairedDifference, ...]

    @property
    def equivalence(self) -> list[float]:
        """The p of equivalence at every look; 1 without a margin, or where no run of either row learned."""
        return [
            1.0 if test.p_equivalence is None or self.failed[:, : test.n].all() else test.p_equivalence
            for test in self.tests
        ]


def _case(
    rule: DecisionRule,
    rows: Mapping[str, Runs],
    pair: tuple[str, str],
    seeds: Sequence[int] | None,
    chance: float,
) -> _Case:
    runs = [rows.get(name, {}) for name in pair]
    shared = runs[0].keys() & runs[1].keys()
    order = sorted(shared) if seeds is None else list(takewhile(shared.__contains__, seeds))
    looks = rule.looks or ((len(order),) if len(order) >= MIN_PAIRS else ())
    errors = np.array([error_rates([row[seed] for seed in order], chance) for row in runs])
    tests = tuple(
        paired_difference(errors[1, :n] - errors[0, :n], margin=rule.margin, test=rule.test)
        for n in looks
        if n <= len(order)
    )
    return _Case(*pair, looks, errors, errors >= LEARNED_NOTHING * chance, tests)


def _first_looks(
    rule: DecisionRule, cases: Sequence[_Case], p_values: Sequence[Sequence[float]], sides: int
) -> dict[int, int]:
    """By case the first look whose p reaches its level, by Holm's steps over all cases.

    Each step tests all cases that are left at α divided by their number, at every look that is complete; a
    case that is decided leaves more of α to the others.
    """
    decided: dict[int, int] = {}
    while remaining := [index for index in range(len(cases)) if index not in decided]:
        alpha, new = rule.alpha / len(remaining), {}
        for index in remaining:
            levels = _look_levels(rule, cases[index].looks, alpha, sides)
            reached = (k for k, p in enumerate(p_values[index]) if _reaches(p, levels[k]))
            if (look := next(reached, None)) is not None:
                new[index] = look
        if not new:
            break
        decided |= new
    return decided


def _decision(
    rule: DecisionRule, case: _Case, better: int | None, equal: int | None, comparisons: int, remaining: int
) -> Decision:
    a, b = case.a, case.b
    if not case.tests:
        pairs = case.errors.shape[1]
        least = case.looks[0] if case.looks else MIN_PAIRS
        return Decision(
            a, b, "not enough runs", f"{pairs} of at least {least} pairs of runs", margin=rule.margin
        )
    reached_looks = [look for look in (better, equal) if look is not None]
    look = min(reached_looks, default=len(case.tests) - 1)
    level = _look_levels(rule, case.looks, rule.alpha / comparisons)[look]
    n = case.looks[look]
    differences = case.errors[1, :n] - case.errors[0, :n]
    test = paired_difference(differences, margin=rule.margin, level=level, test=rule.test)
    word: DecisionWord = "undecided"
    if better == look:
        word = "A is better" if test.mean > 0 else "B is better"
    elif equal == look:
        word = "equivalent"
    failed = case.failed[:, :n].sum(axis=1)
    decision = Decision(
        a,
        b,
        word,
        "",
        final=bool(reached_looks) or n == (rule.looks[-1] if rule.looks else None),
        n=n,
        difference=test.mean,
        low=test.interval.low,
        high=test.interval.high,
        coverage=test.interval.coverage,
        interval=test.interval_text,
        p=test.p,
        level=_look_levels(rule, case.looks, rule.alpha / remaining)[look],
        p_equivalence=test.p_equivalence,
        margin=rule.margin,
        failed=(int(failed[0]), int(failed[1])),
    )
    return replace(decision, text=_text(decision, smaller=better == equal == look))


def _text(decision: Decision, smaller: bool) -> str:
    a, b, margin = f"“{decision.a}”", f"“{decision.b}”", f"{decision.margin or 0:g}"
    failures = (
        f"; {decision.failed[0]} and {decision.failed[1]} of {decision.n} runs learned nothing"
        if any(decision.failed)
        else ""
    )
    match decision.word:
        case "A is better" | "B is better":
            first, second = (a, b) if decision.word == "A is better" else (b, a)
            size = f", by less than the margin of {margin} points" if smaller else ""
            text = f"{first} is better than {second}{size}"
        case "equivalent":
            text = f"{a} and {b} are equivalent within ± {margin} points"
        case _ if sum(decision.failed) == 2 * decision.n:
            return f"undecided: neither {a} nor {b} learned anything in {decision.n} seeds"
        case _:
            text = f"undecided at ± {decision.half_width:.2g} points between {a} and {b}"
            if decision.coverage is None:
                text += f" (half the range of {decision.n} differences)"
    return text + failures
