"""`kilolayer train --explain`: what was chosen and why, and the predicted beside the measured memory."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice

from kilolayer.runs.environment import peak_memory
from kilolayer.terminal import say_rows
from kilolayer.training import Growth, Resolution, Training
from kilolayer.training.budget import in_words
from kilolayer.training.explain import choices

STEPS = 3


def explain(training: Training) -> int:
    """Prints, takes a few steps of the training to measure them, and writes nothing.

    Where images or depth grow, the steps are as in the last part of the run, which the prediction is of.
    """
    rows = choices(training)
    if training.place.leads:
        say_rows(rows)
    recipe = training.experiment.recipe
    size = recipe.resolution.at(recipe.iterations, recipe.iterations)
    last = replace(recipe, resolution=Resolution(size), growth=Growth())
    training.experiment = replace(training.experiment, recipe=last)
    seconds: list[float] = []
    steps = training.steps()
    while len(seconds) < min(STEPS, training.experiment.recipe.iterations):
        started = time.perf_counter()
        list(islice(steps, 1))
        seconds.append(time.perf_counter() - started)
    if training.place.leads:
        speed = training.experiment.recipe.batch_size / min(seconds)
        measured = in_words(peak_memory(training.place))
        steps_taken = f"{len(seconds)} steps{'' if last == recipe else ' as in the last part'}"
        say_rows({"measured": f"{measured} at the peak of {steps_taken}, {speed:,.0f} images/s"})
    return 0
