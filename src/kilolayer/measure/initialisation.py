"""A network at initialisation: signal and gradient at every unit, measured and predicted, and a verdict.

The prediction is `kilolayer.theory.mean_field`'s, for a batch of as many images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Size, Tensor, nn

from kilolayer.chart import Chart, Series
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.overfit_probe import PROBE_STEPS, OverfitProbe, probe_overfit
from kilolayer.measure.scalars import norm, positive_or_none, ratio
from kilolayer.measure.series import stage_starts, unit_series
from kilolayer.measure.trainability import TrainabilityVerdict, judge_trainability
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.networks import ResidualNetwork
from kilolayer.theory.mean_field import (
    MeanFieldPrediction,
    no_prediction_reason,
    no_rule_reason,
    predict_propagation,
)

Values = tuple[float, ...]


@dataclass(frozen=True)
class Propagation:
    """Signal and gradient of one initialisation on one batch, at x_0 … x_L: L + 1 values each."""

    seed: int
    signal: Values
    """E[x_l²]."""
    common: Values
    """The channels' squared means over batch and positions, relative to the signal."""
    gradient: Values
    """‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖; ε is the batch's mean cross-entropy."""
    stages: Values = ()
    """The positions, counted from 1, at which x_l takes another shape."""


@dataclass(frozen=True)
class Initialisation:
    """Signal and gradient of freshly initialised networks, their prediction, and whether they will train."""

    network: str
    starts: tuple[Propagation, ...]
    """One for each seed."""
    prediction: MeanFieldPrediction | None
    """None where theory has nothing to say: a foreign model, or a layer without a mean-field rule."""
    first_steps: OverfitProbe
    """The overfit probe of the first seed."""
    verdict: TrainabilityVerdict
    of_trained: bool = False
    """Whether the network given was a trained one; the measurement is of fresh networks like it."""

    def charts(self) -> tuple[Chart, ...]:
        return *(_propagation_chart(self, kind) for kind in _CHART_TEXTS), _probe_chart(self)

    def summary(self) -> tuple[tuple[str, str], ...]:
        figures = []
        for kind, name in (("signal", "E[x_L²]"), ("gradient", "‖∂ε/∂x_0‖ / ‖∂ε/∂x_L‖")):
            index = -1 if kind == "signal" else 0
            figures.append((f"{name}, measured", f"{self.geometric_mean(kind)[index]:.4g}"))
            if self.prediction:
                predicted = f"{getattr(self.prediction, kind)[index]:.4g}"
                if kind == "gradient":
                    low, high = (bound[index] for bound in self.prediction.gradient_range)
                    predicted += f", of draws from {low:.3g} to {high:.3g}"
                figures.append((f"{name}, predicted", predicted))
                if not math.isnan(factor := self.theory_factor(kind)):
                    figures.append((f"{name}, largest factor between them", f"{factor:.3g}"))
            else:
                figures.append((f"{name}, predicted", "no prediction"))
        return (
            *figures,
            (
                "loss after the first steps",
                f"{self.first_steps.final_loss:.3g} of {self.first_steps.losses[0]:.3g}",
            ),
            ("will it train", f"{self.verdict.word}: {'; '.join(self.verdict.reasons)}"),
        )

    def finding(self) -> str:
        which = "a fresh network like this trained one" if self.of_trained else "it"
        return f"{which} {self.verdict.word}: {'; '.join(self.verdict.reasons)}"

    def geometric_mean(self, kind: str) -> Values:
        """Geometric means over the seeds of `kind`: "signal", "gradient" or "common"."""
        rows = zip(*(getattr(start, kind) for start in self.starts), strict=True)
        return tuple(_geometric_mean(row) for row in rows)

    def theory_factor(self, kind: str) -> float:
        """The largest factor between prediction and measurement at any unit; NaN where no unit has both."""
        if self.prediction is None:
            return math.nan
        pairs = zip(self.geometric_mean(kind), getattr(self.prediction, kind), strict=True)
        logs = [
            abs(math.log(measured / predicted))
            for measured, predicted in pairs
            if measured > 0 and 0 < predicted < math.inf
        ]
        return math.exp(max(logs, default=math.nan))


def measure_initialisation(analysis_input: AnalysisInput, *, steps: int = PROBE_STEPS) -> Initialisation:
    """Measures the network at each of `analysis_input.seeds`, predicts it, and judges whether it will train.

    Each seed costs about four forward passes and one backward pass, with 2√L of L units' inputs in memory.
    The overfit probe trains a fresh network on the batch and holds every activation, or every unit's input
    where the network can recompute.

    Args:
        analysis_input: the network and its batch.
        steps: training steps of the overfit probe.

    Raises:
        InputError: the model has no units (see `UnitChain`).

    >>> import torch
    >>> from kilolayer.networks import build, describe
    >>> _ = torch.manual_seed(0)
    >>> network = describe("preact_resnet8_cifar")
    >>> x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    >>> given = AnalysisInput(
    ...     "net", build(network), x, labels, lambda seed: build(network), lambda count: (x, labels), network
    ... )
    >>> result = measure_initialisation(given, steps=3)
    >>> result.theory_factor("signal") < 2  # prediction and measurement, at every unit
    True
    """
    starts = tuple(
        measure_propagation(
            analysis_input.build_fresh(seed),
            analysis_input.x,
            analysis_input.labels,
            units=analysis_input.units,
            seed=seed,
        )
        for seed in analysis_input.seeds
    )
    description = analysis_input.description
    theory = (
        predict_propagation(description, batch_size=len(analysis_input.x))
        if description and not no_rule_reason(description)
        else None
    )
    model = _with_recomputation(analysis_input.build_fresh(analysis_input.seeds[0]))
    probe = probe_overfit(model, analysis_input.x, analysis_input.labels, steps=steps)
    return Initialisation(
        network=analysis_input.name,
        starts=starts,
        prediction=None if description and no_prediction_reason(description) else theory,
        first_steps=probe,
        verdict=judge_trainability(starts[0].signal, starts[0].gradient, theory, probe),
        of_trained=analysis_input.trained,
    )


def measure_propagation(
    model: nn.Module, x: Tensor, labels: Tensor, *, units: Sequence[str] = (), seed: int = 0
) -> Propagation:
    """Measures signal and gradient of `model`, which is left as it was, at x_0 … x_L.

    Args:
        model: any module.
        x: a normalised batch, (N, C, H, W).
        labels: classes, (N,).
        units: the names of its units in a foreign model (see `find_residual_units`).
        seed: the seed to note in the result.

    >>> import torch
    >>> from kilolayer.networks import build, describe
    >>> model = build(describe("preact_resnet8_cifar"))
    >>> result = measure_propagation(model, torch.randn(4, 3, 32, 32), torch.arange(4))
    >>> len(result.signal), result.gradient[-1]
    (4, 1.0)
    """
    signal: list[float] = []
    common: list[float] = []
    gradients: list[float] = []
    shapes: list[Size] = []
    for unit in UnitChain(model, units).backward(x, labels):
        if not signal:
            signal, common = [_second_moment(unit.out)], [_common_moment(unit.out)]
            gradients = [norm(unit.output_gradient)]
            shapes = [unit.out.shape]
        signal.append(_second_moment(unit.x))
        common.append(_common_moment(unit.x))
        gradients.append(norm(unit.input_gradient))
        shapes.append(unit.x.shape)
    shares = [
        ratio(common_moment, second_moment)
        for common_moment, second_moment in zip(common, signal, strict=True)
    ]
    relative = [ratio(gradient, gradients[0]) for gradient in gradients]
    stages = stage_starts(shapes[::-1])
    return Propagation(seed, tuple(signal[::-1]), tuple(shares[::-1]), tuple(relative[::-1]), stages)


def _second_moment(x: Tensor) -> float:
    return float(x.double().square().mean())


def _common_moment(x: Tensor) -> float:
    """The mean over channels c of (E x_c)², E over batch and positions."""
    return float(x.double().transpose(0, 1).flatten(1).mean(1).square().mean())


def _with_recomputation(model: nn.Module) -> nn.Module:
    """The model, recomputing its units' activations in the backward pass where it can."""
    if isinstance(model, ResidualNetwork):
        model.set_grad_checkpointing()
    return model


def _geometric_mean(values: Sequence[float]) -> float:
    if min(values) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, values)) / len(values))


_CHART_TEXTS = {
    "signal": ("Signal at every unit's input", "q_l = E[x_l²]", "E[x²]"),
    "gradient": ("Gradient at every unit's input", "‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖", "relative norm"),
    "common": ("The part of the signal that all samples share", "E_c[(E x_l)²] / E[x_l²]", "share of E[x²]"),
}


def _propagation_chart(result: Initialisation, kind: str) -> Chart:
    title, equation, label = _CHART_TEXTS[kind]
    logarithmic = kind != "common"
    measured, rows = result.geometric_mean(kind), [getattr(start, kind) for start in result.starts]
    series = [unit_series("measured", positive_or_none(measured))]
    if len(rows) > 1:
        series += [
            unit_series("lowest seed", positive_or_none(map(min, zip(*rows, strict=True)))),
            unit_series("highest seed", positive_or_none(map(max, zip(*rows, strict=True)))),
        ]
    if result.prediction:
        predicted = positive_or_none(getattr(result.prediction, kind))
        series.append(unit_series("mean-field theory", predicted, "predicted"))
    if result.prediction and kind == "gradient":
        for name, bound in zip(
            ("lowest draw", "highest draw"), result.prediction.gradient_range, strict=True
        ):
            series.append(unit_series(name, positive_or_none(bound), "predicted"))
        direct = positive_or_none(result.prediction.direct)
        series.append(unit_series("by shortcuts alone", direct, "predicted"))
    factor = result.theory_factor(kind)
    agreement = "" if math.isnan(factor) else f", theory off by a factor of at most {factor:.3g}"
    return Chart(
        kind,
        title,
        equation,
        "residual unit, from the input; the last point is x_L",
        label,
        tuple(series),
        log_y=logarithmic,
        note=f"{measured[0]:.3g} at x_0, {measured[-1]:.3g} at x_L{agreement}",
        stages=result.starts[0].stages,
    )


def _probe_chart(result: Initialisation) -> Chart:
    steps = tuple(float(step) for step in range(len(result.first_steps.losses)))
    ends = (steps[0], steps[-1])
    return Chart(
        "first-steps",
        "The first steps of training, on one batch",
        "−Σ p log p of the labels: the loss without any knowledge of the images",
        "step",
        "mean cross-entropy",
        (
            Series("loss", steps, tuple(x if math.isfinite(x) else None for x in result.first_steps.losses)),
            Series("entropy of the labels", ends, (result.first_steps.entropy,) * 2, "reference"),
        ),
        note=f"{result.verdict.word}: {'; '.join(result.verdict.reasons)}",
    )
