"""Training curves as figures that can be read: not too many lines in one, nor of too different a size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kilolayer.report.content import Figure
from kilolayer.report.curves import Curve
from kilolayer.report.plots import learning_rate, training

MOST_CURVES = 6
"""Rows that can be told apart in one figure."""

EXPLODED = 100.0
"""A training loss far above that of guessing, ln 10 = 2.3 or ln 1000 = 6.9."""


def drawn(curves: list[Curve], title: str, baseline: Curve | None = None) -> Iterator[Figure]:
    """Training loss and error, as few rows to a figure as can be told apart, each beside the baseline."""
    return (_drawn(part, title) for part in _parts(curves, baseline))


def _drawn(curves: list[Curve], title: str) -> Figure:
    return Figure(
        f"{title}: training loss (dashed, left) and error (solid, right).",
        training(curves, title),
        f"Training loss and test error by iteration of {', '.join(curve.label for curve in curves)}",
    )


def _parts(curves: list[Curve], baseline: Curve | None) -> Iterator[list[Curve]]:
    """All of them where they are few; else a few at a time beside the baseline.

    Curves whose loss explodes are drawn apart, for beside them all others would be one flat line.
    """
    first = [baseline] if baseline else []
    others = [curve for curve in curves if curve is not baseline]
    for group in (
        [curve for curve in others if not _explodes(curve)],
        [curve for curve in others if _explodes(curve)],
    ):
        figures = -(-len(group) // (MOST_CURVES - len(first)))
        each = -(-len(group) // max(1, figures))
        for start in range(0, len(group), max(1, each)):
            yield [*first, *group[start : start + each]]
    if first and not others:
        yield first


def _explodes(curve: Curve) -> bool:
    return any(loss is not None and loss > EXPLODED for loss in curve.train_loss)


def rates(curves: list[Curve], title: str) -> Figure:
    """The learning rate, each course of it once."""
    drawing = learning_rate(_courses(curves), title)
    return Figure(f"{title}: learning rate.", drawing, "Learning rate by iteration")


def _courses(curves: list[Curve]) -> list[Curve]:
    """One curve for each course of the learning rate; the only one of several runs is that of all."""
    by_course: dict[object, list[Curve]] = {}
    for curve in curves:
        by_course.setdefault((curve.x, curve.learning_rate), []).append(curve)
    if len(by_course) == 1 < len(curves):
        return [replace(curves[0], label="all runs")]
    return [replace(same[0], label=", ".join(curve.label for curve in same)) for same in by_course.values()]
