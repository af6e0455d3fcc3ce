"""The papers' figures as SVG text: each a function of plain values and of the title it is read out by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import quantiles
from typing import TYPE_CHECKING

from kilolayer.report import canvas, marks
from kilolayer.report.curves import Curve
from kilolayer.report.depth import DepthLine, Profile, by_unit, error_against_depth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["DepthLine", "Profile", "by_unit", "error_against_depth", "learning_rate", "training"]


def training(curves: Sequence[Curve], title: str) -> str:
    """Training loss (dashed, left, logarithmic) and error (solid, right) by iterations: P2, Figs. 1 and 6.

    As there, the right axis is chosen for the end of training; the first epochs may lie above it.
    A cross stands where a value stopped being finite.
    """
    keys = _keys(curves)

    def paint(figure: Drawing) -> None:
        loss = figure.subplots()
        error = loss.twinx()
        canvas.frame(loss, _iterations(loss, curves), "training loss (dashed)", grid=False)
        canvas.frame(error, "", f"{_error_name(curves)} in % (solid)")
        error.spines["right"].set_visible(True)
        positive = marks.logarithmic(loss, chain.from_iterable(curve.train_loss for curve in curves))
        for curve in curves:
            number = keys.index(curve.key)
            marks.line(
                loss, curve.x, curve.train_loss, number, positive, linestyle=(0, (3.6, 1.8)), linewidth=1.0
            )
            marks.line(error, curve.x, curve.error, number)
        errors = marks.finite(chain.from_iterable(curve.error for curve in curves))
        error.set_ylim(0, _top(curves))
        canvas.plain_ticks(error.yaxis)
        if not errors:
            error.set_yticks([])
        if not errors and not positive:
            canvas.nothing_measured(error)
        canvas.legend(figure, keys)

    return canvas.draw(title, paint, canvas.HEIGHT + canvas.legend_height(keys))


def learning_rate(curves: Sequence[Curve], title: str) -> str:
    """The learning rate against iterations, each epoch at the rate it ended with."""
    keys = _keys(curves)

    def paint(figure: Drawing) -> None:
        axes = figure.subplots()
        canvas.frame(axes, _iterations(axes, curves), "learning rate")
        positive = marks.logarithmic(axes, chain.from_iterable(curve.learning_rate for curve in curves))
        for curve in curves:
            marks.line(
                axes, curve.x, curve.learning_rate, keys.index(curve.key), positive, drawstyle="steps-pre"
            )
        if not positive:
            canvas.nothing_measured(axes)
        canvas.legend(figure, keys)

    return canvas.draw(title, paint, 1.9 + canvas.legend_height(keys))


def _keys(curves: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.key for curve in curves))


def _error_name(curves: Sequence[Curve]) -> str:
    return " / ".join(dict.fromkeys(curve.error_name for curve in curves)) or "test error"


def _iterations(axes: Axes, curves: Sequence[Curve]) -> str:
    from matplotlib.ticker import MaxNLocator

    last = max(chain.from_iterable(curve.x for curve in curves), default=1.0)
    thousands = last >= 10_000
    axes.set_xlim(0, max(last, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    canvas.plain_ticks(axes.xaxis, 1000 if thousands else 1)
    return "iterations (thousands)" if thousands else "iterations"


def _top(curves: Sequence[Curve]) -> float:
    """The right axis' end: all final errors with room, and at least five sixths of all points."""
    errors = marks.finite(chain.from_iterable(curve.error for curve in curves))
    if len(errors) < 2:
        return max([1.0, *(min(2 * error, max(105.0, error)) for error in errors)])
    final = max(found[-1] for curve in curves if (found := marks.finite(curve.error)))
    return max(1.0, min(1.05 * max(errors), max(2.5 * final, quantiles(errors, n=6)[-1])))
