"""The papers' figures as SVG text. The title of a figure is its text for assistive technology."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING

from kilolayer.report import canvas
from kilolayer.report.curves import Curve, Value

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
    log = canvas.fit_y_axis(axes, chain.from_iterable(values))
    for curve, y in zip(curves, values, strict=True):
        canvas.draw_curve(axes, curve.x, y, numbers[curve.key], log)
    if not canvas.finite_values(chain.from_iterable(values)):
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
        log = canvas.fit_y_axis(axes, chain.from_iterable(values), log=all(stepwise))
        for number, y, steps in zip(numbers, values, stepwise, strict=True):
            style = "steps-post" if steps else "default"
            canvas.draw_curve(axes, range(len(y)), y, number, log, drawstyle=style)
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


_ACROSS, _DIGIT = 285.0, 5.6
"""In units: the smallest width between the first and the last depth, and the width of a digit."""


@dataclass(frozen=True)
class DepthLine:
    """Final errors, in percent, of one kind of unit: for each depth, the errors of all seeds.

    >>> DepthLine("original", depths=(20, 56), errors=((8.8, 8.7), (7.0,))).depths
    (20, 56)

    Raises:
        ValueError: `depths` and `errors` differ in length.
    """

    label: str
    depths: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.errors):
            raise ValueError(f"DepthLine.errors: {len(self.errors)} entries for {len(self.depths)} depths")


@dataclass(frozen=True)
class Profile:
    """One value for each residual unit, from the first to the last, such as the norm of a gradient.

    >>> Profile("original", (0.1, 1.0)).values
    (0.1, 1.0)
    """

    label: str
    values: tuple[float, ...]


def error_against_depth(lines: Sequence[DepthLine], title: str, error_name: str = "test error") -> str:
    """A figure with one line for each kind of unit, through the medians; dots are single seeds."""
    labels = [line.label for line in lines]

    def paint(figure: Drawing) -> None:
        axes = figure.subplots()
        seeds = any(len(errors) > 1 for line in lines for errors in line.errors)
        y_label = f"{error_name} in %" + (" (line: median)" if seeds else "")
        canvas.set_up_axes(axes, "depth (layers)", y_label)
        for number, line in enumerate(lines):
            _depth_line(axes, number, line)
        _depth_ticks(axes, sorted({depth for line in lines for depth in line.depths}))
        canvas.plain_ticks(axes.yaxis)
        canvas.add_legend(figure, labels)

    return canvas.draw_svg(title, paint, canvas.HEIGHT + canvas.legend_height(labels))


def profile_by_unit(
    profiles: Sequence[Profile],
    title: str,
    quantity: str = "gradient norm",
    stages: Sequence[float] = (),
) -> str:
    """A figure with a quantity of every residual unit, on a logarithmic axis, without zeros and non-finite
    values.

    `stages` are the units at which the network changes its shape.
    """
    labels = [profile.label for profile in profiles]

    def paint(figure: Drawing) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        canvas.set_up_axes(axes, "residual unit, from the input", quantity)
        for stage in stages:
            canvas.mark_stage(axes, stage)
        has_values = canvas.set_log_axis(axes, chain.from_iterable(profile.values for profile in profiles))
        for number, profile in enumerate(profiles):
            dots = [(at, y) for at, y in enumerate(profile.values, start=1) if math.isfinite(y) and y > 0]
            sign, size = canvas.marker(number), 4 if len(dots) < 60 else 2.4
            axes.plot(*canvas.split_points(dots), color=canvas.colour(number), ls="", marker=sign, ms=size)
        if not has_values:
            canvas.mark_no_values(axes)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        canvas.add_legend(figure, labels)

    return canvas.draw_svg(title, paint, 2.8 + canvas.legend_height(labels))


def _depth_line(axes: Axes, number: int, line: DepthLine) -> None:
    seeds = [
        (depth, canvas.finite_values(errors))
        for depth, errors in sorted(zip(line.depths, line.errors, strict=True))
    ]
    middle = [(float(depth), median(errors)) for depth, errors in seeds if errors]
    dots = [(float(depth), error) for depth, errors in seeds if len(errors) > 1 for error in errors]
    tint, sign = canvas.colour(number), canvas.marker(number)
    axes.plot(*canvas.split_points(middle), color=tint, marker=sign, markersize=4.5)
    axes.plot(*canvas.split_points(dots), color=tint, linestyle="", marker=sign, markersize=3, alpha=0.45)


def _depth_ticks(axes: Axes, depths: Sequence[int]) -> None:
    """Set a tick at every depth, without those whose numbers would overlap."""
    if not depths:
        canvas.mark_no_values(axes)
        return
    wide = depths[-1] >= 8 * depths[0] > 0
    position = math.log if wide else float
    unit = _ACROSS / ((position(depths[-1]) - position(depths[0])) or 1.0)
    ticked = [depths[0]]
    for depth in depths[1:]:
        room = (position(depth) - position(ticked[-1])) * unit
        if room >= 4 + _DIGIT * (len(str(depth)) + len(str(ticked[-1]))) / 2:
            ticked.append(depth)
    axes.set_xscale("log" if wide else "linear")
    axes.set_xticks(ticked, list(map(str, ticked)))
    axes.set_xticks([], minor=True)
