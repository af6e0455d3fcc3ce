"""Will it train? Judged from the initialisation and the first steps, with the reasons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kilolayer.analysis.first_steps import FirstSteps
from kilolayer.analysis.mean_field import Prediction

SHORTCUTS, GROWTH, SIGNAL = 1e-2, 1e3, 1e3
"""What shortcuts leave of a gradient at least, and what gradient and signal are multiplied by at most."""


@dataclass(frozen=True)
class Verdict:
    """`word` in one word, `reasons` why, the weightiest first."""

    word: Literal["trains", "fails"]
    reasons: tuple[str, ...]

    @property
    def trains(self) -> bool:
        return self.word == "trains"


def judge(
    signal: Sequence[float], gradient: Sequence[float], prediction: Prediction | None, taken: FirstSteps
) -> Verdict:
    """A network trains if its first steps learn the batch, or if signal and gradient pass unharmed.

    `signal` and `gradient` are measured at x_0 … x_L. A network that does neither fails. The bounds are
    `SHORTCUTS`, `GROWTH` and `SIGNAL`; docs/theory tells how often this is right for Table 1.
    """
    harm = [*_harm_to_gradient(gradient, prediction), *_harm_to_signal(signal)]
    if taken.learns:
        fall = f"the loss falls from {taken.losses[0]:.3g} to {taken.last:.3g} in {len(taken.losses)} steps"
        return Verdict("trains", (fall, *harm))
    still = f"after {len(taken.losses)} steps the loss is {taken.last:.3g}, no better than knowing only "
    still += f"how often a class comes ({taken.entropy:.3g})"
    if harm:
        return Verdict("fails", (*harm, still))
    return Verdict("trains", ("signal and gradient pass the shortcuts unharmed", f"slowly: {still}"))


def _harm_to_gradient(gradient: Sequence[float], prediction: Prediction | None) -> list[str]:
    found = []
    if prediction is not None and prediction.direct[0] < SHORTCUTS:
        left = prediction.direct[0]
        found.append(
            f"the gradient shrinks to {left:.1g} through the shortcuts"
            if left
            else "no shortcut passes a gradient"
        )
    growth = max(gradient)
    if not math.isfinite(growth) or growth > GROWTH:
        found.append(f"gradients grow by {growth:.2g} on their way to the first unit")
    if 0 < gradient[0] < 1 / GROWTH:
        found.append(f"gradients shrink to {gradient[0]:.1g} on their way to the first unit")
    return found


def _harm_to_signal(signal: Sequence[float]) -> list[str]:
    growth = max(signal) / signal[0] if signal[0] else math.inf
    if not math.isfinite(growth) or growth > SIGNAL:
        return [f"the signal's second moment grows by {growth:.2g}"]
    return []
