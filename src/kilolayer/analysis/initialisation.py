"""A network at initialisation: signal and gradient at every unit, measured and by theory, and a verdict.

The theory is `kilolayer.analysis.mean_field`'s: layers of infinite width, large batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Size, Tensor, nn

from kilolayer.analysis.chain import Chain
from kilolayer.analysis.chart import Chart, Series
from kilolayer.analysis.first_steps import STEPS, FirstSteps, first_steps
from kilolayer.analysis.mean_field import Prediction, predict, silent
from kilolayer.analysis.numbers import norm, positive, ratio
from kilolayer.analysis.subject import Subject
from kilolayer.analysis.trainability import Verdict, judge
from kilolayer.analysis.wording import by_unit, stage_starts
from kilolayer.networks import ResidualNetwork

Values = tuple[float, ...]


@dataclass(frozen=True)
class Start:
    """One initialisation on one batch: at x_0 … x_L the signal E[x²], its common share, and the gradient.

    `common`: the channels' squared means over the batch, relative to the signal. `gradient` is
    ‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖ with ε the batch's mean cross-entropy. `stages`: the places, counted from 1, at
    which x_l takes another shape.
    """

    seed: int
    signal: Values
    common: Values
    gradient: Values
    stages: Values = ()


@dataclass(frozen=True)
class Initialisation:
    """`starts` of several seeds beside the `prediction`, which only networks of ours have.

    `first_steps` are those of the first seed, `verdict` says from all of it whether the network will train.
    """

    network: str
    starts: tuple[Start, ...]
    prediction: Prediction | None
    first_steps: FirstSteps
    verdict: Verdict
    of_trained: bool = False
    """Whether the network that was given is trained; all that stands here is of fresh ones like it."""

    def charts(self) -> tuple[Chart, ...]:
        return *(_chart(self, kind) for kind in _SAID), _steps_chart(self)

    def summary(self) -> tuple[tuple[str, str], ...]:
        figures = []
        for kind, name in (("signal", "E[x_L²]"), ("gradient", "‖∂ε/∂x_0‖ / ‖∂ε/∂x_L‖")):
            place = -1 if kind == "signal" else 0
            figures.append((f"{name}, measured", f"{self.typical(kind)[place]:.4g}"))
            if self.prediction:
                figures.append((f"{name}, by theory", f"{getattr(self.prediction, kind)[place]:.4g}"))
                figures.append((f"{name}, largest factor between them", f"{self.off(kind):.3g}"))
        return (
            *figures,
            (
                "loss after the first steps",
                f"{self.first_steps.last:.3g} of {self.first_steps.losses[0]:.3g}",
            ),
            ("will it train", f"{self.verdict.word}: {'; '.join(self.verdict.reasons)}"),
        )

    def finding(self) -> str:
        which = "a fresh network like this trained one" if self.of_trained else "it"
        return f"{which} {self.verdict.word}: {'; '.join(self.verdict.reasons)}"

    def typical(self, kind: str) -> Values:
        """Geometric means over the seeds, of "signal", "gradient" or "common"."""
        rows = zip(*(getattr(start, kind) for start in self.starts), strict=True)
        return tuple(_geometric_mean(row) for row in rows)

    def off(self, kind: str) -> float:
        """The largest factor between theory and measurement at any unit; NaN without a theory."""
        if self.prediction is None:
            return math.nan
        pairs = zip(self.typical(kind), getattr(self.prediction, kind), strict=True)
        logs = [abs(math.log(found / said)) for found, said in pairs if found > 0 and 0 < said < math.inf]
        return math.exp(max(logs, default=0.0))


def initialisation(subject: Subject, *, steps: int = STEPS) -> Initialisation:
    """Measures the subject's network at its initialisations (`subject.seeds`), and judges the first.

    Takes `steps` steps of training on the batch besides, with a copy. Each seed costs about four forward
    and one backward passes, and of L units' inputs 2√L are in memory at a time; the steps of training hold
    every activation, or every unit's input where the network can recompute.
    """
    starts = tuple(
        measure(subject.fresh(seed), subject.x, subject.labels, units=subject.units, seed=seed)
        for seed in subject.seeds
    )
    described = subject.description
    prediction = predict(described) if described and not silent(described) else None
    trained = _recomputing(subject.fresh(subject.seeds[0]))
    taken = first_steps(trained, subject.x, subject.labels, steps=steps)
    return Initialisation(
        network=subject.name,
        starts=starts,
        prediction=prediction,
        first_steps=taken,
        verdict=judge(starts[0].signal, starts[0].gradient, prediction, taken),
        of_trained=subject.trained,
    )


def measure(
    model: nn.Module, x: Tensor, labels: Tensor, *, units: Sequence[str] = (), seed: int = 0
) -> Start:
    """One `Start` of `model`, which is left as it was; `units` names those of a model that is not ours."""
    signal: list[float] = []
    common: list[float] = []
    gradients: list[float] = []
    shapes: list[Size] = []
    for unit in Chain(model, units).backward(x, labels):
        if not signal:
            signal, common = [_square(unit.out)], [_common(unit.out)]
            gradients = [norm(unit.gradient)]
            shapes = [unit.out.shape]
        signal.append(_square(unit.x))
        common.append(_common(unit.x))
        gradients.append(norm(unit.at_input))
        shapes.append(unit.x.shape)
    shares = [ratio(part, whole) for part, whole in zip(common, signal, strict=True)]
    relative = [ratio(gradient, gradients[0]) for gradient in gradients]
    stages = stage_starts(shapes[::-1])
    return Start(seed, tuple(signal[::-1]), tuple(shares[::-1]), tuple(relative[::-1]), stages)


def _square(x: Tensor) -> float:
    return float(x.double().square().mean())


def _common(x: Tensor) -> float:
    """The mean over channels of the squared mean over batch and positions."""
    return float(x.double().transpose(0, 1).flatten(1).mean(1).square().mean())


def _recomputing(model: nn.Module) -> nn.Module:
    """With less memory, where the model knows how."""
    if isinstance(model, ResidualNetwork):
        model.set_grad_checkpointing()
    return model


def _geometric_mean(values: Sequence[float]) -> float:
    if min(values) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, values)) / len(values))


_SAID = {
    "signal": ("Signal at every unit's input", "q_l = E[x_l²]", "E[x²]"),
    "gradient": ("Gradient at every unit's input", "‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖", "relative norm"),
    "common": ("What all samples have in common", "E_c[(E x_l)²] / E[x_l²]", "share of E[x²]"),
}


def _chart(found: Initialisation, kind: str) -> Chart:
    title, equation, label = _SAID[kind]
    logarithmic = kind != "common"
    measured, rows = found.typical(kind), [getattr(start, kind) for start in found.starts]
    series = [by_unit("measured", positive(measured))]
    if len(rows) > 1:
        series += [
            by_unit("lowest seed", positive(map(min, zip(*rows, strict=True)))),
            by_unit("highest seed", positive(map(max, zip(*rows, strict=True)))),
        ]
    if found.prediction:
        said = positive(getattr(found.prediction, kind))
        series.append(by_unit("mean-field theory", said, "predicted"))
    if found.prediction and kind == "gradient":
        direct = positive(found.prediction.direct)
        series.append(by_unit("by shortcuts alone", direct, "predicted"))
    off = f", theory off by a factor of at most {found.off(kind):.3g}" if found.prediction else ""
    return Chart(
        kind,
        title,
        equation,
        "residual unit, from the input; the last point is x_L",
        label,
        tuple(series),
        log_y=logarithmic,
        note=f"{measured[0]:.3g} at x_0, {measured[-1]:.3g} at x_L{off}",
        stages=found.starts[0].stages,
    )


def _steps_chart(found: Initialisation) -> Chart:
    steps = tuple(float(step) for step in range(len(found.first_steps.losses)))
    ends = (steps[0], steps[-1])
    return Chart(
        "first-steps",
        "The first steps of training, on one batch",
        "−Σ p log p of the labels: what knowing no image costs",
        "step",
        "mean cross-entropy",
        (
            Series("loss", steps, tuple(x if math.isfinite(x) else None for x in found.first_steps.losses)),
            Series("entropy of the labels", ends, (found.first_steps.entropy,) * 2, "predicted"),
        ),
        note=f"{found.verdict.word}: {'; '.join(found.verdict.reasons)}",
    )
