"""Curves on axes: their finite values, their gaps, and the scale of the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kilolayer.report import canvas
from kilolayer.report.curves import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WIDE = 5
"""An axis is logarithmic if the largest value is at least this multiple of the smallest."""


def finite_values(values: Iterable[Value]) -> list[float]:
    """The values that were measured and are finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def positive_values(values: Iterable[Value]) -> list[float]:
    """The values that a logarithmic axis can show."""
    return [value for value in finite_values(values) if value > 0]


def split_points(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """All x and all y of some points, as matplotlib takes them."""
    return [x for x, _ in points], [y for _, y in points]


def fit_y_axis(axes: Axes, values: Iterable[Value], log: bool = True) -> bool:
    """Fit the y axis to all finite values; return whether it is logarithmic, which `log` allows."""
    finites = finite_values(values)
    positive_only = bool(finites) and min(finites) > 0
    if log and positive_only and max(finites) >= WIDE * min(finites):
        return set_log_axis(axes, finites)
    if not finites:
        axes.set_yticks([])
        return False
    low, high = min(0.0, min(finites)), max(finites)
    room = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - (room if low < 0 else 0.0), high + room)
    canvas.plain_ticks(axes.yaxis)
    return False


def set_log_axis(axes: Axes, values: Iterable[Value]) -> bool:
    """Make the y axis logarithmic, with ticks at 2 and 5 over few decades; False without positive values."""
    from matplotlib.ticker import LogLocator

    positives = positive_values(values)
    if not positives:
        axes.set_yticks([])
        return False
    # Beyond these limits matplotlib's own arithmetic overflows.
    low, high = max(min(positives), 1e-300) / 1.25, min(max(positives), 1e300) * 1.25
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=9))
    canvas.plain_ticks(axes.yaxis, powers=decades > 5)
    return True


def draw_curve(
    axes: Axes, x: Sequence[float], y: Sequence[Value], number: int, log: bool = False, **style: Any
) -> None:
    """Draw a curve with gaps at non-finite values: a cross begins a gap, a dot marks an isolated point."""
    measured = [(at, value) for at, value in zip(x, y, strict=True) if value is not None]
    points = [(at, v if math.isfinite(v) and (v > 0 or not log) else math.nan) for at, v in measured]
    tint, mark_step = canvas.colour(number), max(1, len(points) // 8)
    artists = [
        *axes.plot(
            *split_points(points),
            color=tint,
            **style,
            marker=canvas.marker(number),
            ms=3,
            markevery=mark_step,
            clip_on=False,
        ),
        *axes.plot(*split_points(_alone(points)), color=tint, ls="", marker="o", ms=3.5, clip_on=False),
        *axes.plot(*split_points(_last_finite(measured)), color=tint, ls="", marker="x", ms=6),
    ]
    for part in artists:
        # A line without points has infinite bounds, which would leave no room for other panels.
        part.set_in_layout(False)


def _alone(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    gap = (math.nan, math.nan)
    padded = [gap, *points, gap]
    neighbours = zip(padded, points, padded[2:], strict=False)
    return [at for before, at, after in neighbours if math.isnan(before[1]) and math.isnan(after[1])]


def _last_finite(measured: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    pairs = pairwise(measured)
    return [at for at, after in pairs if math.isfinite(at[1]) and not math.isfinite(after[1])]
