"""Compares the rows of a table: the paper's gaps and ranking beside ours, and whether runs decide them."""

from __future__ import annotations

from kilolayer.report.document import Table
from kilolayer.report.reproduction_tables import table_label
from kilolayer.statistics import Comparison, RowPair
from kilolayer.statistics.agreement import MIN_RUNS
from kilolayer.sweep.results import TableResult

LEVEL = 0.05
TEST_NOTE = "p: exact permutation test on our runs, adjusted by Holm for all pairs of the table."
COMPARISON_HEADER = ("row", "paper", "here", "95 % interval", "p", "finding")


def gap_tables(table_findings: TableResult) -> tuple[Table, ...]:
    """One table a column: each row against the baseline, with the paper's gap, our gap, and the outcome."""
    return tuple(
        _comparison(table_findings, group, compared)
        for group, compared in table_findings.comparisons.items()
        if _comparable(compared)
    )


def _comparable(comparison: Comparison) -> bool:
    return any(pair.word != "not enough runs" for pair in comparison.pairs)


def _comparison(table_findings: TableResult, group: str, comparison: Comparison) -> Table:
    against = {pair.a for pair in comparison.pairs}
    single = next(iter(against)) if len(against) == 1 else ""
    rows = tuple(
        (pair.b if single else f"{pair.b} against {pair.a}", *_pair(pair)) for pair in comparison.pairs
    )
    where = table_label(table_findings) if group == "error" else f"{table_label(table_findings)}, {group}"
    subject = f"gaps to “{single}”" if single else "gaps between rows"
    return Table(
        f"{where}: {subject} in percent of error; positive is worse.",
        COMPARISON_HEADER,
        rows,
        f"{TEST_NOTE}{_limit(comparison)}",
    )


def _limit(comparison: Comparison) -> str:
    """A note where there are too few runs for any pair to be decided, whatever they measure."""
    tested = [pair for pair in comparison.pairs if pair.word != "not enough runs"]
    least = min((pair.smallest for pair in tested), default=0.0)
    if least <= LEVEL:
        return ""
    runs = max(pair.n for pair in tested)
    return f" With {runs} runs a row no pair can be decided (p ≥ {least:.2g}); the ranking pools all rows."


def _pair(pair: RowPair) -> tuple[str, ...]:
    gap = "fail" if pair.paper_gap is None else _signed(pair.paper_gap)
    paper = gap if pair.in_paper else "–"
    if pair.word == "not enough runs":
        return (paper, "–", "–", "–", pair.text)
    interval = f"{_signed(pair.low)} to {_signed(pair.high)}"
    return (paper, _signed(pair.gap), interval, f"{pair.p_holm:.2g}", _verdict_text(pair))


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _verdict_text(pair: RowPair) -> str:
    """The outcome of a pair in at most four words."""
    if pair.word != "not decided":
        return pair.word
    if not pair.gap:
        points = "no gap"
    elif pair.in_paper:
        points = "same way" if pair.gap * pair.paper_direction > 0 else "opposite way"
    else:
        points = "lower" if pair.gap < 0 else "higher"
    return f"not decided, {points}"


def ranking_sentences(table_findings: TableResult) -> list[str]:
    """A sentence for each group of rows that can be ranked, and one for groups that need more runs."""
    alone = len(table_findings.comparisons) == 1
    early = not all(map(_comparable, table_findings.comparisons.values()))
    least = [f"Rows are compared when they have {MIN_RUNS} runs each."] if early else []
    return least + [
        f"The paper's ranking against ours{'' if alone else f', {group}'}: {compared.ranking.text}."
        for group, compared in table_findings.comparisons.items()
        if _comparable(compared)
    ]
