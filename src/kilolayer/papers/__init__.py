"""The three papers as data: every cell of every table with its source, and the experiment for it.

from kilolayer.papers import experiment, table
cell = table("p2-table-1").cell("dropout shortcut", "error")
experiment(cell, seed=3)
"""

from kilolayer.analysis.published import Published, Statistic
from kilolayer.papers.catalogue import (
    Counts,
    ReportedError,
    cells,
    counts,
    reported_errors,
    table,
    tables,
)
from kilolayer.papers.plan import Plan
from kilolayer.papers.reproduce import (
    experiment,
    experiments,
    is_proxy,
    proxy_sentence,
    selection,
    training_flop,
)
from kilolayer.papers.scale import FULL, Scale
from kilolayer.papers.table import Cell, Column, Each, Literature, Paper, Table

__all__ = [
    "FULL",
    "Cell",
    "Column",
    "Counts",
    "Each",
    "Literature",
    "Paper",
    "Plan",
    "Published",
    "ReportedError",
    "Scale",
    "Statistic",
    "Table",
    "cells",
    "counts",
    "experiment",
    "experiments",
    "is_proxy",
    "proxy_sentence",
    "reported_errors",
    "selection",
    "table",
    "tables",
    "training_flop",
]
