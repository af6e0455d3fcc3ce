"""The layers' responses of a trained run on its own training images: a cell of P1's Fig. 7."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from kilolayer.analysis.layer_responses import Responses
from kilolayer.analysis.responses import responses
from kilolayer.data import load
from kilolayer.runs import Run
from kilolayer.runs.dataset import located

IMAGES = 128


@lru_cache(maxsize=64)
def run_responses(path: Path) -> Responses:
    """Measured on up to 128 of the run's training images. Raises `InputError` while the run is not done."""
    run = Run.open(path)
    data, weights = located(run), run.weights()
    images = load(replace(data, subset=min(IMAGES, data.subset or IMAGES))).train
    return responses(weights.model, weights.statistics.normalize(images.pixels), network=path.name)
