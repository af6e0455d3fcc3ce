"""The search for b_g that P2 did before Table 1: every bias judged on held-out training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from kilolayer.analysis.statistics import errors
from kilolayer.data.describe import Data
from kilolayer.data.loading import find
from kilolayer.errors import InputError
from kilolayer.papers import Cell, selection
from kilolayer.sweep.plan import Planned, state_of
from kilolayer.sweep.reproduction import SELECTION, Reproduction, run_folder
from kilolayer.sweep.request import Request
from kilolayer.units import ExclusiveGate

ERROR = "validation_error"


@dataclass(frozen=True)
class Search:
    """A cell whose bias is searched: runs by bias, a run for every seed."""

    cell: Cell
    runs: Mapping[float, tuple[Planned, ...]]

    @property
    def papers_choice(self) -> float:
        plan = self.cell.plan
        if plan is None or not isinstance(plan.unit.h, ExclusiveGate):
            raise TypeError(f"{self.cell.row}: only an exclusive gate's bias is searched")
        return plan.unit.h.bias


def searches(reproduction: Reproduction) -> tuple[Search, ...]:
    """The searches of a sweep's cells. `InputError` where the paper selected nothing for any of them."""
    cells = [one.cell for one in reproduction.cells if one.cell.plan and one.cell.plan.select]
    if not cells:
        raise InputError(
            "--select: the paper searched b_g for none of these cells; it did for p2-table-1, "
            "'exclusive gating: b_g = −6'"
        )
    return tuple(Search(cell, _runs(cell, reproduction)) for cell in cells)


def _runs(cell: Cell, reproduction: Reproduction) -> dict[float, tuple[Planned, ...]]:
    request, folder = reproduction.request, reproduction.folder / SELECTION
    found: dict[float, list[Planned]] = {}
    for seed in request.seeds:
        made = selection(
            cell,
            seed,
            held_out=held_out(cell, request),
            data=request.data,
            recipe_name=request.recipe,
            scale=request.size.scale,
            **request.computing,
        )
        for bias, one in made.items():
            found.setdefault(bias, []).append(Planned(run_folder(folder / "runs", one), one))
    return {bias: tuple(runs) for bias, runs in found.items()}


def held_out(cell: Cell, request: Request) -> int:
    """A tenth of the images trained on, as the 5,000 of 50,000 that P1 held out."""
    plan = cell.plan
    data = request.data or Data(plan.data if plan else "cifar10")
    return max(1, (request.size.subset or data.subset or find(data).count) // 10)


def outcome(one: Search) -> dict[str, Any]:
    """The errors by bias, and the bias with the least median; of equal ones the first, which is nearest 0."""
    figures = {bias: [state_of(run).figure(ERROR) for run in runs] for bias, runs in one.runs.items()}
    medians = {bias: float(median(errors(values))) for bias, values in figures.items()}
    chosen = min(medians, key=lambda bias: medians[bias])
    return {
        "table": one.cell.table,
        "row": one.cell.row,
        "chosen": chosen,
        "the_papers": one.papers_choice,
        "held_out": next(iter(one.runs.values()))[0].experiment.data.validation,
        "biases": [
            {"b_g": bias, "validation_errors": values, "median": medians[bias]}
            for bias, values in figures.items()
        ],
    }
