"""The papers' tables with their cost, and the runs of a sweep with their state, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilolayer.papers import (
    Cell,
    Table,
    cell_experiments,
    count_cells,
    find_table,
    omissions,
    tables,
    training_flop,
)
from kilolayer.report.amounts import flop_text
from kilolayer.report.document import Table as Shown
from kilolayer.report.registration_text import (
    decision_counts,
    decision_state,
    proposed_rows,
    registration_rows,
)
from kilolayer.sweep.looks import next_runs, registered_result
from kilolayer.sweep.registration import Registration
from kilolayer.sweep.reproduction import Reproduction, Trial
from kilolayer.sweep.results import table_results
from kilolayer.sweep.run_spec import RunProgress, read_progress
from kilolayer.system.printer import print_json
from kilolayer.system.terminal import print_table, print_text
from kilolayer.values import to_json_value

COUNTS = {
    "figures": "cells",
    "exact": "exact",
    "code's": "other_origin",
    "departing": "departing",
    "cited": "literature_only",
    "not here": "not_here",
    "runs": "runs",
}
"""The columns of counts, and the facts that they show."""
HEADER = ("table", "what", *COUNTS, "EFLOP")
LESS_NEEDED = ("cited", "not here", "code's", "runs", "figures", "what")
"""The columns that a narrow terminal leaves out, in this order."""
NOT_ENTERED = ("paper", "where", "what", "figures", "why")
RUN_HEADER = ("row", "run", "seed", "training", "status")


def table_facts(paper_table: Table) -> dict[str, Any]:
    """A table's facts as a JSON value; `training_flop` is for the paper's own size and number of runs."""
    counted = count_cells(paper_table.cells)
    runs = _distinct_runs(paper_table)
    return {
        "name": paper_table.name,
        "paper": paper_table.paper.label,
        "source": paper_table.source,
        "title": paper_table.title,
        "statistic": str(paper_table.statistic),
        "cells": counted.cells,
        "buildable": counted.buildable,
        "exact": counted.exact,
        "literature_only": counted.literature_only,
        "not_here": counted.not_here,
        "other_origin": counted.other_origin,
        "departing": counted.departing,
        "beside": counted.beside,
        "reasons": _reasons(paper_table),
        "runs": len(runs) * paper_table.statistic.runs,
        "training_flop": sum(runs.values()) * paper_table.statistic.runs,
    }


def _reasons(paper_table: Table) -> dict[str, list[str]]:
    """Why a row is not run exactly as the paper states, or not at all, with the rows that it is true of."""
    rows: dict[str, dict[str, None]] = {}
    for cell in paper_table.cells:
        if text := cell.remark or cell.reason:
            rows.setdefault(text, {})[cell.row] = None
    return {text: list(names) for text, names in rows.items()}


def _distinct_runs(paper_table: Table) -> dict[Any, int]:
    """The cost of each experiment. Cells that read another figure of the same run cost nothing more."""
    trained = (cell for cell in paper_table.cells if cell.counted is None)
    return {
        experiment: training_flop(experiment) for cell in trained for experiment in cell_experiments(cell)
    }


def all_table_facts() -> list[dict[str, Any]]:
    return [table_facts(find_table(paper_table.name)) for paper_table in tables()]


def print_paper_tables(as_json: bool) -> int:
    """Prints every table with its cells, runs and cost at the paper's own size."""
    facts = all_table_facts()
    if as_json:
        print_json(facts)
        return 0
    print_table(Shown("", HEADER, tuple(map(_row, facts))), drop=LESS_NEEDED)
    print_text("\nWhy a row is not run exactly as the paper states, or not at all:", style="bold")
    for text, names in _tables_by_reason(facts).items():
        print_text(f"- {text}: {', '.join(names)}")
    print_text("\nPrinted, and in no table here:\n", style="bold")
    print_table(Shown("", NOT_ENTERED, _not_entered()), drop=("what",))
    print_text("\n" + "\n".join(_totals(facts)))
    return 0


def _tables_by_reason(facts: list[dict[str, Any]]) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for fact in facts:
        for text in fact["reasons"]:
            by_reason.setdefault(text, []).append(fact["name"])
    return by_reason


def _not_entered() -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            paper.label,
            omission.source,
            omission.what,
            str(omission.figures) if omission.figures else "curves",
            omission.reason,
        )
        for paper, paper_omissions in omissions().items()
        for omission in paper_omissions
    )


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    numbers = (str(fact[key]) for key in COUNTS.values())
    flop = f"{fact['training_flop'] / 1e18:.3g}"
    return (fact["name"], fact["title"], *numbers, flop)


def _totals(facts: list[dict[str, Any]]) -> tuple[str, ...]:
    keys = (*COUNTS.values(), "beside")
    sums = {key: sum(fact[key] for fact in facts) for key in keys}
    not_entered = sum(
        omission.figures for paper_omissions in omissions().values() for omission in paper_omissions
    )
    return (
        f"{sums['cells']} figures: {sums['exact']} counted or run exactly as the paper states, "
        f"{sums['other_origin']} as its authors' code or README states, {sums['departing']} with a "
        f"departure; {sums['literature_only']} cite other work, {sums['not_here']} cannot be run here. "
        f"{sums['beside']} more cells are the released code's and in no paper; {not_entered} figures are "
        "not entered.",
        "Runs and EFLOP (10¹⁸ operations of training): the paper's own size and number of runs.",
        "One table: kilolayer reproduce p2-table-1 --dry-run",
    )


def print_reproduction_runs(
    reproduction: Reproduction, as_json: bool, proposed: Registration | None = None
) -> int:
    """Prints the runs of a sweep, their state, and their total cost; `proposed` would be registered."""
    states = {run.key: read_progress(run) for run in reproduction.runs}
    rows = [_run_facts(run.cell, trial, states) for run in reproduction.cells for trial in run.trials]
    if as_json:
        print_json({"runs": rows, "registration": to_json_value(proposed)} if proposed else rows)
        return 0
    total = sum(training_flop(run.experiment) for run in reproduction.runs)
    num_finished = sum(state.is_finished for state in states.values())
    progress = (
        f"{len(reproduction.runs)} runs, {num_finished} of them finished; {flop_text(total)} of training"
    )
    print_text(f"{progress}\n{reproduction.request.size.scale.describe()}")
    if proposed:
        print_text("\nTo be registered, with the date of that moment:")
        _print_rows(proposed_rows(proposed))
    _print_looks(reproduction)
    for name in dict.fromkeys((row["table"], row["column"]) for row in rows):
        print_text(f"\n{', '.join(name)}", style="bold")
        table_rows = (row for row in rows if (row["table"], row["column"]) == name)
        print_table(Shown("", RUN_HEADER, tuple(map(_run_cells, table_rows))), drop=("run", "training"))
    return 0


def _print_looks(reproduction: Reproduction) -> None:
    """Prints the registration of a registered sweep, what is decided, and what the next look still needs."""
    results = table_results(reproduction)
    registered = registered_result(reproduction, results)
    if registered is None:
        return
    print_text("")
    _print_rows(registration_rows(registered.entries))
    print_text(f"\n{decision_counts(registered)}.")
    for family in registered.families:
        for decision in family.decisions:
            print_text(f"  {decision.b}: {decision_state(decision)}", hanging=4)
    left = next_runs(reproduction, registered.registration)
    flop = flop_text(sum(training_flop(run.experiment) for run in left))
    print_text(
        f"The next look needs {len(left)} more runs ({flop})." if left else "No further run is needed."
    )


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    for name, text in rows:
        print_text(f"{name:<12} {text}", hanging=13)


def _run_cells(row: dict[str, Any]) -> tuple[str, ...]:
    label = f"{row['row']}: {row['setting']}" if row["setting"] else row["row"]
    return label, row["run"], str(row["seed"]), flop_text(row["training_flop"]), row["status"]


def _run_facts(cell: Cell, trial: Trial, states: dict[str, RunProgress]) -> dict[str, Any]:
    return {
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "setting": cell.plans[trial.setting].setting,
        "seed": trial.seed,
        "run": trial.spec.key,
        "training_flop": training_flop(trial.spec.experiment),
        "status": _status(states[trial.spec.key]),
    }


def _status(state: RunProgress) -> str:
    if state.result is not None:
        error = state.result.get("test_error")
        return str(state.result["status"]) if error is None else f"{error:.2f} %"
    return f"at {state.last_metrics['iteration']:,}" if state.last_metrics else "not run"
