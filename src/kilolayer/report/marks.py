"""Series laid onto axes: what of them is finite, where they have gaps, and which axis they need."""

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
"""The factor between the largest and the smallest value from which an axis is logarithmic."""


def finite_values(values: Iterable[Value]) -> list[float]:
    """The values that were measured and are finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def positive_values(values: Iterable[Value]) -> list[float]:
    """The values that a logarithmic axis can show."""
    return [value for value in finite_values(values) if value > 0]


def split_points(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points as matplotlib takes them: all x, all y."""
    return [x for x, _ in points], [y for _, y in points]


def fit_y_axis(axes: Axes, values: Iterable[Value], log: bool = True) -> bool:
    """Axes that hold every finite value: logarithmic if wanted and of use; whether they are."""
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
    """Make the y axis logarithmic, ticked at 2 and 5 where it spans few decades; False if nothing shows."""
    from matplotlib.ticker import LogLocator

    positives = positive_values(values)
    if not positives:
        axes.set_yticks([])
        return False
    # Beyond these matplotlib's own arithmetic overflows.
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
    """A curve with gaps at what is not finite: a cross where a gap begins, a dot for a point on its own."""
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
        # A line without points has a box without bounds, and several panels then have no room.
        part.set_in_layout(False)


def _alone(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    gap = (math.nan, math.nan)
    padded = [gap, *points, gap]
    neighbours = zip(padded, points, padded[2:], strict=False)
    return [at for before, at, after in neighbours if math.isnan(before[1]) and math.isnan(after[1])]


def _last_finite(measured: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    pairs = pairwise(measured)
    return [at for at, after in pairs if math.isfinite(at[1]) and not math.isfinite(after[1])]
