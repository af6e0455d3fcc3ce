"""What a reproduction has found, a sentence or two for each table: decided, undecided, or not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kilolayer.analysis.statistics import LEAST_RUNS
from kilolayer.commands.reproduction_tables import named
from kilolayer.sweep.finding import Finding
from kilolayer.sweep.findings import TableFindings

SAID = {
    "same direction": "as in the paper",
    "opposite direction": "the other way round",
    "not decided": "undecided",
    "not enough runs": f"undecided for want of {LEAST_RUNS} runs each",
    "no direction in the paper": "without a direction in the paper",
}


def sentence(one: TableFindings) -> str:
    """The table's outcome: its lowest error beside the paper's, and how many gaps the runs decide."""
    return f"{named(one)}: {'; '.join(_parts(one))}."


def _parts(one: TableFindings) -> Iterator[str]:
    ended = [finding for finding in one.findings if finding.runs.trials and finding.summary]
    if not any(finding.runs.trials for finding in one.findings):
        yield "nothing here is trained; its figures are counted, or cited from elsewhere"
    elif not ended:
        yield "no run has a figure yet, so nothing can be compared with the paper"
    elif ended[0].cell.metric.endswith("error"):
        yield _lowest(one, ended)
        yield _gaps(one)
    else:
        yield f"{len(ended)} of its {len(one.findings)} cells have a figure"


def _lowest(one: TableFindings, ended: list[Finding]) -> str:
    ours = min(ended, key=_median)
    lowest = f"the lowest median error of {len(ended)} cells is {_median(ours):.2f} %, {_name(one, ours)}"
    ranks = [(rank, place) for place, each in enumerate(ended) if (rank := _rank(each)) is not None]
    if len(ended) == 1 or not ranks:
        return lowest.replace(" of 1 cells", "")
    paper = ended[min(ranks)[1]]
    return lowest + (", as in the paper" if paper is ours else f"; in the paper it is {_name(one, paper)}")


def _name(one: TableFindings, finding: Finding) -> str:
    cell = finding.cell
    return f"“{cell.row}”" if len(one.table.columns) == 1 else f"“{cell.row}”, {cell.column}"


def _rank(finding: Finding) -> float | None:
    return finding.cell.published.rank_value


def _median(finding: Finding) -> float:
    assert finding.summary is not None  # noqa: S101 - its runs have ended
    return finding.summary.median


def _gaps(one: TableFindings) -> str:
    pairs = [pair for compared in one.comparisons.values() for pair in compared.pairs]
    words: Counter[str] = Counter(pair.word for pair in pairs)
    if not pairs:
        return "there is no second row to compare it with"
    said = ", ".join(f"{words[word]} {text}" for word, text in SAID.items() if words[word])
    return f"of {len(pairs)} gap{'s' * (len(pairs) > 1)} between rows, {said}"
