"""A proxy beside a paper's table: who is better than whom, and by how much; never absolute errors.

A smaller network on fewer images has its own errors. What can carry over is the order of the rows, so
that is what is compared: each row against the table's baseline, and the ranking of all rows at once.
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
    """Row `b` minus row `a`, in percent of error.

    `paper_gap` is None where one of them failed in the paper; `paper_direction` is the sign of b − a,
    a failure being worse than every number. `gap` is the median of ours, in [low, high]. `p_holm` is `p`
    adjusted for all pairs of the table, and `smallest` the least that `p_holm` could have been.
    """

    a: str
    b: str
    paper_direction: int
    paper_gap: float | None
    word: PairWord
    text: str
    n: int = 0
    gap: float = math.nan
    low: float = math.nan
    high: float = math.nan
    test: str = ""
    p: float = 1.0
    p_holm: float = 1.0
    smallest: float = 1.0
    in_paper: bool = True


@dataclass(frozen=True)
class Ranking:
    """Kendall's τ_b between the paper's ranking of `rows` and that of our medians."""

    rows: tuple[str, ...]
    tau: float
    p: float
    smallest: float
    text: str


@dataclass(frozen=True)
class Comparison:
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
    """Every row against `baseline`, or every pair of rows where there is none, and the ranking of all.

    "auto" tests by sign flips over the seeds that both rows share, if all their seeds are shared, else by
    exchanged labels. Pairing cancels what a seed decides for both rows, but three seeds can then reach
    no less than p = 0.25; exchanged labels reach 0.1. Neither decides at 0.05: for that take six shared
    seeds, or four against four and one pair; or read the ranking, which pools all rows.

    Rows `not_in_paper` are a user's own: their pairs have no direction in the paper, and no place in the ranking.
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
    """The median gap, its bootstrap interval, and the test of there being none.

    Where median and mean lie on different sides of 0, the runs point nowhere, and p is 1.
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
        # Two seeds, or samples of equal size would be drawn alike from both.
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
