"""The rows of a table compared: the paper's gaps and ranking beside ours, and whether the runs decide."""

from __future__ import annotations

from kilolayer.analysis import Comparison, Pair
from kilolayer.analysis.statistics import LEAST_RUNS
from kilolayer.commands.reproduction_tables import named
from kilolayer.report.content import Table
from kilolayer.sweep.findings import TableFindings

LEVEL = 0.05
TEST = "p: exact permutation test on our runs, adjusted by Holm for all pairs of the table."
COMPARISON = ("row", "paper", "here", "95 % interval", "p", "finding")


def comparisons(one: TableFindings) -> tuple[Table, ...]:
    """For every column the rows against the baseline: the paper's gap, ours, and whether the runs decide."""
    return tuple(
        _comparison(one, group, compared)
        for group, compared in one.comparisons.items()
        if _comparable(compared)
    )


def _comparable(compared: Comparison) -> bool:
    return any(pair.word != "not enough runs" for pair in compared.pairs)


def _comparison(one: TableFindings, group: str, compared: Comparison) -> Table:
    against = {pair.a for pair in compared.pairs}
    single = next(iter(against)) if len(against) == 1 else ""
    rows = tuple(
        (pair.b if single else f"{pair.b} against {pair.a}", *_pair(pair)) for pair in compared.pairs
    )
    where = named(one) if group == "error" else f"{named(one)}, {group}"
    what = f"gaps to “{single}”" if single else "gaps between rows"
    return Table(
        f"{where}: {what} in percent of error; positive is worse.",
        COMPARISON,
        rows,
        f"{TEST}{_limit(compared)}",
    )


def _limit(compared: Comparison) -> str:
    """Where no pair could be decided, whatever the runs had given, a reader must know it."""
    tested = [pair for pair in compared.pairs if pair.word != "not enough runs"]
    least = min((pair.smallest for pair in tested), default=0.0)
    if least <= LEVEL:
        return ""
    runs = max(pair.n for pair in tested)
    return f" With {runs} runs a row none can be decided (p ≥ {least:.2g}); the ranking pools all rows."


def _pair(pair: Pair) -> tuple[str, ...]:
    paper = "fail" if pair.paper_gap is None else _signed(pair.paper_gap)
    if pair.word == "not enough runs":
        return (paper, "–", "–", "–", pair.text)
    interval = f"{_signed(pair.low)} to {_signed(pair.high)}"
    return (paper, _signed(pair.gap), interval, f"{pair.p_holm:.2g}", _found(pair))


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _found(pair: Pair) -> str:
    """What a pair shows, in at most four words."""
    if pair.word != "not decided":
        return pair.word
    points = (
        "no gap" if not pair.gap else "same way" if pair.gap * pair.paper_direction > 0 else "opposite way"
    )
    return f"not decided, {points}"


def rankings(one: TableFindings) -> list[str]:
    """A sentence for each group of rows that can be ranked, and one where some cannot yet."""
    alone = len(one.comparisons) == 1
    early = not all(map(_comparable, one.comparisons.values()))
    least = [f"Rows are compared when they have {LEAST_RUNS} runs each."] if early else []
    return least + [
        f"The paper's ranking against ours{'' if alone else f', {group}'}: {compared.ranking.text}."
        for group, compared in one.comparisons.items()
        if _comparable(compared)
    ]
