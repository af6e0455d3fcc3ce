"""Compares the rows of a table: the paper's gaps and ranking beside ours, and whether runs decide them."""

from __future__ import annotations

from kilolayer.report.document import Table
from kilolayer.report.reproduction_tables import table_label
from kilolayer.statistics import Comparison, RowPair, least_pairs
from kilolayer.statistics.agreement import MIN_RUNS
from kilolayer.sweep.results import TableResult

HEADER = ("row", "paper", "here", "interval", "n", "p", "level", "finding")
NOTE = (
    "Here: the mean difference over shared seeds. p reaches its level or does not; the levels share "
    "{alpha:g} % among the comparisons (Holm)."
)


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
        (pair.b if single else f"{pair.b} against {pair.a}", *pair_cells(pair)) for pair in comparison.pairs
    )
    where = table_label(table_findings) if group == "error" else f"{table_label(table_findings)}, {group}"
    subject = f"gaps to “{single}”" if single else "gaps between rows"
    return Table(
        f"{where}: {subject} in percent of error; positive is worse.", HEADER, rows, _note(comparison)
    )


def _note(comparison: Comparison) -> str:
    """What the columns mean, and whether there are too few runs for any pair to be decided."""
    tested = [pair.decision for pair in comparison.pairs if pair.word != "not enough runs"]
    names = ", ".join(dict.fromkeys(decision.interval for decision in tested))
    note = (
        f"{NOTE.format(alpha=100 * comparison.rule.alpha)} Test: {comparison.rule.test}. Interval: {names}."
    )
    fewest, most = least_pairs(len(comparison.pairs), comparison.rule.alpha), max(d.n for d in tested)
    if comparison.rule.test == "sign flips" and most < fewest:
        note += f" {most} pairs can decide none of {len(comparison.pairs)} comparisons, {fewest} can; the "
        note += "ranking pools all rows."
    return note


def pair_cells(pair: RowPair) -> tuple[str, ...]:
    """A pair as a row of `HEADER`, but for its name."""
    gap = "fail" if pair.paper_gap is None else signed(pair.paper_gap)
    paper, decision = gap if pair.in_paper else "–", pair.decision
    if pair.word == "not enough runs":
        return (paper, "–", "–", str(decision.n), "–", "–", decision.text)
    interval = f"{signed(decision.low)} to {signed(decision.high)}"
    p_and_level = (f"{decision.p:.2g}", f"{decision.level:.2g}")
    return (paper, signed(decision.difference), interval, str(decision.n), *p_and_level, pair_finding(pair))


def signed(value: float) -> str:
    """A difference with its sign and two digits."""
    return f"{value:+.2f}".replace("-", "−")


def pair_finding(pair: RowPair) -> str:
    """The decision on a pair beside the paper, in few words."""
    match pair.word:
        case "undecided":
            return f"undecided at ± {pair.decision.half_width:.2g}"
        case "equivalent":
            return f"equivalent within ± {pair.decision.margin:g}"
        case "no direction in the paper":
            return f"{'worse' if pair.decision.difference > 0 else 'better'}, equal in the paper"
        case _:
            return pair.word


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
