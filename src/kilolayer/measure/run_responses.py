"""The layers' responses of a trained run on its own training images: a cell of P1's Fig. 7."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from kilolayer.data import load
from kilolayer.measure.layer_responses import LayerResponses
from kilolayer.measure.response_recorder import measure_layer_responses
from kilolayer.runs import Run
from kilolayer.runs.data_record import locate_data

IMAGES = 128


@lru_cache(maxsize=64)
def measure_run_responses(path: Path) -> LayerResponses:
    """Measured on up to 128 of the run's training images. Raises `InputError` while the run is not done."""
    run = Run.open(path)
    data, weights = locate_data(run), run.weights()
    images = load(replace(data, subset=min(IMAGES, data.subset or IMAGES))).train
    return measure_layer_responses(
        weights.model, weights.statistics.normalize(images.pixels), network=path.name
    )
