"""How the gradient travels: ∂ε/∂x_l at every unit, and its two terms (P2, Eq. 5 and 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from kilolayer.chart import Chart
from kilolayer.measure.scalars import cosine, norm, ratio
from kilolayer.measure.series import percent_text, stage_starts, unit_series
from kilolayer.measure.unit_chain import Loss, UnitChain
from kilolayer.measure.unit_vjp import UnitVJP
from kilolayer.theory.shortcut_products import ShortcutFactor, ShortcutTheory

LOSSLESS = 1e-3
"""A direct term that is short of the whole by less than this has lost nothing but rounding."""


@dataclass(frozen=True)
class GradientTerms:
    """∂ε/∂x_l at the input of unit l, split exactly in two; x_L is the end of its stage.

        ∂ε/∂x_l  =  (Π h' f') ∂ε/∂x_L  +  the rest          (P2, Eq. 5 and 8)

    `norm` = ‖∂ε/∂x_l‖, `direct` the norm of the first term, which came through shortcuts (and f) alone,
    `weights` that of the second, which passed through at least one branch, `cosine` between the two.
    `predicted` is Eq. 8 for the first term with f = identity: ‖(Π h') ∂ε/∂x_L‖; None where the unit
    changes shape, and in modules that are not ours unless h(x) = x.
    """

    name: str
    stage: int
    norm: float
    direct: float
    weights: float
    cosine: float
    predicted: float | None


@dataclass(frozen=True)
class Gradient:
    """∂ε/∂x_l for every unit of a network on a batch, ε the mean cross-entropy.

    `ends` are ‖∂ε/∂x_L‖ at the end of every stage.
    """

    network: str
    units: tuple[GradientTerms, ...]
    ends: tuple[float, ...]

    def charts(self) -> tuple[Chart, ...]:
        return (self._terms_chart(), self._direct_share_chart())

    def summary(self) -> tuple[tuple[str, str], ...]:
        first, last = self.units[0], self.ends[-1]
        return (
            ("‖∂ε/∂x‖ at the first unit's input", f"{first.norm:.3g}"),
            ("‖∂ε/∂x_L‖ at the last unit's output", f"{last:.3g}"),
            ("gradient at the first unit over that at the last", f"{self.growth:.3g}"),
            ("direct term that arrives, weakest stage, ‖direct‖ / ‖∂ε/∂x_L‖", f"{self.weakest:.3g}"),
            ("… and as Eq. 8 predicts", f"{self.predicted:.3g}"),
        )

    def finding(self) -> str:
        is_lossless = abs(self.weakest - 1) < LOSSLESS
        weakest = (
            "in every stage the whole gradient of the stage's end arrives through shortcuts alone"
            if is_lossless
            else f"in the weakest stage {percent_text(self.weakest)} of the gradient of the stage's end arrives "
            "through shortcuts alone"
        )
        return (
            f"the gradient at the first unit is {self.growth:.3g} times that at the last; {weakest} at the "
            f"first unit{' that keeps its shape' if self._downsampling_units else ''} (P2, Eq. 5), and what comes "
            f"through weights is added to it{self._loss_at_downsampling()}"
        )

    def _loss_at_downsampling(self) -> str:
        """What arrives at the first units of stages, whose shortcuts change the shape."""
        if not self._downsampling_units:
            return ""
        shares = ", ".join(
            f"{percent_text(ratio(unit.direct, self.ends[unit.stage - 1]))} in stage {unit.stage}"
            for unit in self._downsampling_units
        )
        return f"; through the shortcut before it, which changes the shape, it is only {shares}"

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """What is followed over training."""
        return (
            ("first gradient over last", self.growth),
            ("direct term that arrives", self.weakest),
        )

    @property
    def growth(self) -> float:
        """‖∂ε/∂x‖ at the first unit's input over that at the last one's output."""
        return self.units[0].norm / self.ends[-1] if self.ends[-1] else 0.0

    @property
    def weakest(self) -> float:
        """Of ‖∂ε/∂x_L‖, what comes through shortcuts alone to a stage's start; the least over stages."""
        return min(ratio(unit.direct, self.ends[unit.stage - 1]) for unit in self._stage_entries)

    @property
    def predicted(self) -> float:
        """The same by Eq. 8; NaN where it predicts nothing."""
        shares = [
            ratio(unit.predicted, self.ends[unit.stage - 1])
            for unit in self._stage_entries
            if unit.predicted is not None
        ]
        return min(shares, default=math.nan)

    @property
    def _stage_entries(self) -> list[GradientTerms]:
        """Of every stage the first unit that keeps its shape, or else the first."""
        starts: dict[int, GradientTerms] = {}
        for unit in self.units:
            first = starts.setdefault(unit.stage, unit)
            if first.predicted is None and unit.predicted is not None:
                starts[unit.stage] = unit
        return list(starts.values())

    @property
    def _downsampling_units(self) -> list[GradientTerms]:
        """The first units of stages that change the shape before others keep it."""
        starts = self._stage_entries
        firsts = {unit.stage: unit for unit in reversed(self.units)}
        return [firsts[start.stage] for start in starts if firsts[start.stage] is not start]

    @property
    def _stage_starts(self) -> tuple[float, ...]:
        return stage_starts([unit.stage for unit in self.units])

    def _terms_chart(self) -> Chart:
        return Chart(
            "terms",
            "The gradient at every unit, and its two ways",
            "∂ε/∂x_l = ∂ε/∂x_L · (Π h'(x_i) + ∂/∂x_l Σ F̂)   (P2, Eq. 5 and 8)",
            "residual unit, from the input",
            "norm of the gradient",
            (
                unit_series("whole ∂ε/∂x_l", [unit.norm for unit in self.units]),
                unit_series("direct term", [unit.direct for unit in self.units]),
                unit_series("direct term", [unit.predicted for unit in self.units], "predicted"),
                unit_series("through weights", [unit.weights for unit in self.units]),
            ),
            log_y=True,
            note=f"{percent_text(self.weakest)} of ‖∂ε/∂x_L‖ arrives through the weakest stage's shortcuts",
            stages=self._stage_starts,
        )

    def _direct_share_chart(self) -> Chart:
        ends = [self.ends[unit.stage - 1] for unit in self.units]
        measured = [ratio(unit.direct, end) for unit, end in zip(self.units, ends, strict=True)]
        predicted = [
            None if unit.predicted is None else ratio(unit.predicted, end)
            for unit, end in zip(self.units, ends, strict=True)
        ]
        return Chart(
            "left",
            "What shortcuts alone leave of the gradient at the end of the stage",
            "‖(Π h'(x_i) f'(y_i)) ∂ε/∂x_L‖ / ‖∂ε/∂x_L‖, predicted with f' = 1   (P2, Eq. 8)",
            "residual unit, from the input",
            "share of ‖∂ε/∂x_L‖",
            (unit_series("direct term", measured), unit_series("direct term", predicted, "predicted")),
            log_y=True,
            note=f"{percent_text(self.weakest)} arrives at the start of the weakest stage",
            stages=self._stage_starts,
        )


def measure_gradient(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    network: str = "",
    units: Sequence[str] = (),
    training: bool = True,
    loss: Loss = functional.cross_entropy,
) -> Gradient:
    """Measures ∂ε/∂x_l on the batch `x` (N, C, H, W), `labels` (N,), from the last unit to the first.

    `units` names the units of a model that is not ours. Of a thousand units never more than about 2√L
    inputs are in memory. The model is left as it was. Raises `InputError` where it has no units.
    """
    chain = UnitChain(model, units, training=training)
    terms: list[GradientTerms] = []
    ends: dict[int, float] = {}
    direct = predicted = x  # until the last unit says what they are
    with ShortcutTheory().recording(chain.execution_order(x).units) as theory:
        for unit in chain.backward(x, labels, loss):
            begins = unit.stage not in ends
            if begins:
                ends[unit.stage] = norm(unit.output_gradient)
            direct = unit.output_gradient if begins else unit.to_output(direct)
            predicted = unit.output_gradient if begins else unit.to_output(predicted)
            factor = theory.factor(unit.module) or (ShortcutFactor() if unit.h_is_input else None)
            direct = unit.shortcut(direct)
            predicted = direct if factor is None else factor.apply(predicted)
            terms.append(_split_gradient(unit, direct, None if factor is None else predicted))
    return Gradient(network or type(model).__name__, tuple(reversed(terms)), tuple(reversed(ends.values())))


def unit_gradient_norms(model: nn.Module, x: Tensor, labels: Tensor) -> list[float]:
    """‖∂ε/∂x_l‖₂ for every unit l, from the first to the last: the `norm` of `gradient`'s units alone."""
    norms = [norm(unit.input_gradient) for unit in UnitChain(model).backward(x, labels)]
    return norms[::-1]


def _split_gradient(unit: UnitVJP, direct: Tensor, predicted: Tensor | None) -> GradientTerms:
    through_weights = unit.input_gradient - direct
    direct_norm, weights_norm = norm(direct), norm(through_weights)
    return GradientTerms(
        name=unit.name,
        stage=unit.stage,
        norm=norm(unit.input_gradient),
        direct=direct_norm,
        weights=weights_norm,
        cosine=cosine(direct, through_weights),
        predicted=None if predicted is None else norm(predicted),
    )
