"""A reproduction's findings on a terminal, in 80 columns too."""

from __future__ import annotations

from kilolayer.commands import comparison_tables as compared
from kilolayer.commands import reproduction_tables as tables
from kilolayer.commands.reproduction_finding import sentence
from kilolayer.report.content import Table
from kilolayer.sweep.findings import TableFindings
from kilolayer.terminal import say, show_table

DISPENSABLE = ("95 % interval", "mean ± std", "p", "runs")
"""The columns that a narrow terminal does without, the first first."""


def show(found: tuple[TableFindings, ...]) -> None:
    """Every table's figures, gaps, rankings and verdicts."""
    for one in found:
        say(f"\n{tables.named(one)}: {one.table.title}", style="bold")
        say(sentence(one))
        if one.proxy:
            say(f"{one.proxy}. Only rankings and gaps can be compared with the paper's.")
        shown = (*tables.figures(one), *compared.comparisons(one))
        for table in shown:
            show_captioned(table)
        notes = dict.fromkeys(table.note for table in shown if table.note)
        lines = (*compared.rankings(one), *tables.verdicts(one))
        if notes or lines:
            say("")
        for note in notes:
            say(note, style="dim")
        for line in lines:
            say(line)


def show_captioned(table: Table) -> None:
    """One table under its caption."""
    say(f"\n{table.caption}\n")
    show_table(table, drop=[name for name in DISPENSABLE if name in table.header])
