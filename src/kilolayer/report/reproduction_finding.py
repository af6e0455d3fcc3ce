"""The findings of a reproduction: one sentence for each table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kilolayer.report.reproduction_tables import table_label
from kilolayer.statistics.agreement import MIN_RUNS
from kilolayer.sweep.results import CellResult, TableResult

GAP_WORDS = {
    "same direction": "as in the paper",
    "opposite direction": "opposite to the paper",
    "equivalent": "equivalent within the margin",
    "undecided": "undecided",
    "not enough runs": f"undecided with fewer than {MIN_RUNS} runs each",
    "no direction in the paper": "without a direction in the paper",
    "lower error": "to a lower error (not in the paper)",
    "higher error": "to a higher error (not in the paper)",
}


def finding_sentence(table_findings: TableResult, *, registered: bool = False) -> str:
    """A table's finding: its lowest error beside the paper's, and how many gaps the runs decide.

    A registered sweep has decisions of its own; its gaps are not judged a second time by another rule.
    """
    return f"{table_label(table_findings)}: {'; '.join(_parts(table_findings, registered))}."


def _parts(table_findings: TableResult, registered: bool) -> Iterator[str]:
    ended = [finding for finding in table_findings.cells if finding.runs.trials and finding.summary]
    if not any(finding.runs.trials for finding in table_findings.cells):
        yield "its figures are counts or citations, so no run was trained"
    elif not ended:
        yield "no run has a figure yet, so nothing can be compared with the paper"
    elif ended[0].cell.metric.endswith("error"):
        yield _lowest(table_findings, ended)
        if not registered:
            yield _gaps(table_findings)
    else:
        yield f"{len(ended)} of its {len(table_findings.cells)} cells have a figure"


def _lowest(table_findings: TableResult, ended: list[CellResult]) -> str:
    ours = min(ended, key=_median)
    error = f"{_median(ours):.2f} %, {_name(table_findings, ours)}"
    lowest = f"the lowest median error of {len(ended)} cells is {error}"
    ranks = [(rank, index) for index, finding in enumerate(ended) if (rank := _rank(finding)) is not None]
    if len(ended) == 1 or not ranks:
        return lowest.replace(" of 1 cells", "")
    paper = ended[min(ranks)[1]]
    return lowest + (
        ", as in the paper" if paper is ours else f"; in the paper it is {_name(table_findings, paper)}"
    )


def _name(table_findings: TableResult, finding: CellResult) -> str:
    cell = finding.cell
    return f"“{cell.row}”" if len(table_findings.table.columns) == 1 else f"“{cell.row}”, {cell.column}"


def _rank(finding: CellResult) -> float | None:
    return finding.cell.published.rank_value


def _median(finding: CellResult) -> float:
    assert finding.summary is not None  # noqa: S101 - its runs have ended
    return finding.summary.median


def _gaps(table_findings: TableResult) -> str:
    pairs = [pair for compared in table_findings.comparisons.values() for pair in compared.pairs]
    words: Counter[str] = Counter(pair.word for pair in pairs)
    if not pairs:
        return "no second row to compare with"
    counts = ", ".join(f"{words[word]} {text}" for word, text in GAP_WORDS.items() if words[word])
    return f"of {len(pairs)} gap{'s' * (len(pairs) > 1)} between rows, {counts}"
