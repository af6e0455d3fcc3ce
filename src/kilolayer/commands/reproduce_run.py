"""A reproduction as it is run: its board, its findings at the end, and a word on its cost before."""

from __future__ import annotations

import shlex
import sys

import torch

from kilolayer.commands.board import Board
from kilolayer.commands.reproduction_report import print_findings, write_all
from kilolayer.commands.sweeping import sweep
from kilolayer.commands.wording import duration, flop_text
from kilolayer.papers import training_flop
from kilolayer.sweep import Engine
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.terminal import Console

COSTLY, CPU_SPEED = 1e15, 5e10
"""Floating-point operations of some hours on a CPU; and what a core's training does in a second, about."""


def run(reproduction: Reproduction, chosen: Engine, as_json: bool) -> int:
    """Brings the sweep to its end, reports it, and returns the exit status."""
    # With --json the output is for a program, so a person looks at the other stream.
    board = board_of(reproduction, Console(stderr=as_json))
    if status := sweep(reproduction.runs, chosen, board, resume(reproduction)):
        return status
    print_findings(reproduction, write_all(reproduction), as_json)
    return 0


def resume(reproduction: Reproduction) -> str:
    """The command line that goes on with a sweep."""
    return shlex.join(["kilolayer", "reproduce", "--resume", str(reproduction.folder)])


def board_of(reproduction: Reproduction, console: Console) -> Board:
    """The board of a sweep, whose rows name their table where there are several."""
    several = len(reproduction.tables) > 1
    trained = [one for one in reproduction.cells if one.trials]
    rows = {one: f"{one.cell.table}: {one.cell.row}" if several else one.cell.row for one in trained}
    cells = {(rows[one], one.cell.column): one.distinct for one in trained}
    columns = list(dict.fromkeys(one.cell.column for one in trained))
    title = f"{', '.join(reproduction.request.tables)}\n{reproduction.request.size.scale.describe()}"
    return Board(title, list(dict.fromkeys(rows.values())), columns, cells, console)


def warn_of_cost(reproduction: Reproduction) -> None:
    """One line where a person has asked for years of a CPU's time, perhaps without knowing."""
    flop = sum(training_flop(one.experiment) for one in reproduction.runs)
    if reproduction.request.size.scale.is_full and flop > COSTLY and not torch.cuda.is_available():
        print(
            f"kilolayer: warning: {flop_text(flop)} without a GPU is about {duration(flop / CPU_SPEED)}; "
            f"--scale proxy shows the order of the rows in hours, --scale smoke that it works in seconds",
            file=sys.stderr,
        )
