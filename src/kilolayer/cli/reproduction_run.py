"""Runs a reproduction: a warning about its cost, a live table, and the findings at the end."""

from __future__ import annotations

import shlex
import sys

import torch

from kilolayer.cli.sweeping import run_sweep
from kilolayer.papers import training_flop
from kilolayer.report.amounts import duration_text, flop_text
from kilolayer.report.live_table import LiveTable
from kilolayer.report.reproduction_report import print_findings, write_reproduction
from kilolayer.sweep import Engine
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.system.terminal import Console
from kilolayer.units import extensions

COSTLY, CPU_SPEED = 1e15, 5e10
"""Floating-point operations of some hours on a CPU, and of about one second of training on one core."""


def run_reproduction(reproduction: Reproduction, engine: Engine, as_json: bool) -> int:
    """Runs the sweep to its end, reports it, and returns the exit status."""
    # With --json standard output is for a program, so the live table goes to standard error.
    board = live_table_of(reproduction, Console(stderr=as_json))
    if status := run_sweep(reproduction.runs, engine, board, reproduction_resume_command(reproduction)):
        return status
    print_findings(reproduction, write_reproduction(reproduction), as_json)
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
        print(
            f"kilolayer: warning: {flop_text(flop)} take about {duration_text(flop / CPU_SPEED)} without a GPU; "
            f"--scale proxy shows the order of the rows in hours, --scale smoke checks in seconds",
            file=sys.stderr,
        )
