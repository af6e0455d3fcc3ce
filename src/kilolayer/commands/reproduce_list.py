"""What there is to reproduce, what it costs, and what is done."""

from __future__ import annotations

import json
from typing import Any

from kilolayer.commands.wording import flop_text
from kilolayer.papers import Cell, Table, counts, experiments, table, tables, training_flop
from kilolayer.report.content import Table as Shown
from kilolayer.sweep.plan import State, state_of
from kilolayer.sweep.reproduction import Reproduction, Trial
from kilolayer.terminal import say, show_table

HEADER = ("table", "what", "cells", "to run", "cited", "runs", "EFLOP")
LESS_NEEDED = ("cited", "cells", "to run", "what")
"""The columns that a narrow terminal leaves out, in this order."""
RUNS = ("row", "run", "seed", "training", "status")


def table_facts(one: Table) -> dict[str, Any]:
    """A table in numbers; `training_flop` is that of the paper's own size with the paper's runs."""
    counted = counts(one.cells)
    runs = _distinct_runs(one)
    return {
        "name": one.name,
        "paper": one.paper.label,
        "source": one.source,
        "title": one.title,
        "statistic": str(one.statistic),
        "cells": counted.cells,
        "buildable": counted.buildable,
        "exact": counted.exact,
        "literature_only": counted.literature_only,
        "runs": len(runs) * one.statistic.runs,
        "training_flop": sum(runs.values()) * one.statistic.runs,
    }


def _distinct_runs(one: Table) -> dict[Any, int]:
    """Cost by experiment: cells that only read another figure of the same run cost nothing more."""
    trained = (cell for cell in one.cells if cell.counted is None)
    return {made: training_flop(made) for cell in trained for made in experiments(cell)}


def tables_json() -> list[dict[str, Any]]:
    return [table_facts(table(one.name)) for one in tables()]


def print_tables(as_json: bool) -> int:
    """Every table with its cells, runs and cost at the paper's own size."""
    facts = tables_json()
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    show_table(Shown("", HEADER, tuple(map(_row, facts))), drop=LESS_NEEDED)
    say("\n" + "\n".join(_totals(facts)))
    return 0


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    numbers = (str(fact[key]) for key in ("cells", "buildable", "literature_only", "runs"))
    flop = f"{fact['training_flop'] / 1e18:.3g}"
    return (fact["name"], fact["title"], *numbers, flop)


def _totals(facts: list[dict[str, Any]]) -> tuple[str, ...]:
    sums = {
        key: sum(fact[key] for fact in facts) for key in ("cells", "buildable", "exact", "literature_only")
    }
    return (
        f"{sums['cells']} cells: {sums['buildable']} build an experiment, {sums['exact']} of them exactly "
        f"the paper's; {sums['literature_only']} are cited from elsewhere.",
        "Runs and EFLOP (10¹⁸ operations of training): the paper's own size and number of runs.",
        "One table: kilolayer reproduce p2-table-1 --dry-run",
    )


def print_runs(reproduction: Reproduction, as_json: bool) -> int:
    """The runs of a sweep, how they stand, and what they cost together."""
    states = {one.key: state_of(one) for one in reproduction.runs}
    rows = [_run_facts(one.cell, trial, states) for one in reproduction.cells for trial in one.trials]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    total = sum(training_flop(one.experiment) for one in reproduction.runs)
    done = sum(state.finished for state in states.values())
    said = f"{len(reproduction.runs)} runs, {done} of them finished; {flop_text(total)} of training"
    say(f"{said}\n{reproduction.request.size.scale.describe()}")
    for name in dict.fromkeys((row["table"], row["column"]) for row in rows):
        say(f"\n{', '.join(name)}", style="bold")
        some = (row for row in rows if (row["table"], row["column"]) == name)
        show_table(Shown("", RUNS, tuple(map(_run_cells, some))), drop=("run", "training"))
    return 0


def _run_cells(row: dict[str, Any]) -> tuple[str, ...]:
    label = f"{row['row']}: {row['setting']}" if row["setting"] else row["row"]
    return label, row["run"], str(row["seed"]), flop_text(row["training_flop"]), row["status"]


def _run_facts(cell: Cell, trial: Trial, states: dict[str, State]) -> dict[str, Any]:
    return {
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "setting": cell.plans[trial.setting].setting,
        "seed": trial.seed,
        "run": trial.planned.key,
        "training_flop": training_flop(trial.planned.experiment),
        "status": _status(states[trial.planned.key]),
    }


def _status(state: State) -> str:
    if state.result is not None:
        error = state.result.get("test_error")
        return str(state.result["status"]) if error is None else f"{error:.2f} %"
    return f"at {state.last['iteration']:,}" if state.last else "not run"
