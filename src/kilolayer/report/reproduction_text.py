"""A reproduction's findings on the terminal."""

from __future__ import annotations

from kilolayer.report import comparison_tables as compared
from kilolayer.report import reproduction_tables as tables
from kilolayer.report.document import Table
from kilolayer.report.image_tables import image_tables
from kilolayer.report.registration_text import (
    NOT_REGISTERED,
    comparison_tables,
    decision_counts,
    registration_rows,
)
from kilolayer.report.reproduction_finding import finding_sentence
from kilolayer.sweep.looks import RegisteredResult
from kilolayer.sweep.results import TableResult
from kilolayer.system.terminal import print_table, print_text

DROPPABLE_COLUMNS = ("level", "n", "mean ± std", "p", "runs")
"""The columns that a narrow terminal leaves out, in this order, after the intervals."""


def print_reproduction(findings: tuple[TableResult, ...], registered: RegisteredResult | None = None) -> None:
    """Prints every table's figures, gaps or registered decisions, rankings and verdicts."""
    print_text("")
    if registered is None:
        print_text(NOT_REGISTERED)
    else:
        for name, text in registration_rows(registered.entries):
            print_text(f"{name:<12} {text}", hanging=13)
        print_text(f"\n{decision_counts(registered)}.")
    for table_findings in findings:
        print_text(f"\n{tables.table_label(table_findings)}: {table_findings.table.title}", style="bold")
        print_text(finding_sentence(table_findings, registered=registered is not None))
        if table_findings.proxy:
            print_text(f"{table_findings.proxy}. Only rankings and gaps can be compared with the paper's.")
        shown_tables = (
            *tables.figure_tables(table_findings),
            *comparison_tables(table_findings, registered),
            *image_tables(table_findings),
        )
        for table in shown_tables:
            print_captioned(table)
        notes = dict.fromkeys(table.note for table in shown_tables if table.note)
        lines = (*compared.ranking_sentences(table_findings), *tables.verdict_lines(table_findings))
        if notes or lines:
            print_text("")
        for note in notes:
            print_text(note, style="dim")
        for line in lines:
            print_text(line)


def print_captioned(table: Table) -> None:
    """Prints one table under its caption."""
    print_text(f"\n{table.caption}\n")
    print_table(table, drop=_droppable(table))


def _droppable(table: Table) -> list[str]:
    """The columns of this table that a narrow terminal leaves out. An interval is headed by its coverage."""
    intervals = [name for name in table.header if name == "range" or name.endswith("interval")]
    return [*intervals, *(name for name in DROPPABLE_COLUMNS if name in table.header)]
