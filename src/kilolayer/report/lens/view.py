"""The content of the lens for some settings: theory at once, and later a measurement beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kilolayer.chart import Chart, Series
from kilolayer.measure.series import stage_starts
from kilolayer.networks import Network
from kilolayer.report import lab
from kilolayer.report.lab_data import gather_lab, lab_json
from kilolayer.report.lens.measurement import MANY, LensMeasurement, batch_size
from kilolayer.report.lens.sentences import explain_shortcuts, unit_equation
from kilolayer.report.lens.settings import LensSettings
from kilolayer.report.unit_svg import unit_svg
from kilolayer.theory.mean_field import MeanFieldPrediction, no_prediction_reason, predict_propagation


@lru_cache(64)
def predicted(network: Network) -> MeanFieldPrediction | None:
    """Theory's prediction, or None where a layer of your own has no rule."""
    if no_prediction_reason(network):
        return None
    # As many images as the measurement has; deep networks are drawn once, since a slider should not wait.
    images = batch_size(network)
    return predict_propagation(network, batch_size=images, draws=3 if images == MANY else 1)


@dataclass(frozen=True)
class LensAnalysis:
    """Signal and gradient at x_0, …, x_L: predicted where theory has rules, measured with a `propagation`."""

    choice: LensSettings
    prediction: MeanFieldPrediction | None
    propagation: LensMeasurement | None = None

    @property
    def network(self) -> str:
        return f"{self.choice.arrangement}, {self.choice.shortcut}, {self.choice.depth} layers"

    def charts(self) -> tuple[Chart, ...]:
        theory, propagation = self.prediction, self.propagation
        return (
            Chart(
                "signal",
                "Signal",
                "E[x_l^2]",
                "unit l",
                "mean square of xₗ",
                self._series(
                    "signal",
                    theory.signal if theory else None,
                    propagation.signal if propagation else None,
                ),
                log_y=True,
                stages=self._stages,
            ),
            Chart(
                "gradient",
                "Gradient",
                "‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖",
                "unit l",
                "gradient at xₗ over the last",
                (
                    *self._series(
                        "gradient",
                        theory.gradient if theory else None,
                        propagation.gradient if propagation else None,
                    ),
                    *self._series("through the shortcuts alone", theory.direct if theory else None, None),
                ),
                log_y=True,
                stages=self._stages,
            ),
        )

    def summary(self) -> tuple[tuple[str, str], ...]:
        return ()

    @property
    def _stages(self) -> tuple[float, ...]:
        """The l, from 0, at which x_l changes its shape."""
        network = self.choice.network()
        widths = [stage.width for stage in network.stages for _ in range(stage.units)]
        channels = map(network.unit.branch.out_channels, widths)
        sides = [unit.layout.output_side(unit.side) for unit in network.units()]
        start = network.stem.channels, network.units()[0].side
        return stage_starts([start, *zip(channels, sides, strict=True)], 0.0)

    def _series(
        self, name: str, theory: Sequence[float] | None, measured: Sequence[float] | None
    ) -> tuple[Series, ...]:
        curves = ((measured, "measured"), (theory, "predicted"))
        return tuple(_series(name, values, kind) for values, kind in curves if values is not None)


def _series(name: str, y: Sequence[float], kind: Any) -> Series:
    return Series(name, tuple(map(float, range(len(y)))), tuple(y), kind)


def lens_response(choice: LensSettings, propagation: LensMeasurement | None = None) -> dict[str, Any]:
    """The response for some settings, as JSON: the unit's drawing, equation and meaning, and the curves.

    "lab", the curves, is null where theory has no prediction and nothing is measured yet.
    """
    network = choice.network()
    units = network.units()
    view = LensAnalysis(choice, predicted(network), propagation)
    measured = (
        f"Measured on {propagation.images} images in {propagation.seconds:.1f} s." if propagation else ""
    )
    return {
        "drawing": unit_svg(units[1].layout),
        "equation": lab.equation_markup(unit_equation(network.unit)),
        "meaning": lab.equation_markup(_meaning(network, view.prediction)),
        "size": f"{len(units)} units, {network.parameters:,} parameters",
        "measured": measured,
        "lab": lab_json(gather_lab([(None, view)])) if view.prediction or propagation else None,
    }


def _meaning(network: Network, prediction: MeanFieldPrediction | None) -> str:
    if prediction is None:
        return f"No prediction: {no_prediction_reason(network)}. The curves are measured alone."
    return explain_shortcuts(network.unit, prediction)
