"""`kilolayer reproduce --select`: runs and shows the search for b_g on held-out training images."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from kilolayer.cli.reproduction_run import reproduction_resume_command
from kilolayer.report.document import Table
from kilolayer.report.reproduction_report import whole_command
from kilolayer.report.reproduction_text import print_captioned
from kilolayer.statistics.agreement import error_rates
from kilolayer.sweep import Engine
from kilolayer.sweep.bias_search import ERROR, BiasSearch, bias_searches, search_result
from kilolayer.sweep.provenance import read_provenance
from kilolayer.sweep.reproduction import SELECTION, Reproduction
from kilolayer.system import durable
from kilolayer.system.terminal import Console, print_text

FILE = "selection.json"
HEADER = ("b_g", "runs", "median validation error %", "least", "most", "")


def run_bias_search(reproduction: Reproduction, engine: Engine, as_json: bool) -> int:
    """Runs the search in DIR/selection, and prints and records the chosen bias."""
    from kilolayer.cli.sweeping import run_sweep
    from kilolayer.report.live_table import LiveTable

    found = bias_searches(reproduction)
    cells = {
        (_label(one, bias, found), "validation error"): runs
        for one in found
        for bias, runs in one.runs.items()
    }
    board = LiveTable(
        f"Search for b_g\n{reproduction.request.size.scale.describe()}",
        [row for row, _ in cells],
        ["validation error"],
        cells,
        Console(stderr=as_json),
        ERROR,
    )
    planned = tuple({one.key: one for runs in cells.values() for one in runs}.values())
    if status := run_sweep(planned, engine, board, f"{reproduction_resume_command(reproduction)} --select"):
        return status
    _report([search_result(one) for one in found], reproduction, as_json)
    return 0


def _report(found: list[dict[str, Any]], reproduction: Reproduction, as_json: bool) -> None:
    starts = read_provenance(
        run for one in bias_searches(reproduction) for runs in one.runs.values() for run in runs
    )
    record = {
        "command": f"{whole_command(reproduction.request)} --select",
        "scale": reproduction.request.size.scale.describe(),
        "measured": asdict(starts) if starts else None,
        "searches": found,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    path = reproduction.folder / SELECTION / FILE
    durable.write_file(path, text.encode())
    if as_json:
        print(text)
        return
    for one in found:
        table = _table(one)
        print_captioned(table)
        print_text(table.note, style="dim")
        print_text(f"chosen: b_g = {_bias(one['chosen'])}; the paper's choice: {_bias(one['the_papers'])}")
    print(f"selection: {path}")


def _table(found: dict[str, Any]) -> Table:
    rows = tuple(_row(one, found) for one in found["biases"])
    caption = f"{found['row']}: error on {found['held_out']:,} held-out training images after the last epoch."
    note = "A diverged run counts as guessing. This choice does not use the test set."
    return Table(caption, HEADER, rows, note)


def _row(one: dict[str, Any], found: dict[str, Any]) -> tuple[str, ...]:
    values = error_rates(one["validation_errors"])
    marks = (("chosen", found["chosen"]), ("the paper's", found["the_papers"]))
    said = ", ".join(name for name, bias in marks if bias == one["b_g"])
    spread = (f"{values.min():.2f}", f"{values.max():.2f}")
    return (_bias(one["b_g"]), str(len(values)), f"{one['median']:.2f}", *spread, said)


def _label(one: BiasSearch, bias: float, found: tuple[BiasSearch, ...]) -> str:
    label = f"b_g = {_bias(bias)}"
    return label if len(found) == 1 else f"{one.cell.row}: {label}"


def _bias(value: float) -> str:
    return f"{value:g}".replace("-", "−")
