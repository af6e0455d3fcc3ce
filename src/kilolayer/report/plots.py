"""The papers' figures as SVG text. The title of a figure is its text for assistive technology."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from kilolayer.report import canvas, marks
from kilolayer.report.curves import Curve, Value
from kilolayer.report.depth_plots import DepthLine, Profile, error_against_depth, profile_by_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "DepthLine",
    "Profile",
    "RateCurve",
    "error_against_depth",
    "learning_rate",
    "profile_by_unit",
    "training_curves",
]

Values = Sequence[Value]

_PANELS = 4.6
"""Height of both panels in inches."""

STEPS = 12
"""A schedule with at most so many different rates is a step schedule."""


def training_curves(curves: Sequence[Curve], title: str, numbers: Mapping[str, int] | None = None) -> str:
    """Training loss above and error below, by iterations (P2, Figs. 1 and 6, which draw both in one plane).

    An axis is logarithmic if all values are positive and span a wide range. A cross marks the last finite
    value of a curve that diverged. `numbers` are the numbers of the colours, by the keys of the curves, for a
    page with several figures.
    """
    keys = _keys(curves)
    numbers = numbers or {key: number for number, key in enumerate(keys)}

    def paint(figure: Drawing) -> None:
        upper, lower = figure.subplots(2, sharex=True)
        canvas.set_up_axes(upper, "", "training loss")
        canvas.set_up_axes(lower, _iterations(lower, curves), f"{_error_name(curves)} in %")
        _panel(upper, curves, numbers, [curve.train_loss for curve in curves])
        _panel(lower, curves, numbers, [curve.error for curve in curves])
        canvas.add_legend(figure, keys, [numbers[key] for key in keys])

    return canvas.draw_svg(title, paint, _PANELS + canvas.legend_height(keys))


def _panel(axes: Axes, curves: Sequence[Curve], numbers: Mapping[str, int], values: Sequence[Values]) -> None:
    """Draw one quantity of all curves, on axes that hold every value."""
    log = marks.fit_y_axis(axes, chain.from_iterable(values))
    for curve, y in zip(curves, values, strict=True):
        marks.draw_curve(axes, curve.x, y, numbers[curve.key], log)
    if not marks.finite_values(chain.from_iterable(values)):
        canvas.mark_no_values(axes)


@dataclass(frozen=True)
class RateCurve:
    """A recipe's learning rate: a function of the iteration, from 0 to `iterations` - 1.

    `number` is the number of its colour; None is the rate's place in the list.
    """

    label: str
    schedule: Callable[[int], float]
    iterations: int
    number: int | None = None


def learning_rate(rates: Sequence[RateCurve], title: str) -> str:
    """The learning rate of every iteration. A logarithmic axis shows the late steps of step schedules."""
    labels = [rate.label for rate in rates]
    numbers = [at if rate.number is None else rate.number for at, rate in enumerate(rates)]
    values = [[rate.schedule(at) for at in range(rate.iterations)] for rate in rates]

    def paint(figure: Drawing) -> None:
        axes = figure.subplots()
        canvas.set_up_axes(axes, _axis(axes, [rate.iterations for rate in rates]), "learning rate")
        stepwise = [_is_stepwise(y) for y in values]
        log = marks.fit_y_axis(axes, chain.from_iterable(values), log=all(stepwise))
        for number, y, steps in zip(numbers, values, stepwise, strict=True):
            style = "steps-post" if steps else "default"
            marks.draw_curve(axes, range(len(y)), y, number, log, drawstyle=style)
        if not any(values):
            canvas.mark_no_values(axes)
        canvas.add_legend(figure, labels, numbers)

    return canvas.draw_svg(title, paint, 2.1 + canvas.legend_height(labels))


def _is_stepwise(rates: Sequence[float]) -> bool:
    """Whether the rate has few values, each for several iterations."""
    different = len(set(rates))
    return different <= STEPS and 2 * different <= len(rates)


def _keys(curves: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.key for curve in curves))


def _error_name(curves: Sequence[Curve]) -> str:
    return " / ".join(dict.fromkeys(curve.error_name for curve in curves)) or "test error"


def _iterations(axes: Axes, curves: Sequence[Curve]) -> str:
    return _axis(axes, list(chain.from_iterable(curve.x for curve in curves)))


def _axis(axes: Axes, iterations: Sequence[float]) -> str:
    """Set the ticks of the iterations, and return the label of the axis."""
    from matplotlib.ticker import MaxNLocator

    last = max(iterations, default=1.0)
    thousands = last >= 10_000
    axes.set_xlim(0, max(last, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    canvas.plain_ticks(axes.xaxis, 1000 if thousands else 1)
    return "iterations (thousands)" if thousands else "iterations"
