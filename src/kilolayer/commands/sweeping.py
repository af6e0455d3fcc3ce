"""A sweep as a command runs it: shown while it goes, and in order when it is asked to stop."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kilolayer.commands.board import Board
from kilolayer.commands.stopping import STATUS, stoppable
from kilolayer.sweep import Engine, Planned, Stopped, run_all


def sweep(planned: Sequence[Planned], engine: Engine, board: Board, again: str) -> int:
    """Brings every run to its result; 0, or 143 when stopped, having said that `again` goes on."""
    with stoppable() as stop:
        try:
            with board:
                run_all(planned, engine, board.refresh, stop)
        except Stopped:
            said = f"kilolayer: stopped, every run's state is saved; to go on:\n  {again}"
            print(said, file=sys.stderr, flush=True)
            return STATUS
    return 0
