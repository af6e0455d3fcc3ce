"""`kilolayer train --explain`: what was chosen and why, and the predicted beside the measured memory."""

from __future__ import annotations

import time
from itertools import islice

from kilolayer.commands import summary
from kilolayer.runs.environment import peak_memory
from kilolayer.training import Training
from kilolayer.training.budget import in_words
from kilolayer.training.explain import choices

STEPS = 3


def explain(training: Training) -> int:
    """Prints, takes a few steps of the training to measure them, and writes nothing."""
    rows = choices(training)
    if training.place.leads:
        summary.show(rows)
    seconds: list[float] = []
    steps = training.steps()
    while len(seconds) < min(STEPS, training.experiment.recipe.iterations):
        started = time.perf_counter()
        list(islice(steps, 1))
        seconds.append(time.perf_counter() - started)
    if training.place.leads:
        speed = training.experiment.recipe.batch_size / min(seconds)
        measured = in_words(peak_memory(training.place))
        steps_taken = f"{len(seconds)} steps"
        summary.show({"measured": f"{measured} at the peak of {steps_taken}, {speed:,.0f} images/s"})
    return 0
