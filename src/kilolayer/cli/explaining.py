"""`kilolayer train --explain`: what was chosen and why, with the predicted and the measured memory."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice

from kilolayer.runs.start_environment import peak_memory_bytes
from kilolayer.system.terminal import print_rows
from kilolayer.training import ProgressiveDepth, ProgressiveResize, Trainer
from kilolayer.training.decisions import explain_decisions
from kilolayer.training.memory_budget import format_bytes

STEPS = 3


def explain_training(training: Trainer) -> int:
    """Prints the choices, measures a few training steps, and writes nothing.

    With a progressive size or depth the steps are those of the last phase, to which the prediction refers.
    """
    rows = explain_decisions(training)
    if training.context.is_main:
        print_rows(rows)
    recipe = training.experiment.recipe
    size = recipe.progressive_resize.share_at(recipe.iterations, recipe.iterations)
    last = replace(recipe, progressive_resize=ProgressiveResize(size), progressive_depth=ProgressiveDepth())
    training.experiment = replace(training.experiment, recipe=last)
    seconds: list[float] = []
    steps = training.steps()
    while len(seconds) < min(STEPS, training.experiment.recipe.iterations):
        started = time.perf_counter()
        list(islice(steps, 1))
        seconds.append(time.perf_counter() - started)
    if training.context.is_main:
        speed = training.experiment.recipe.batch_size / min(seconds)
        measured = format_bytes(peak_memory_bytes(training.context))
        steps_taken = (
            f"{len(seconds)} steps{'' if last == recipe else ' at the full size and depth of the last phase'}"
        )
        print_rows({"measured": f"{measured} at the peak of {steps_taken}, {speed:,.0f} images/s"})
    return 0
