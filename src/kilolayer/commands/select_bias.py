"""`kilolayer reproduce --select`: the search for b_g on held-out training images, run and shown."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from kilolayer import durable
from kilolayer.analysis.statistics import errors
from kilolayer.commands.findings_shown import show_captioned
from kilolayer.commands.reproduce_run import resume
from kilolayer.commands.reproduction_report import whole
from kilolayer.report.content import Table
from kilolayer.sweep import Engine
from kilolayer.sweep.provenance import provenance
from kilolayer.sweep.reproduction import SELECTION, Reproduction
from kilolayer.sweep.selection import ERROR, Search, outcome, searches
from kilolayer.terminal import Console, say

FILE = "selection.json"
HEADER = ("b_g", "runs", "median validation error %", "least", "most", "")


def select(reproduction: Reproduction, engine: Engine, as_json: bool) -> int:
    """Runs the search into DIR/selection, and shows and records which bias it chooses."""
    from kilolayer.commands.board import Board
    from kilolayer.commands.sweeping import sweep

    found = searches(reproduction)
    cells = {
        (_label(one, bias, found), "validation error"): runs
        for one in found
        for bias, runs in one.runs.items()
    }
    board = Board(
        f"Search for b_g\n{reproduction.request.size.scale.describe()}",
        [row for row, _ in cells],
        ["validation error"],
        cells,
        Console(stderr=as_json),
        ERROR,
    )
    planned = tuple({one.key: one for runs in cells.values() for one in runs}.values())
    if status := sweep(planned, engine, board, f"{resume(reproduction)} --select"):
        return status
    _report([outcome(one) for one in found], reproduction, as_json)
    return 0


def _report(found: list[dict[str, Any]], reproduction: Reproduction, as_json: bool) -> None:
    starts = provenance(run for one in searches(reproduction) for runs in one.runs.values() for run in runs)
    record = {
        "command": f"{whole(reproduction.request)} --select",
        "scale": reproduction.request.size.scale.describe(),
        "measured": asdict(starts) if starts else None,
        "searches": found,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    path = reproduction.folder / SELECTION / FILE
    durable.write(path, text.encode())
    if as_json:
        print(text)
        return
    for one in found:
        table = _table(one)
        show_captioned(table)
        say(table.note, style="dim")
        say(f"chosen: b_g = {_bias(one['chosen'])}; the paper's choice: {_bias(one['the_papers'])}")
    print(f"selection: {path}")


def _table(found: dict[str, Any]) -> Table:
    rows = tuple(_row(one, found) for one in found["biases"])
    caption = f"{found['row']}: error on {found['held_out']:,} held-out training images after the last epoch."
    note = "A run that diverged counts as guessing. The test set is not looked at for this choice."
    return Table(caption, HEADER, rows, note)


def _row(one: dict[str, Any], found: dict[str, Any]) -> tuple[str, ...]:
    values = errors(one["validation_errors"])
    marks = (("chosen", found["chosen"]), ("the paper's", found["the_papers"]))
    said = ", ".join(name for name, bias in marks if bias == one["b_g"])
    spread = (f"{values.min():.2f}", f"{values.max():.2f}")
    return (_bias(one["b_g"]), str(len(values)), f"{one['median']:.2f}", *spread, said)


def _label(one: Search, bias: float, found: tuple[Search, ...]) -> str:
    label = f"b_g = {_bias(bias)}"
    return label if len(found) == 1 else f"{one.cell.row}: {label}"


def _bias(value: float) -> str:
    return f"{value:g}".replace("-", "−")
