"""The tables of a reproduction: measured beside reported figures, with notes on the rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from kilolayer.papers import Cell
from kilolayer.report.document import Table
from kilolayer.statistics.agreement import MIN_INTERVAL_RUNS
from kilolayer.sweep.comparable import cell_label
from kilolayer.sweep.results import CellResult, TableResult

FIGURES = ("row", "paper", "runs", "median", "mean ± std")
INTERVAL = "interval"
"""The heading where rows have intervals of several kinds; each is then named in its row."""
REPLICATIONS = "other laboratories"
WIDE = ("table", "column", *FIGURES, INTERVAL, "verdict", REPLICATIONS, "plan")
UNITS = {"parameters": "parameters in millions", "multiply-adds": "multiply-adds in 10⁹"}
UNITS |= {"layer responses": "mean deviation of the 3×3 layers' responses"}


def table_label(table_findings: TableResult) -> str:
    """The label of a table, such as "P2, Table 1"."""
    return f"{table_findings.table.paper.label}, {table_findings.table.source}"


def figure_tables(table_findings: TableResult) -> tuple[Table, ...]:
    """A table for every column: the paper's figures, and those of the runs."""
    by_column: dict[str, list[CellResult]] = defaultdict(list)
    for finding in table_findings.cells:
        by_column[finding.cell.column].append(finding)
    return tuple(_figures(table_findings, column, cells) for column, cells in by_column.items())


def _figures(table_findings: TableResult, column: str, findings: list[CellResult]) -> Table:
    metric = findings[0].cell.metric
    measured = UNITS.get(metric, f"{metric} in percent" if metric.endswith("error") else metric)
    title = (
        table_label(table_findings)
        if column == "error" or column == measured
        else f"{table_label(table_findings)}, {column}"
    )
    notes = dict.fromkeys(note for finding in findings for note in _notes(table_findings, finding))
    notes |= dict.fromkeys(_remarks(findings))
    kinds = {finding.summary.interval_name for finding in findings if finding.summary}
    interval = kinds.pop() if len(kinds) == 1 else INTERVAL
    rows = tuple((finding.cell.row, *_row(finding, named=interval == INTERVAL)) for finding in findings)
    table = Table(f"{title}: {measured}.", (*FIGURES, interval), rows, " ".join(notes))
    return with_replications(table, findings)


def _row(finding: CellResult, *, named: bool) -> tuple[str, ...]:
    paper, summary, counted = reported_text(finding.cell), finding.summary, finding.cell.counted
    if summary is None:
        return (paper, _without_figure(finding), "–" if counted is None else f"{counted:.2f}", "–", "–")
    diverged = f" ({summary.diverged} diverged)" if summary.diverged else ""
    spread = f"{summary.mean:.2f} ± {summary.std:.2f}" if summary.n > 1 else "–"
    interval = f"{summary.low:.2f} to {summary.high:.2f}" if summary.n > 1 else "–"
    interval += f" ({summary.interval_name})" if named and summary.n > 1 else ""
    return (paper, f"{summary.n}{diverged}", f"{summary.median:.2f}", spread, interval)


def _without_figure(finding: CellResult) -> str:
    if finding.cell.counted is not None:
        return "counted"
    if not finding.runs.trials:
        return "cited" if finding.cell.cited else "not here"
    return f"{len(finding.failures)} failed" if finding.failures else "–"


def _notes(table_findings: TableResult, finding: CellResult) -> Iterator[str]:
    """Notes that a reader needs beside the figures of a row."""
    cell = finding.cell
    if twin := table_findings.same_as(finding):
        name = cell.column if twin in table_findings.table.columns else cell.row
        yield f"At this scale “{name}” is the same network as “{twin}”, so we do not compare them."
    settings = {trial.setting for trial, _ in finding.states}
    if len(settings) > 1:
        yield f"“{cell.row}”: the best of its {len(settings)} settings for each seed, the kindest reading."
    elif settings and len(cell.plans) > 1:
        yield f"“{cell.row}”: only {cell.plans[0].setting} of its {len(cell.plans)} settings was run."
    for reason in dict.fromkeys(finding.failures):
        yield f"“{cell.row}”: {finding.failures.count(reason)} run(s) failed and are left out: {reason}."
    if finding.summary and finding.summary.coverage is not None:
        of = "mean (Student's t)" if cell.published.statistic.kind == "mean" else "median (order statistics)"
        yield f"Intervals are of the {of}; fewer than {MIN_INTERVAL_RUNS} runs show their range."
    if finding.summary and finding.summary.diverged:
        yield f"A run that diverged counts as guessing, {finding.chance:.0f} % wrong."


def reported_text(cell: Cell) -> str:
    """The paper's figure with the digits that the paper prints."""
    if not cell.in_paper:
        return "not in the paper"
    if cell.failed:
        return "fail"
    if cell.reported is None:
        return "curve"
    return f"{cell.reported:.{cell.published.digits}f}"


def _remarks(findings: list[CellResult]) -> Iterator[str]:
    """A sentence for each way in which rows are not run exactly as the paper states."""
    rows: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.cell.remark:
            rows[finding.cell.remark].append(f"“{finding.cell.row}”")
    planned = sum(finding.cell.buildable for finding in findings)
    for remark, names in rows.items():
        yield f"{'Every run' if len(names) == planned else ', '.join(names)}: {remark}."


def with_replications(table: Table, findings: list[CellResult]) -> Table:
    """The table with other laboratories' figures behind the paper's, where any row has some."""
    texts = [replications_text(finding.cell) for finding in findings]
    if not any(texts):
        return table
    rows = tuple((*row[:2], text or "–", *row[2:]) for row, text in zip(table.rows, texts, strict=True))
    laboratories = (entry.laboratory for finding in findings for entry in finding.cell.replications)
    note = f"{REPLICATIONS}: single runs of {', '.join(dict.fromkeys(laboratories))}."
    header = (*table.header[:2], REPLICATIONS, *table.header[2:])
    return replace(table, header=header, rows=rows, note=" ".join(filter(None, (table.note, note))))


def replications_text(cell: Cell) -> str:
    """Other laboratories' figures of a cell, with the digits that they print."""
    return ", ".join(str(entry.result) for entry in cell.replications)


def wide_table(table_findings: TableResult) -> Table:
    """One table of all cells with their verdicts, for programs."""
    head = (table_findings.table.name,)
    rows = tuple(
        (
            *head,
            finding.cell.column,
            finding.cell.row,
            *_row(finding, named=True),
            _verdict(finding),
            replications_text(finding.cell),
            finding.cell.remark,
        )
        for finding in table_findings.cells
    )
    return Table(_heading(table_findings), WIDE, rows)


def _heading(table_findings: TableResult) -> str:
    return f"{table_label(table_findings)}: {table_findings.table.title}" + (
        f" ({table_findings.proxy})" if table_findings.proxy else ""
    )


def _verdict(finding: CellResult) -> str:
    word, text = finding.verdict.word, finding.verdict.text
    return f"{word}: {text}" if text else word


def verdict_lines(table_findings: TableResult) -> list[str]:
    """A line for every verdict on a figure, and for every reason why there is none."""
    lines: dict[str, list[str]] = defaultdict(list)
    for finding in table_findings.cells:
        if not finding.proxy and finding.runs.trials and finding.verdict.word != "not run":
            lines[_verdict(finding).removeprefix("no figure: ")].append(
                cell_label(table_findings.table, finding.cell)
            )
    return [f"{', '.join(places)}: {text}." for text, places in lines.items()]
