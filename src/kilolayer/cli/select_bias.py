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
from kilolayer.sweep.reproduction import SELECTION, Reproduction
from kilolayer.sweep.results_json import read_provenance
from kilolayer.system import durable
from kilolayer.system.terminal import Console, print_text

FILE = "selection.json"
HEADER = ("b_g", "runs", "median validation error %", "least", "most", "")


def run_bias_search(reproduction: Reproduction, engine: Engine, as_json: bool) -> int:
    """Runs the search in DIR/selection, and prints and records the chosen bias."""
    from kilolayer.cli.sweeping import run_sweep
    from kilolayer.report.live_table import LiveTable

    all_searches = bias_searches(reproduction)
    cells = {
        (_label(search, bias, all_searches), "validation error"): runs
        for search in all_searches
        for bias, runs in search.runs.items()
    }
    board = LiveTable(
        f"Search for b_g\n{reproduction.request.size.scale.describe()}",
        [row for row, _ in cells],
        ["validation error"],
        cells,
        Console(stderr=as_json),
        ERROR,
    )
    planned = tuple({search.key: search for runs in cells.values() for search in runs}.values())
    if status := run_sweep(planned, engine, board, f"{reproduction_resume_command(reproduction)} --select"):
        return status
    _report([search_result(search) for search in all_searches], reproduction, as_json)
    return 0


def _report(outcomes: list[dict[str, Any]], reproduction: Reproduction, as_json: bool) -> None:
    starts = read_provenance(
        run for search in bias_searches(reproduction) for runs in search.runs.values() for run in runs
    )
    record = {
        "command": f"{whole_command(reproduction.request)} --select",
        "scale": reproduction.request.size.scale.describe(),
        "measured": asdict(starts) if starts else None,
        "searches": outcomes,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    path = reproduction.folder / SELECTION / FILE
    durable.write_file(path, text.encode())
    if as_json:
        print(text)
        return
    for search in outcomes:
        table = _table(search)
        print_captioned(table)
        print_text(table.note, style="dim")
        print_text(
            f"chosen: b_g = {_bias(search['chosen'])}; the paper's choice: {_bias(search['the_papers'])}"
        )
    print(f"selection: {path}")


def _table(outcome: dict[str, Any]) -> Table:
    rows = tuple(_row(bias, outcome) for bias in outcome["biases"])
    caption = (
        f"{outcome['row']}: error on {outcome['held_out']:,} held-out training images after the last epoch."
    )
    note = "A diverged run counts as guessing. This choice does not use the test set."
    return Table(caption, HEADER, rows, note)


def _row(bias_result: dict[str, Any], outcome: dict[str, Any]) -> tuple[str, ...]:
    values = error_rates(bias_result["validation_errors"])
    marks = (("chosen", outcome["chosen"]), ("the paper's", outcome["the_papers"]))
    marks_text = ", ".join(name for name, bias in marks if bias == bias_result["b_g"])
    spread = (f"{values.min():.2f}", f"{values.max():.2f}")
    return (_bias(bias_result["b_g"]), str(len(values)), f"{bias_result['median']:.2f}", *spread, marks_text)


def _label(search: BiasSearch, bias: float, bias_searches: tuple[BiasSearch, ...]) -> str:
    label = f"b_g = {_bias(bias)}"
    return label if len(bias_searches) == 1 else f"{search.cell.row}: {label}"


def _bias(value: float) -> str:
    return f"{value:g}".replace("-", "−")
