"""The rows of a sweep image by image, from the predictions that its runs keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kilolayer.errors import InputError
from kilolayer.runs.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from kilolayer.statistics import ImageComparison, SpreadComponents, compare_images, spread_components
from kilolayer.statistics.agreement import MIN_RUNS
from kilolayer.sweep.comparable import DECIDED_METRICS, cell_label, compared_pairs
from kilolayer.sweep.results import CellResult, TableResult

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ImageErrors:
    """A table's rows image by image: the spread of each row, and each pair, by the labels of their cells.

    A row needs two runs that kept their predictions, a pair three shared seeds.
    """

    spreads: Mapping[str, SpreadComponents]
    pairs: Mapping[tuple[str, str], ImageComparison]


def image_errors(result: TableResult) -> ImageErrors:
    """Reads the predictions of a table's runs.

    Raises `InputError` where predictions are damaged, or are not those of the run's result.
    """
    flags = {cell_label(result.table, cell.cell): _flags(cell) for cell in result.cells}
    spreads = {
        label: spread_components(np.stack(list(by_seed.values())))
        for label, by_seed in flags.items()
        if len(by_seed) >= 2
    }
    pairs = {}
    for a, b in compared_pairs(result.table, [cell.runs for cell in result.cells]):
        shared = sorted(flags[a].keys() & flags[b].keys())
        if len(shared) >= MIN_RUNS:
            pairs[a, b] = compare_images(*(np.stack([flags[row][seed] for seed in shared]) for row in (a, b)))
    return ImageErrors(spreads, pairs)


def _flags(cell: CellResult) -> dict[int, Flags]:
    """Which test images each seed's network has wrong; empty for a cell of several settings a seed."""
    if cell.cell.metric not in DECIDED_METRICS or len({trial.setting for trial, _ in cell.states}) != 1:
        return {}
    predictions_by_seed: dict[int, Predictions] = {}
    for trial, state in cell.states:
        if state.result is None or state.result["status"] != "done":
            continue
        predictions = read_predictions(trial.spec.path, trial.spec.sweep)
        if predictions is None:
            continue
        if abs(predictions.error - state.result["test_error"]) > 1e-9:
            raise InputError(
                f"{trial.spec.path / PREDICTIONS_FILE} is not of the run's result: its error is "
                f"{predictions.error:.4f} %; remove it, and add it with kilolayer evaluate RUN --predictions"
            )
        predictions_by_seed[trial.seed] = predictions
    if len({predictions.test_set for predictions in predictions_by_seed.values()}) > 1:
        raise InputError(f"the runs of {cell.cell.row!r} were tested on different images")
    return {seed: predictions.wrong for seed, predictions in predictions_by_seed.items()}
