"""A residual network as an ensemble of paths: gradients by path length, and lesions (Veit et al. 2016).

Theory stands beside the measurement: path lengths are binomial, and at initialisation gradients by length
follow a mean-field recursion (`kilolayer.theory.path_statistics`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kilolayer.chart import Chart, Series
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.lesions import LesionStudy, measure_lesions
from kilolayer.measure.path_gradients import (
    PathGradients,
    measure_path_gradients,
)
from kilolayer.measure.scalars import positive_or_none
from kilolayer.theory.mean_field import no_prediction_reason
from kilolayer.theory.path_statistics import Lengths, predict_path_norms

IMAGES = 256
"""Held-out images for the lesion study."""


@dataclass(frozen=True)
class PathEnsemble:
    """Gradients by path length, and the errors of a trained network without some of its units."""

    heading: ClassVar[str] = "Paths"

    network: str
    units: int
    gradients: PathGradients
    predicted: Lengths | None = None
    """`gradients.together` by theory, for a network at initialisation."""
    lesions: LesionStudy | None = None
    """None for a network that was never trained, which has nothing to lose."""

    def charts(self) -> tuple[Chart, ...]:
        charts = (_length_chart(self), _single_chart(self))
        return (*charts, *(_lesion_charts(self.lesions) if self.lesions else ()))

    def summary(self) -> tuple[tuple[str, str], ...]:
        gradients, study = self.gradients, self.lesions
        mean = sum(k * share for k, share in enumerate(gradients.counts))
        figures = [
            ("mean length of a path, branches", f"{mean:.4g} of {self.units}"),
            ("mean length weighted by the gradient's square", f"{gradients.mean_length:.4g}"),
        ]
        if study is not None:
            worst = max(study.single, key=lambda lesion: lesion[1])
            typical = sorted(error for _, error, _ in study.single)[len(study.single) // 2]
            figures += [
                (f"error on {study.images} held-out images", f"{study.error:.2f} %"),
                ("error without one unit, median", f"{typical:.2f} %"),
                ("error without one unit, worst", f"{worst[1]:.2f} % (unit {worst[0] + 1})"),
            ]
        return tuple(figures)

    def finding(self) -> str:
        mean = sum(k * share for k, share in enumerate(self.gradients.counts))
        short = self.gradients.mean_length
        sentence = (
            f"the gradient comes through {short:.3g} branches on average, while a path has {mean:.3g} of "
            f"{self.units}: " + ("short paths carry it" if short < mean else "short paths do not carry it")
        )
        if self.lesions is None or not self.lesions.single:
            return sentence
        worst, error, _ = max(self.lesions.single, key=lambda lesion: lesion[1])
        lost = f"{error:.3g} % in place of {self.lesions.error:.3g} %"
        return f"{sentence}; without unit {worst + 1}, the most important, the error is {lost}"


def measure_paths(analysis_input: AnalysisInput, *, images: int = IMAGES, seed: int = 0) -> PathEnsemble:
    """Measures gradients by path length and, for a trained network, lesions on held-out images.

    A foreign module counts as trained, since only its owner knows whether it is.

    Args:
        analysis_input: the network and its batch.
        images: the number of held-out images for lesions.
        seed: chooses the sampled paths and the lesions.

    Raises:
        InputError: the model has no units (see `UnitChain`).

    >>> import torch
    >>> from kilolayer.networks import build, describe
    >>> network = describe("preact_resnet8_cifar")
    >>> x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    >>> given = AnalysisInput(
    ...     "net", build(network), x, labels, lambda seed: build(network), lambda count: (x, labels), network
    ... )
    >>> result = measure_paths(given)
    >>> result.units, len(result.gradients.together), result.lesions
    (3, 4, None)
    """
    chain = analysis_input.chain(training=not analysis_input.trained)
    network = analysis_input.description
    is_predicted = network and not analysis_input.trained and not no_prediction_reason(network)
    return PathEnsemble(
        network=analysis_input.name,
        units=len(chain.execution_order(analysis_input.x).names),
        gradients=measure_path_gradients(chain, analysis_input.x, analysis_input.labels, seed=seed),
        predicted=predict_path_norms(network) if network and is_predicted else None,
        lesions=(
            measure_lesions(analysis_input.chain(training=False), *analysis_input.held_out(images), seed=seed)
            if analysis_input.trained or network is None
            else None
        ),
    )


def _length_chart(result: PathEnsemble) -> Chart:
    measured, counts = result.gradients, result.gradients.counts
    lengths = tuple(float(measured.shortest + k) for k in range(len(measured.together)))
    end = int(lengths[-1]) + 1
    series = [
        Series("gradient of all paths of this length", lengths, positive_or_none(measured.together)),
        Series(
            "share of paths, C(L, k) / 2^L",
            tuple(map(float, range(end))),
            positive_or_none(counts[:end]),
            "reference",
        ),
    ]
    if result.predicted:
        series.append(Series("mean-field theory", lengths, positive_or_none(result.predicted), "predicted"))
    return Chart(
        "lengths",
        "The gradient that paths of one length carry",
        "∂ε/∂x_0 = ∂ε/∂x_L · Π (∂h_l + ∂F_l),  C(L, k) terms with k branches",
        "branches on the path, k",
        "‖Σ over paths of length k‖ / ‖∂ε/∂x_0‖; share of paths",
        tuple(series),
        log_y=True,
        note=f"the gradient comes through {measured.mean_length:.3g} branches on average, "
        f"a path has {sum(k * share for k, share in enumerate(counts)):.3g} of {result.units}",
    )


def _single_chart(result: PathEnsemble) -> Chart:
    ks, sizes = zip(*result.gradients.alone, strict=True) if result.gradients.alone else ((), ())
    return Chart(
        "one-path",
        "The gradient that a single path carries",
        "‖∂ε/∂x_L · Π_{l in path} ∂F_l · Π_{others} ∂h_l‖ / ‖∂ε/∂x_0‖",
        "branches on the path, k",
        "gradient of one path",
        (Series("one path, on average", tuple(map(float, ks)), positive_or_none(sizes)),),
        log_y=True,
        note="each branch on a path makes its gradient smaller"
        if ks
        else "a plain network has a single path",
    )


def _lesion_charts(study: LesionStudy) -> tuple[Chart, Chart]:
    units = tuple(float(index + 1) for index, _, _ in study.single)
    baseline = Series("whole network", units, (study.error,) * len(units))
    single_chart = Chart(
        "without-one",
        "Error without one unit",
        "F_l = 0",
        "residual unit, from the input",
        "top-1 error, %",
        (Series("without this unit", units, tuple(error for _, error, _ in study.single)), baseline),
        note=f"{study.error:.3g} % with all units",
        stages=study.stages,
    )
    several_chart = Chart(
        "lesions",
        "Error after several lesions",
        "",
        "units deleted, or pairs swapped",
        "top-1 error, %",
        tuple(
            Series(name, tuple(float(k) for k, _ in points), tuple(error for _, error in points))
            for name, points in (("deleted", study.deleted), ("swapped", study.swapped))
        ),
        note=f"{study.error:.3g} % without any",
    )
    return single_chart, several_chart
