"""Runs a sweep under a live table, and saves its state when it is asked to stop."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kilolayer.report.live_table import LiveTable
from kilolayer.sweep import Engine, RunSpec, SweepStopped, run_all
from kilolayer.system.stopping import STOPPED_STATUS, stoppable


def run_sweep(planned: Sequence[RunSpec], engine: Engine, live_table: LiveTable, resume_command: str) -> int:
    """Runs every run to its result. Returns 0; after a stop it prints `resume_command` and returns 143."""
    with stoppable() as stop:
        try:
            with live_table:
                run_all(planned, engine, live_table.refresh, stop)
        except SweepStopped:
            message = f"kilolayer: stopped, every run's state is saved; to continue:\n  {resume_command}"
            print(message, file=sys.stderr, flush=True)
            return STOPPED_STATUS
    return 0
