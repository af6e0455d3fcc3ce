"""Figures over depth: the errors of networks of many depths, and a quantity of every unit of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING

from kilolayer.report import canvas, marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

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
        has_values = marks.set_log_axis(axes, chain.from_iterable(profile.values for profile in profiles))
        for number, profile in enumerate(profiles):
            dots = [(at, y) for at, y in enumerate(profile.values, start=1) if math.isfinite(y) and y > 0]
            sign, size = canvas.marker(number), 4 if len(dots) < 60 else 2.4
            axes.plot(*marks.split_points(dots), color=canvas.colour(number), ls="", marker=sign, ms=size)
        if not has_values:
            canvas.mark_no_values(axes)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        canvas.add_legend(figure, labels)

    return canvas.draw_svg(title, paint, 2.8 + canvas.legend_height(labels))


def _depth_line(axes: Axes, number: int, line: DepthLine) -> None:
    seeds = [
        (depth, marks.finite_values(errors))
        for depth, errors in sorted(zip(line.depths, line.errors, strict=True))
    ]
    middle = [(float(depth), median(errors)) for depth, errors in seeds if errors]
    dots = [(float(depth), error) for depth, errors in seeds if len(errors) > 1 for error in errors]
    tint, sign = canvas.colour(number), canvas.marker(number)
    axes.plot(*marks.split_points(middle), color=tint, marker=sign, markersize=4.5)
    axes.plot(*marks.split_points(dots), color=tint, linestyle="", marker=sign, markersize=3, alpha=0.45)


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
