"""The gradient ∂ε/∂x_l at every unit, as the sum of its two terms (P2, Eq. 5 and 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from kilolayer.chart import Chart
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.scalars import cosine, norm, ratio
from kilolayer.measure.series import share_text, stage_starts, unit_series
from kilolayer.measure.unit_chain import Loss, UnitChain
from kilolayer.measure.unit_vjp import UnitVJP
from kilolayer.theory.shortcut_products import ShortcutFactor, ShortcutTheory

LOSSLESS = 1e-3
"""A direct term within this of the whole gradient has lost nothing but rounding."""


@dataclass(frozen=True)
class GradientTerms:
    """∂ε/∂x_l at the input of unit l, split exactly into two terms; x_L is the end of the unit's stage.

    ∂ε/∂x_l  =  (Π h' f') ∂ε/∂x_L  +  the gradient through at least one branch     (P2, Eq. 5, 8)
    """

    name: str
    stage: int
    norm: float
    """‖∂ε/∂x_l‖, over the whole batch."""
    direct: float
    """The norm of the first term, which comes through shortcuts and f alone."""
    weights: float
    """The norm of the second term."""
    cosine: float
    """The cosine between the two terms."""
    predicted: float | None
    """Eq. 8's first term with f = identity, ‖(Π h') ∂ε/∂x_L‖. None where there is no prediction: the unit
    changes shape, or it is a foreign module whose h(x) is not x."""


@dataclass(frozen=True)
class Gradient:
    """∂ε/∂x_l for every unit of a network on a batch; by default ε is the mean cross-entropy."""

    network: str
    units: tuple[GradientTerms, ...]
    ends: tuple[float, ...]
    """‖∂ε/∂x_L‖ at the end of every stage."""

    def charts(self) -> tuple[Chart, ...]:
        return (self._terms_chart(), self._direct_share_chart())

    def summary(self) -> tuple[tuple[str, str], ...]:
        first, last = self.units[0], self.ends[-1]
        predicted = "no prediction" if math.isnan(self.predicted) else f"{self.predicted:.3g}"
        return (
            ("‖∂ε/∂x‖ at the first unit's input", f"{first.norm:.3g}"),
            ("‖∂ε/∂x_L‖ at the last unit's output", f"{last:.3g}"),
            ("gradient at the first unit over that at the last", f"{self.growth:.3g}"),
            ("direct term that arrives, weakest stage, ‖direct‖ / ‖∂ε/∂x_L‖", f"{self.weakest:.3g}"),
            ("… predicted by Eq. 8", predicted),
        )

    def finding(self) -> str:
        is_lossless = abs(self.weakest - 1) < LOSSLESS
        weakest = (
            "in every stage the whole gradient of the stage's end"
            if is_lossless
            else f"in the weakest stage {share_text(self.weakest)} of the gradient of the stage's end"
        )
        arrival = "first unit that keeps its shape" if self._downsampling_units else "first unit"
        return (
            f"the gradient at the first unit is {self.growth:.3g} times that at the last; {weakest} arrives "
            f"through shortcuts alone at the {arrival} (P2, Eq. 5), and the gradient through weights adds to "
            f"it{self._loss_at_downsampling()}"
        )

    def _loss_at_downsampling(self) -> str:
        """The direct term's share at the units whose shortcut changes the shape, in words."""
        if not self._downsampling_units:
            return ""
        shares = ", ".join(
            f"{share_text(ratio(unit.direct, self.ends[unit.stage - 1]))} in stage {unit.stage}"
            for unit in self._downsampling_units
        )
        return f"; through the shortcut before it, which changes the shape, it is only {shares}"

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """Growth of the gradient, and the weakest stage's direct term."""
        return (
            ("first gradient over last", self.growth),
            ("direct term that arrives", self.weakest),
        )

    @property
    def growth(self) -> float:
        """‖∂ε/∂x‖ at the first unit's input, divided by that at the last unit's output."""
        return self.units[0].norm / self.ends[-1] if self.ends[-1] else 0.0

    @property
    def weakest(self) -> float:
        """‖direct term‖ / ‖∂ε/∂x_L‖ at a stage's entry, the least over stages."""
        return min(ratio(unit.direct, self.ends[unit.stage - 1]) for unit in self._stage_entries)

    @property
    def predicted(self) -> float:
        """`weakest` as Eq. 8 predicts it; NaN where it predicts nothing."""
        shares = [
            ratio(unit.predicted, self.ends[unit.stage - 1])
            for unit in self._stage_entries
            if unit.predicted is not None
        ]
        return min(shares, default=math.nan)

    @property
    def _stage_entries(self) -> list[GradientTerms]:
        """The first unit of every stage that keeps its shape, or else the stage's first."""
        starts: dict[int, GradientTerms] = {}
        for unit in self.units:
            first = starts.setdefault(unit.stage, unit)
            if first.predicted is None and unit.predicted is not None:
                starts[unit.stage] = unit
        return list(starts.values())

    @property
    def _downsampling_units(self) -> list[GradientTerms]:
        """The first units of stages, where they change the shape and a later unit keeps it."""
        starts = self._stage_entries
        firsts = {unit.stage: unit for unit in reversed(self.units)}
        return [firsts[start.stage] for start in starts if firsts[start.stage] is not start]

    @property
    def _stage_starts(self) -> tuple[float, ...]:
        return stage_starts([unit.stage for unit in self.units])

    def _terms_chart(self) -> Chart:
        return Chart(
            "terms",
            "The gradient at every unit, and its two terms",
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
            note=f"{share_text(self.weakest)} of ‖∂ε/∂x_L‖ arrives through the weakest stage's shortcuts",
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
            "The gradient of the stage's end that arrives through shortcuts alone",
            "‖(Π h'(x_i) f'(y_i)) ∂ε/∂x_L‖ / ‖∂ε/∂x_L‖, predicted with f' = 1   (P2, Eq. 8)",
            "residual unit, from the input",
            "share of ‖∂ε/∂x_L‖",
            (unit_series("direct term", measured), unit_series("direct term", predicted, "predicted")),
            log_y=True,
            note=f"{share_text(self.weakest)} arrives at the start of the weakest stage",
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
    """Measures ∂ε/∂x_l at every unit on a batch, and splits it as P2's Eq. 5 and 8 do.

        ∂ε/∂x_l = ∂ε/∂x_L · (Π_{i=l}^{L−1} h'(x_i) f'(y_i)  +  ∂/∂x_l Σ F̂(x_i))

    Of L units at most about 2√L inputs are in memory at a time.

    Args:
        model: any module; it is left as it was.
        x: a normalised batch, (N, C, H, W).
        labels: classes, (N,).
        network: the name to show; by default the class's.
        units: the names of its units in a foreign model (see `find_residual_units`).
        training: BN uses the batch's statistics; off, its running ones.
        loss: ε as a function of the model's output and the labels.

    Raises:
        InputError: the model has no units (see `UnitChain`).

    >>> import torch
    >>> from kilolayer.networks import build, describe
    >>> model = build(describe("preact_resnet14_cifar"))
    >>> images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> result = measure_gradient(model, images, torch.arange(4))
    >>> abs(result.weakest - 1) < 1e-3  # identity shortcuts: the whole gradient arrives (P2, Eq. 5)
    True
    """
    chain = UnitChain(model, units, training=training)
    terms: list[GradientTerms] = []
    ends: dict[int, float] = {}
    direct = predicted = x  # placeholders: the last unit of a stage sets both
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


def gradient_of(analysis_input: AnalysisInput) -> Gradient:
    """The analysis of an `AnalysisInput`, as the registry runs it."""
    return measure_gradient(
        analysis_input.model,
        analysis_input.x,
        analysis_input.labels,
        network=analysis_input.name,
        units=analysis_input.units,
    )


def unit_gradient_norms(model: nn.Module, x: Tensor, labels: Tensor) -> list[float]:
    """‖∂ε/∂x_l‖₂ for every unit l, from the first to the last: `GradientTerms.norm` without the split."""
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
