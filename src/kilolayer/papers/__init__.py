"""The three papers as data: every cell of every table, with its source and the experiment that reproduces it.

>>> from kilolayer.papers import cell_experiment, find_table
>>> cell = find_table("p2-table-1").cell("shortcut-only gating: b_g = −6", "error")
>>> cell.reported, cell_experiment(cell, seed=3).network.depth
(6.91, 110)
"""

from kilolayer.papers.catalogue import (
    CellCounts,
    ReportedError,
    cells,
    count_cells,
    find_table,
    omissions,
    reported_errors,
    tables,
)
from kilolayer.papers.experiments import (
    bias_search_experiments,
    cell_experiment,
    cell_experiments,
    is_proxy,
    proxy_sentence,
    training_flop,
)
from kilolayer.papers.plan import Plan
from kilolayer.papers.scale import FULL, Scale
from kilolayer.papers.schema import (
    Cell,
    Column,
    EachSetting,
    Literature,
    NotHere,
    NotInPaper,
    Omission,
    Paper,
    Replication,
    Table,
)
from kilolayer.statistics.published import PublishedResult, Statistic

__all__ = [
    "FULL",
    "Cell",
    "CellCounts",
    "Column",
    "EachSetting",
    "Literature",
    "NotHere",
    "NotInPaper",
    "Omission",
    "Paper",
    "Plan",
    "PublishedResult",
    "Replication",
    "ReportedError",
    "Scale",
    "Statistic",
    "Table",
    "bias_search_experiments",
    "cell_experiment",
    "cell_experiments",
    "cells",
    "count_cells",
    "find_table",
    "is_proxy",
    "omissions",
    "proxy_sentence",
    "reported_errors",
    "tables",
    "training_flop",
]
