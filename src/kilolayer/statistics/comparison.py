"""Compares a proxy with a paper's table: which row is better, and by how much; never absolute errors.

A smaller network on fewer images has errors of its own. The order of the rows can carry over, so the order
is compared: each row with the table's baseline, and the ranking of all rows at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from kilolayer.statistics.agreement import CHANCE_ERROR, MIN_RUNS, error_rates, median
from kilolayer.statistics.paired import Runs
from kilolayer.statistics.permutation_tests import kendall_tau, kendall_tau_test
from kilolayer.statistics.published import PublishedResult
from kilolayer.statistics.sequential import Decision, DecisionRule, decide

PairWord = Literal[
    "same direction",
    "opposite direction",
    "equivalent",
    "undecided",
    "not enough runs",
    "no direction in the paper",
    "lower error",
    "higher error",
]


@dataclass(frozen=True)
class RowPair:
    """Rows `a` and `b` in the paper and in our runs; every difference is b − a, in percentage points."""

    a: str
    b: str
    paper_direction: int
    """The sign of b − a in the paper, where a failure is worse than every number."""
    paper_gap: float | None
    """b − a in the paper; None where one of them failed."""
    word: PairWord
    """The decision beside the paper's direction."""
    decision: Decision
    """What our runs say."""
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
    rule: DecisionRule = field(default_factory=DecisionRule)
    """By what the pairs were decided."""


def compare_with_paper(
    paper: Mapping[str, PublishedResult],
    measured: Mapping[str, Runs],
    *,
    baseline: str | None = None,
    rule: DecisionRule | None = None,
    chance: float = CHANCE_ERROR,
    not_in_paper: Collection[str] = (),
) -> Comparison:
    """Compares every row with `baseline`, or every pair of rows without one, and ranks all rows.

    Rows are compared seed by seed, which cancels what a seed decides for both. Three seeds reach no less
    than p = 0.25 by sign flips, which decides nothing; six decide one comparison, nine decide ten. The
    ranking pools all rows and may be decided before.

    Args:
        paper: the paper's figures by row.
        measured: our test errors in percent, by row and seed; None for a run that diverged.
        baseline: the row to compare all others with.
        rule: how pairs are decided (`decide`); by sign flips at 5 %, without a margin, if none was stated.
        chance: the error that a diverged run counts as.
        not_in_paper: rows of your own. Their pairs have no direction in the paper, and no place in the
            ranking.

    >>> paper = {"original": PublishedResult(6.61), "BN after addition": PublishedResult(8.17)}
    >>> ours = {"original": {0: 7.0, 1: 7.1, 2: 7.2}, "BN after addition": {0: 9.0, 1: 9.3, 2: 9.5}}
    >>> pair = compare_with_paper(paper, ours, baseline="original").pairs[0]
    >>> pair.word, round(pair.decision.difference, 2), pair.decision.p
    ('undecided', 2.17, 0.25)
    """
    rule = rule or DecisionRule()
    ranked = {row: value for row, result in paper.items() if (value := result.rank_value) is not None}
    names = [*ranked, *(row for row in paper if row in not_in_paper)]
    pairs = (
        [(baseline, row) for row in names if row != baseline] if baseline else list(combinations(names, 2))
    )
    decisions = decide(rule, measured, pairs, chance=chance)
    compared = tuple(beside_paper(decision, ranked) for decision in decisions)
    return Comparison(compared, _rank_rows(ranked, measured, chance), rule)


def beside_paper(decision: Decision, paper: Mapping[str, float]) -> RowPair:
    """A decision beside the paper's direction; `paper` holds its figures for ranking, by row.

    >>> decision = Decision("original", "BN after addition", "A is better", "", difference=2.0)
    >>> beside_paper(decision, {"original": 6.61, "BN after addition": 8.17}).word
    'same direction'
    """
    a, b = decision.a, decision.b
    if a not in paper or b not in paper:
        words: dict[str, PairWord] = {"A is better": "higher error", "B is better": "lower error"}
        word = words.get(decision.word, _without_direction(decision))
        return RowPair(a, b, 0, None, word, decision, in_paper=False)
    gap = paper[b] - paper[a]
    direction = 0 if paper[a] == paper[b] else (1 if paper[b] > paper[a] else -1)
    word = _without_direction(decision)
    if decision.word in ("A is better", "B is better"):
        ours = 1 if decision.word == "A is better" else -1
        word = "same direction" if ours == direction else "opposite direction"
        word = word if direction else "no direction in the paper"
    return RowPair(a, b, direction, gap if math.isfinite(gap) else None, word, decision)


def _without_direction(decision: Decision) -> PairWord:
    match decision.word:
        case "equivalent" | "not enough runs":
            return decision.word
        case _:
            return "undecided"


def _rank_rows(paper: Mapping[str, float], measured: Mapping[str, Runs], chance: float) -> Ranking:
    rows = tuple(row for row in paper if len(measured.get(row, {})) >= MIN_RUNS)
    if len(rows) < 2:
        return Ranking(rows, 0.0, 1.0, 1.0, "not enough rows with runs to rank")
    theirs = [paper[row] for row in rows]
    ours = [median(error_rates(list(measured[row].values()), chance)) for row in rows]
    tau, p_value = kendall_tau(theirs, ours), kendall_tau_test(theirs, ours)
    text = f"τ = {tau:.2f} over {len(rows)} rows (one-sided p = {p_value.p:.2g})"
    if p_value.smallest > 0.05:
        text += f"; {len(rows)} rows can reach no less than p = {p_value.smallest:.2g}"
    return Ranking(rows, tau, p_value.p, p_value.smallest, text)
