"""Runs a sweep under a live table: the demo, a reproduction, or its search for b_g."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

import torch

from kilolayer.papers import training_flop
from kilolayer.report.amounts import duration_text, flop_text
from kilolayer.report.bias_search_text import bias_label, report_bias_search
from kilolayer.report.live_table import LiveTable
from kilolayer.report.registration_text import print_registration
from kilolayer.report.reproduction_report import print_findings, write_reproduction
from kilolayer.sweep import Engine, RunSpec, SweepStopped, run_batches
from kilolayer.sweep.bias_search import ERROR, bias_searches, search_result
from kilolayer.sweep.looks import next_runs
from kilolayer.sweep.registration import Registration, mark_runs
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.system.printer import print_line
from kilolayer.system.stopping import STOPPED_STATUS, stoppable
from kilolayer.system.terminal import Console
from kilolayer.units import extensions

COSTLY, CPU_SPEED = 1e15, 5e10
"""Floating-point operations of some hours on a CPU, and of about one second of training on one core."""


def run_sweep(planned: Sequence[RunSpec], engine: Engine, live_table: LiveTable, resume_command: str) -> int:
    """Runs every run to its result. Returns 0; after a stop it prints `resume_command` and returns 143."""
    batches = iter((planned,))
    return _run_sweep(lambda: next(batches, ()), engine, live_table, resume_command)


def _run_sweep(
    next_batch: Callable[[], Sequence[RunSpec]], engine: Engine, live_table: LiveTable, resume_command: str
) -> int:
    with stoppable() as stop:
        try:
            with live_table:
                run_batches(next_batch, engine, live_table.refresh, stop)
        except SweepStopped:
            print_line("kilolayer: stopped, every run's state is saved; to continue:", stderr=True)
            print_line(f"  {resume_command}", stderr=True)
            return STOPPED_STATUS
    return 0


def run_reproduction(
    reproduction: Reproduction, engine: Engine, as_json: bool, registration: Registration | None = None
) -> int:
    """Runs the sweep to its end, reports it, and returns the exit status.

    A registered sweep is run look by look: seeds of comparisons that are decided are not trained.
    """
    # With --json standard output is for a program, so the live table goes to standard error.
    live_table = live_table_of(reproduction, Console(stderr=as_json))
    resume_command = reproduction_resume_command(reproduction)
    if registration is None:
        status = run_sweep(reproduction.runs, engine, live_table, resume_command)
    else:
        print_registration(reproduction.folder, stderr=as_json)
        status = _run_sweep(
            lambda: _next_look(reproduction, registration), engine, live_table, resume_command
        )
    if status:
        return status
    print_findings(reproduction, write_reproduction(reproduction), as_json)
    return 0


def _next_look(reproduction: Reproduction, registration: Registration) -> Sequence[RunSpec]:
    """The runs of the next look, each marked with the registration under which it will begin."""
    runs = next_runs(reproduction, registration)
    mark_runs(reproduction.folder, runs)
    return runs


def run_bias_search(reproduction: Reproduction, engine: Engine, as_json: bool) -> int:
    """Runs the search in DIR/selection, and prints and records the chosen bias."""
    all_searches = bias_searches(reproduction)
    cells = {
        (bias_label(search, bias, all_searches), "validation error"): runs
        for search in all_searches
        for bias, runs in search.runs.items()
    }
    live_table = LiveTable(
        f"Search for b_g\n{reproduction.request.size.scale.describe()}",
        [row for row, _ in cells],
        ["validation error"],
        cells,
        Console(stderr=as_json),
        ERROR,
    )
    planned = tuple({search.key: search for runs in cells.values() for search in runs}.values())
    if status := run_sweep(
        planned, engine, live_table, f"{reproduction_resume_command(reproduction)} --select"
    ):
        return status
    report_bias_search([search_result(search) for search in all_searches], reproduction, as_json)
    return 0


def reproduction_resume_command(reproduction: Reproduction) -> str:
    """The command line that continues a sweep."""
    return shlex.join(
        ["kilolayer", "reproduce", "--resume", str(reproduction.folder), *extensions.unit_option()]
    )


def live_table_of(reproduction: Reproduction, console: Console) -> LiveTable:
    """The live table of a sweep. Its rows name their table where there are several tables."""
    several = len(reproduction.tables) > 1
    trained = [cell for cell in reproduction.cells if cell.trials]
    rows = {cell: f"{cell.cell.table}: {cell.cell.row}" if several else cell.cell.row for cell in trained}
    cells = {(rows[cell], cell.cell.column): cell.distinct for cell in trained}
    columns = list(dict.fromkeys(cell.cell.column for cell in trained))
    title = f"{', '.join(reproduction.request.tables)}\n{reproduction.request.size.scale.describe()}"
    return LiveTable(title, list(dict.fromkeys(rows.values())), columns, cells, console)


def warn_of_cost(reproduction: Reproduction) -> None:
    """Warns in one line where the options ask for years of CPU time."""
    flop = sum(training_flop(run.experiment) for run in reproduction.runs)
    if reproduction.request.size.scale.is_full and flop > COSTLY and not torch.cuda.is_available():
        print_line(
            f"kilolayer: warning: {flop_text(flop)} take about {duration_text(flop / CPU_SPEED)} without a "
            f"GPU; --scale proxy shows the order of the rows in hours, --scale smoke checks in seconds",
            stderr=True,
        )
