"""A reproduction's findings on a terminal, in 80 columns too."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from kilolayer.commands import comparison_tables as compared
from kilolayer.commands import reproduction_tables as tables
from kilolayer.commands.wording import middle_cut
from kilolayer.report.content import Table
from kilolayer.sweep.findings import TableFindings

LEFT_OUT = "95 % interval"
"""The column that a terminal has no room for."""


def show(found: tuple[TableFindings, ...], console: Console) -> None:
    """Every table's figures, gaps, rankings and verdicts."""
    for one in found:
        _print(console, f"\n{tables.named(one)}: {one.table.title}", style="bold")
        if one.proxy:
            _print(console, f"{one.proxy}. Only rankings and gaps can be compared with the paper's.")
        shown = (*tables.figures(one), *compared.comparisons(one))
        for table in shown:
            show_table(table, console)
        for note in dict.fromkeys(table.note for table in shown if table.note):
            _print(console, note, style="dim")
        for line in (*compared.rankings(one), *tables.verdicts(one)):
            _print(console, line)


def show_table(table: Table, console: Console) -> None:
    """One table under its caption, long names cut in their middle."""
    kept = [place for place, name in enumerate(table.header) if name != LEFT_OUT or console.width >= 110]
    others = sum(_width(table, place) + 2 for place in kept[1:])
    room = max(16, console.width - others - 2)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place in kept:
        side = "right" if table.numeric[place] else "left"
        shown.add_column(table.header[place], justify=side, no_wrap=not place)  # type: ignore[arg-type]
    for row in table.rows:
        shown.add_row(*(_escaped(middle_cut(row[place], room if not place else 200)) for place in kept))
    _print(console, f"\n{table.caption}")
    console.print(shown)


def _width(table: Table, place: int) -> int:
    return max(len(row[place]) for row in (table.header, *table.rows))


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _print(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False)
