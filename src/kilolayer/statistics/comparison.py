"""Compares a proxy with a paper's table: which row is better, and by how much; never absolute errors.

A smaller network on fewer images has errors of its own. The order of the rows can carry over, so the order
is compared: each row with the table's baseline, and the ranking of all rows at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from kilolayer.statistics.agreement import (
    CHANCE_ERROR,
    MIN_RUNS,
    bootstrap_interval,
    bootstrap_samples,
    error_rates,
    median,
    percentile_interval,
)
from kilolayer.statistics.permutation_tests import (
    PValue,
    holm_adjust,
    kendall_tau,
    kendall_tau_test,
    label_exchange_test,
    sign_flip_test,
)
from kilolayer.statistics.published import PublishedResult

Runs = Mapping[int, float | None]
"""A row's test errors in percent by seed; None for a run that diverged."""

TestName = Literal["auto", "sign flips", "exchanged labels"]
PairWord = Literal[
    "same direction",
    "opposite direction",
    "not decided",
    "not enough runs",
    "no direction in the paper",
    "lower error",
    "higher error",
]


@dataclass(frozen=True)
class RowPair:
    """Row `b` minus row `a`, in percent of error, in the paper and in our runs."""

    a: str
    b: str
    paper_direction: int
    """The sign of b − a in the paper, where a failure is worse than every number."""
    paper_gap: float | None
    """b − a in the paper; None where one of them failed."""
    word: PairWord
    text: str
    """The outcome in words."""
    n: int = 0
    """Runs of the row with fewer runs."""
    gap: float = math.nan
    """The median gap of our runs."""
    low: float = math.nan
    """The lower end of the gap's 95 % bootstrap interval."""
    high: float = math.nan
    """The upper end."""
    test: str = ""
    """The permutation test."""
    p: float = 1.0
    p_holm: float = 1.0
    """`p` adjusted for all pairs of the table (`holm_adjust`)."""
    smallest: float = 1.0
    """The smallest `p_holm` that so many runs can reach."""
    in_paper: bool = True
    """Whether both rows are the paper's; a row of your own has no direction there."""


@dataclass(frozen=True)
class Ranking:
    """Kendall's τ_b between the paper's ranking of `rows` and that of our medians.

    `p` is one-sided, and `smallest` the smallest p that so many rows can reach.
    """

    rows: tuple[str, ...]
    tau: float
    p: float
    smallest: float
    text: str


@dataclass(frozen=True)
class Comparison:
    """Our runs of a table beside the paper's: pairs of rows, and the ranking of all rows."""

    pairs: tuple[RowPair, ...]
    ranking: Ranking


def compare_with_paper(
    paper: Mapping[str, PublishedResult],
    measured: Mapping[str, Runs],
    *,
    baseline: str | None = None,
    test: TestName = "auto",
    level: float = 0.05,
    chance: float = CHANCE_ERROR,
    not_in_paper: Collection[str] = (),
) -> Comparison:
    """Compares every row with `baseline`, or every pair of rows without one, and ranks all rows.

    Pairing rows by seed cancels what a seed decides for both, but three seeds then reach no less than p =
    0.25; exchanged labels reach 0.1. Neither decides at 0.05. For that take six shared seeds, or four runs
    against four and a single pair; or read the ranking, which pools all rows.

    Args:
        paper: the paper's figures by row.
        measured: our test errors in percent, by row and seed; None for a run that diverged.
        baseline: the row to compare all others with.
        test: "sign flips" over the shared seeds, "exchanged labels", or "auto": sign flips if all seeds are
            shared.
        level: pairs are decided where `p_holm` is at most this.
        chance: the error that a diverged run counts as.
        not_in_paper: rows of your own. Their pairs have no direction in the paper, and no place in the
            ranking.

    >>> paper = {"original": PublishedResult(6.61), "BN after addition": PublishedResult(8.17)}
    >>> ours = {"original": {0: 7.0, 1: 7.1, 2: 7.2}, "BN after addition": {0: 9.0, 1: 9.3, 2: 9.5}}
    >>> pair = compare_with_paper(paper, ours, baseline="original").pairs[0]
    >>> pair.word, round(pair.gap, 2), pair.p
    ('not decided', 2.2, 0.25)
    """
    ranked = {row: value for row, result in paper.items() if (value := result.rank_value) is not None}
    names = [*ranked, *(row for row in paper if row in not_in_paper)]
    rows = [(baseline, row) for row in names if row != baseline] if baseline else combinations(names, 2)
    pairs = [_compare_rows(a, b, ranked, measured, test, chance) for a, b in rows]
    return Comparison(_decide_pairs(pairs, level), _rank_rows(ranked, measured, chance))


def _compare_rows(
    a: str,
    b: str,
    paper: Mapping[str, float],
    measured: Mapping[str, Runs],
    test: TestName,
    chance: float,
) -> RowPair:
    pair = RowPair(a, b, 0, None, "not enough runs", "", in_paper=a in paper and b in paper)
    if pair.in_paper:
        gap = paper[b] - paper[a]
        direction = 0 if paper[a] == paper[b] else (1 if paper[b] > paper[a] else -1)
        pair = replace(pair, paper_direction=direction, paper_gap=gap if math.isfinite(gap) else None)
    first, second = measured.get(a, {}), measured.get(b, {})
    if test == "sign flips":
        shared = first.keys() & second.keys()
        first, second = ({seed: runs[seed] for seed in shared} for runs in (first, second))
    n = min(len(first), len(second))
    if n < MIN_RUNS:
        return replace(pair, n=n, text=f"{n} of at least {MIN_RUNS} runs")
    paired = test == "sign flips" or (test == "auto" and first.keys() == second.keys())
    middle, low, high, p_value = _median_gap(first, second, paired, chance)
    return replace(
        pair,
        word="not decided",
        n=n,
        gap=middle,
        low=low,
        high=high,
        test=p_value.name,
        p=p_value.p,
        smallest=p_value.smallest,
    )


def _median_gap(first: Runs, second: Runs, paired: bool, chance: float) -> tuple[float, float, float, PValue]:
    """The median gap, the ends of its bootstrap interval, and the test of the hypothesis of no gap.

    Where median and mean lie on different sides of 0 the runs have no direction, and p is 1.
    """
    seeds_a, seeds_b = sorted(first), sorted(second)
    a, b = (
        error_rates([runs[s] for s in seeds], chance) for runs, seeds in ((first, seeds_a), (second, seeds_b))
    )
    if paired:
        differences = b - a
        middle = float(median(differences))
        low, high = bootstrap_interval(differences)
        p_value = sign_flip_test(differences.tolist())
    else:
        middle = float(median(b)) - float(median(a))
        # Two seeds: with one, samples of equal size would be drawn with the same indices from both rows.
        low, high = percentile_interval(
            median(bootstrap_samples(b, seed=1), 1) - median(bootstrap_samples(a, seed=2), 1)
        )
        p_value = label_exchange_test(a.tolist(), b.tolist())
    if middle * float(np.mean(b) - np.mean(a)) <= 0:
        p_value = replace(p_value, p=1.0)
    return middle, low, high, p_value


def _decide_pairs(pairs: list[RowPair], level: float) -> tuple[RowPair, ...]:
    tested = [pair for pair in pairs if pair.word == "not decided"]
    p_values = zip(
        holm_adjust([pair.p for pair in tested]), holm_adjust([pair.smallest for pair in tested]), strict=True
    )
    adjusted = dict(zip(map(id, tested), p_values, strict=True))
    return tuple(
        _decide_pair(pair, adjusted[id(pair)], level) if id(pair) in adjusted else pair for pair in pairs
    )


def _decide_pair(pair: RowPair, p_and_smallest: tuple[float, float], level: float) -> RowPair:
    pair = replace(pair, p_holm=p_and_smallest[0], smallest=p_and_smallest[1])
    same_direction = pair.gap * pair.paper_direction > 0
    if pair.paper_direction == 0 and pair.in_paper:
        return replace(
            pair, word="no direction in the paper", text="both rows have the same figure in the paper"
        )
    if pair.p_holm <= level:
        word: PairWord = "same direction" if same_direction else "opposite direction"
        if not pair.in_paper:
            word = "lower error" if pair.gap < 0 else "higher error"
        return replace(pair, word=word, text=f"{word} (p = {pair.p_holm:.2g})")
    if pair.gap == 0:
        points = "no gap"
    elif pair.in_paper:
        points = f"the median gap points the {'same' if same_direction else 'opposite'} way"
    else:
        points = f"the median error is {'lower' if pair.gap < 0 else 'higher'}"
    text = f"not decided (p = {pair.p_holm:.2g}); {points}"
    if pair.smallest > level:
        text += f"; {pair.n} runs can reach no less than p = {pair.smallest:.2g}"
    return replace(pair, text=text)


def _rank_rows(paper: Mapping[str, float], measured: Mapping[str, Runs], chance: float) -> Ranking:
    rows = tuple(row for row in paper if len(measured.get(row, {})) >= MIN_RUNS)
    if len(rows) < 2:
        return Ranking(rows, 0.0, 1.0, 1.0, "not enough rows with runs to rank")
    theirs = [paper[row] for row in rows]
    ours = [float(median(error_rates(list(measured[row].values()), chance))) for row in rows]
    tau, p_value = kendall_tau(theirs, ours), kendall_tau_test(theirs, ours)
    text = f"τ = {tau:.2f} over {len(rows)} rows (one-sided p = {p_value.p:.2g})"
    if p_value.smallest > 0.05:
        text += f"; {len(rows)} rows can reach no less than p = {p_value.smallest:.2g}"
    return Ranking(rows, tau, p_value.p, p_value.smallest, text)
