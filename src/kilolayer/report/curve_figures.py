"""Training curves as legible figures: few lines in each, and of similar size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kilolayer.report.canvas import OKABE_ITO
from kilolayer.report.curves import Curve
from kilolayer.report.document import Figure
from kilolayer.report.plots import RateCurve, learning_rate, training_curves
from kilolayer.training import Recipe
from kilolayer.training.schedule import Schedule

MAX_CURVES = 6
"""The most curves that a reader can tell apart in one figure."""

SHARED_COLOUR = len(OKABE_ITO) - 1
"""The number of the text's colour, for a line that belongs to all runs."""

EXPLODED_LOSS = 100.0
"""A training loss far above that of guessing (ln 10 = 2.3, ln 1000 = 6.9)."""


def colour_numbers(labels: Iterable[str], baseline: str | None = None) -> dict[str, int]:
    """The number of each curve's colour, the same on a whole page. No other curve shares the baseline's."""
    labels_without_baseline = [label for label in dict.fromkeys(labels) if label != baseline]
    if not baseline:
        return {label: number for number, label in enumerate(labels_without_baseline)}
    free = len(OKABE_ITO) - 1
    return {baseline: 0} | {
        label: 1 + at % free + at // free * (free + 1) for at, label in enumerate(labels_without_baseline)
    }


def training_figures(
    curves: list[Curve], title: str, numbers: Mapping[str, int], baseline: Curve | None = None
) -> Iterator[Figure]:
    """Training loss and error: a few rows in each figure, always with the baseline.

    Runs of a single epoch have no curve and are left out.
    """
    parts = (part for part in _parts(curves, baseline) if any(map(_is_line, part)))
    return (_drawn(part, title, numbers) for part in parts)


def _drawn(curves: list[Curve], title: str, numbers: Mapping[str, int]) -> Figure:
    names = " and ".join(dict.fromkeys(curve.error_name for curve in curves))
    return Figure(
        f"{title}: training loss above, {names} below; the lower, the better.",
        training_curves(curves, title, numbers),
        f"Training loss and {names} by iteration of {', '.join(curve.label for curve in curves)}",
    )


def _parts(curves: list[Curve], baseline: Curve | None) -> Iterator[list[Curve]]:
    """The curves of each figure: all of them if they are few, otherwise a few at a time with the baseline.

    Curves whose loss explodes have figures of their own: beside them all others would look flat.
    """
    first = [baseline] if baseline else []
    other_curves = [curve for curve in curves if curve is not baseline]
    for group in (
        [curve for curve in other_curves if not _explodes(curve)],
        [curve for curve in other_curves if _explodes(curve)],
    ):
        figures = -(-len(group) // (MAX_CURVES - len(first)))
        curves_per_figure = -(-len(group) // max(1, figures))
        for start in range(0, len(group), max(1, curves_per_figure)):
            yield [*first, *group[start : start + curves_per_figure]]
    if first and not other_curves:
        yield first


def _is_line(curve: Curve) -> bool:
    """Whether the curve has more than one point; a single point is in the table already."""
    return any(sum(value is not None for value in values) > 1 for values in (curve.train_loss, curve.error))


def _explodes(curve: Curve) -> bool:
    return any(loss is not None and loss > EXPLODED_LOSS for loss in curve.train_loss)


def learning_rate_figure(recipes: Mapping[str, Recipe], title: str, numbers: Mapping[str, int]) -> Figure:
    """The learning rates of the runs: each schedule once, in the colour of its first run."""
    schedules = _schedules(recipes, numbers)
    drawing = learning_rate(schedules, title)
    peak = max((rate.schedule(at) for rate in schedules for at in range(rate.iterations)), default=0.0)
    caption = f"{title}: the learning rate of every iteration, as the recipe computes it; at most {peak:.3g}."
    shares = {recipe.trunk_rate for recipe in recipes.values()} - {1.0}
    if shares:
        caption += (
            f" It is the classifier's; the trunk's is {', '.join(f'{x:g}' for x in sorted(shares))} of it."
        )
    return Figure(caption, drawing, f"Learning rate by iteration, at most {peak:.3g}")


def _schedules(recipes: Mapping[str, Recipe], numbers: Mapping[str, int]) -> list[RateCurve]:
    """One line for each schedule. A schedule that all of several runs share is labelled “all runs”."""
    by_schedule: dict[tuple[Schedule, int], list[str]] = {}
    for label, recipe in recipes.items():
        by_schedule.setdefault((recipe.rate, recipe.iterations), []).append(label)
    alone = len(by_schedule) == 1 < len(recipes)
    return [
        RateCurve("all runs", schedule, iterations, SHARED_COLOUR)
        if alone
        else RateCurve(", ".join(labels), schedule, iterations, numbers[labels[0]])
        for (schedule, iterations), labels in by_schedule.items()
    ]
