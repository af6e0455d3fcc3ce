"""All analyses by name. Each is a function of an `AnalysisInput`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kilolayer.chart import Analysis
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.decomposition import Decomposition, measure_decomposition
from kilolayer.measure.gradient import Gradient, measure_gradient
from kilolayer.measure.initialisation import measure_initialisation
from kilolayer.measure.jacobian import measure_jacobian
from kilolayer.measure.landscape import measure_landscape
from kilolayer.measure.layer_responses import LayerResponses, measure_layer_responses
from kilolayer.measure.path_ensemble import measure_paths
from kilolayer.measure.shortcut_factors import ShortcutFactors, measure_shortcut_factors


@dataclass(frozen=True)
class AnalysisKind:
    """An analysis as a function; `at_snapshots`: a run is analysed at each of its snapshots too."""

    run: Callable[[AnalysisInput], Analysis]
    at_snapshots: bool = False


def _decomposition(subject: AnalysisInput) -> Decomposition:
    return measure_decomposition(subject.model, subject.x, network=subject.name, units=subject.units)


def _gradient(subject: AnalysisInput) -> Gradient:
    return measure_gradient(
        subject.model, subject.x, subject.labels, network=subject.name, units=subject.units
    )


def _shortcut(subject: AnalysisInput) -> ShortcutFactors:
    return measure_shortcut_factors(subject.model, subject.x, network=subject.name, units=subject.units)


def _responses(subject: AnalysisInput) -> LayerResponses:
    return measure_layer_responses(subject.model, subject.x, network=subject.name)


ANALYSES: dict[str, AnalysisKind] = {
    "decomposition": AnalysisKind(_decomposition, at_snapshots=True),
    "gradient": AnalysisKind(_gradient, at_snapshots=True),
    "shortcut": AnalysisKind(_shortcut, at_snapshots=True),
    "responses": AnalysisKind(_responses, at_snapshots=True),
    "initialisation": AnalysisKind(measure_initialisation),
    "paths": AnalysisKind(measure_paths),
    "jacobian": AnalysisKind(measure_jacobian),
    "landscape": AnalysisKind(measure_landscape),
}
