"""The search for b_g on held-out training images: its record as JSON, and its tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kilolayer.report.document import Table
from kilolayer.report.reproduction_report import whole_command
from kilolayer.report.reproduction_text import print_captioned
from kilolayer.statistics.agreement import error_rates
from kilolayer.sweep.bias_search import BiasSearch, bias_searches
from kilolayer.sweep.reproduction import SELECTION, Reproduction
from kilolayer.sweep.results_json import read_provenance
from kilolayer.system import durable
from kilolayer.system.printer import print_json_text, print_line
from kilolayer.system.terminal import print_text

FILE = "selection.json"
HEADER = ("b_g", "runs", "median validation error %", "least", "most", "")


def report_bias_search(outcomes: Sequence[dict[str, Any]], reproduction: Reproduction, as_json: bool) -> None:
    """Writes the record of the search, and prints it as JSON or as tables."""
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
        print_json_text(text)
        return
    for search in outcomes:
        table = _table(search)
        print_captioned(table)
        print_text(table.note, style="dim")
        print_text(
            f"chosen: b_g = {_bias(search['chosen'])}; the paper's choice: {_bias(search['the_papers'])}"
        )
    print_line(f"selection: {path}")


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


def bias_label(search: BiasSearch, bias: float, searches: Sequence[BiasSearch]) -> str:
    """The label of a bias in the live table; it names the row where several rows are searched."""
    label = f"b_g = {_bias(bias)}"
    return label if len(searches) == 1 else f"{search.cell.row}: {label}"


def _bias(value: float) -> str:
    return f"{value:g}".replace("-", "−")
