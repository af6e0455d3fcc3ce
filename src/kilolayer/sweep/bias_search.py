"""The search for b_g that P2 made before Table 1: every bias is judged on held-out training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from kilolayer.data.config import Data
from kilolayer.data.loading import open_source
from kilolayer.errors import InputError
from kilolayer.papers import Cell, bias_search_experiments
from kilolayer.statistics.agreement import error_rates
from kilolayer.sweep.reproduction import SELECTION, Reproduction, Request, run_folder
from kilolayer.sweep.run_spec import RunSpec, read_progress
from kilolayer.units import ExclusiveGate

ERROR = "validation_error"


@dataclass(frozen=True)
class BiasSearch:
    """A cell whose bias is searched: the runs of each bias, one run for every seed."""

    cell: Cell
    runs: Mapping[float, tuple[RunSpec, ...]]

    @property
    def papers_choice(self) -> float:
        """The bias that the paper chose."""
        plan = self.cell.plan
        if plan is None or not isinstance(plan.unit.h, ExclusiveGate):
            raise TypeError(f"{self.cell.row}: only an exclusive gate's bias is searched")
        return plan.unit.h.bias


def bias_searches(reproduction: Reproduction) -> tuple[BiasSearch, ...]:
    """The searches for a sweep's cells. Raises `InputError` where the paper searched for none of them."""
    cells = [item.cell for item in reproduction.cells if item.cell.plan and item.cell.plan.select]
    if not cells:
        raise InputError(
            "--select: the paper searched b_g for none of these cells; it did for p2-table-1, "
            "'exclusive gating: b_g = −6'"
        )
    return tuple(BiasSearch(cell, _runs(cell, reproduction)) for cell in cells)


def _runs(cell: Cell, reproduction: Reproduction) -> dict[float, tuple[RunSpec, ...]]:
    request, folder = reproduction.request, reproduction.folder / SELECTION
    specs: dict[float, list[RunSpec]] = {}
    for seed in request.seeds:
        experiments = bias_search_experiments(
            cell,
            seed,
            held_out=num_held_out(cell, request),
            data=request.data,
            recipe_name=request.recipe,
            scale=request.size.scale,
            **request.computing,
        )
        for bias, experiment in experiments.items():
            specs.setdefault(bias, []).append(
                RunSpec(run_folder(folder / "runs", experiment), experiment, folder)
            )
    return {bias: tuple(runs) for bias, runs in specs.items()}


def num_held_out(cell: Cell, request: Request) -> int:
    """A tenth of the images trained on; P1 held out 5,000 of 50,000."""
    plan = cell.plan
    data = request.data or Data(plan.data if plan else "cifar10")
    return max(1, (request.size.subset or data.subset or open_source(data).count) // 10)


def search_result(search: BiasSearch) -> dict[str, Any]:
    """The errors by bias, and the bias with the least median error; of several, the nearest to 0."""
    figures = {bias: [read_progress(run).figure(ERROR) for run in runs] for bias, runs in search.runs.items()}
    first = next(iter(search.runs.values()))[0]
    chance = 100 * (1 - 1 / first.experiment.network.num_classes)
    medians = {bias: float(median(error_rates(values, chance))) for bias, values in figures.items()}
    chosen = min(medians, key=lambda bias: medians[bias])
    return {
        "table": search.cell.table,
        "row": search.cell.row,
        "chosen": chosen,
        "the_papers": search.papers_choice,
        "held_out": first.experiment.data.validation,
        "biases": [
            {"b_g": bias, "validation_errors": values, "median": medians[bias]}
            for bias, values in figures.items()
        ],
    }
