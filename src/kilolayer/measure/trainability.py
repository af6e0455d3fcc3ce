"""Judges whether a network will train, from its initialisation and its first steps, with reasons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kilolayer.measure.overfit_probe import OverfitProbe
from kilolayer.theory.mean_field import MeanFieldPrediction

MIN_SHORTCUT_GAIN, MAX_GRADIENT_GROWTH, MAX_SIGNAL_GROWTH = 1e-2, 1e3, 1e3
"""The least share of a gradient that shortcuts may leave, and the largest growth of gradient and signal."""
MAX_PROBE_LOSS = 1.5
"""The largest loss after the first steps, relative to the entropy of the labels."""


@dataclass(frozen=True)
class TrainabilityVerdict:
    """The verdict in one word, and the reasons, the weightiest first."""

    word: Literal["trains", "fails"]
    reasons: tuple[str, ...]

    @property
    def trains(self) -> bool:
        return self.word == "trains"


def judge_trainability(
    signal: Sequence[float],
    gradient: Sequence[float],
    prediction: MeanFieldPrediction | None,
    probe: OverfitProbe,
) -> TrainabilityVerdict:
    """Says that a network trains if its first steps learn the batch, or if signal and gradient pass unharmed.

    A network that does neither fails. The bounds are `MIN_SHORTCUT_GAIN`, `MAX_GRADIENT_GROWTH` and
    `MAX_SIGNAL_GROWTH`; how often the verdict is right for P2's Table 1 stands in the page on analyses.

    Args:
        signal: E[x²] measured at x_0 … x_L.
        gradient: ‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖ measured there.
        prediction: the mean-field prediction; None where there is none.
        probe: the first steps.
    """
    problems = [*_gradient_problems(gradient, prediction), *_signal_problems(signal)]
    if probe.learns:
        losses = f"{probe.losses[0]:.3g} to {probe.final_loss:.3g}"
        return TrainabilityVerdict(
            "trains", (f"the loss falls from {losses} in {len(probe.losses)} steps", *problems)
        )
    failure = (
        f"after {len(probe.losses)} steps the loss is {probe.final_loss:.3g}, no better than guessing by the "
        f"classes' frequencies ({probe.entropy:.3g})"
    )
    if not probe.final_loss <= MAX_PROBE_LOSS * probe.entropy:
        problems.append("the loss rises in the first steps")
    if problems:
        return TrainabilityVerdict("fails", (*problems, failure))
    return TrainabilityVerdict(
        "trains", ("signal and gradient pass the shortcuts unharmed", f"but slowly: {failure}")
    )


def _gradient_problems(gradient: Sequence[float], prediction: MeanFieldPrediction | None) -> list[str]:
    problems = []
    if prediction is not None and prediction.direct[0] < MIN_SHORTCUT_GAIN:
        share = prediction.direct[0]
        problems.append(
            f"the gradient shrinks to {share:.1g} through the shortcuts"
            if share
            else "no gradient passes through shortcuts"
        )
    growth = max(gradient)
    if not math.isfinite(growth) or growth > MAX_GRADIENT_GROWTH:
        problems.append(f"gradients grow by {growth:.2g} on their way to the first unit")
    if 0 < gradient[0] < 1 / MAX_GRADIENT_GROWTH:
        problems.append(f"gradients shrink to {gradient[0]:.1g} on their way to the first unit")
    return problems


def _signal_problems(signal: Sequence[float]) -> list[str]:
    growth = max(signal) / signal[0] if signal[0] else math.inf
    if not math.isfinite(growth) or growth > MAX_SIGNAL_GROWTH:
        return [f"the signal's second moment grows by {growth:.2g}"]
    return []
