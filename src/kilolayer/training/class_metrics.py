"""Precision, recall and F1 of each class from a confusion matrix, and the interval of an error rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from kilolayer.training.evaluation import Evaluation


@dataclass(frozen=True)
class ClassMetrics:
    """Figures of one class, in 0 … 1. A figure whose denominator is 0 is None.

    support: images of the class. predicted: images taken for it, rightly or not.
    precision = right / predicted, recall = right / support, F1 = 2·right / (support + predicted). A class
    without an image has neither recall nor F1.
    """

    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


def compute_class_metrics(evaluation: Evaluation) -> list[ClassMetrics]:
    """The figures of every class, in the network's order."""
    columns = map(sum, zip(*evaluation.confusion, strict=True))
    rows = zip(evaluation.confusion, evaluation.class_images, columns, strict=True)
    return [_metrics(row[i], support, predicted) for i, (row, support, predicted) in enumerate(rows)]


def _metrics(num_correct: int, support: int, predicted: int) -> ClassMetrics:
    return ClassMetrics(
        support,
        predicted,
        precision=num_correct / predicted if predicted else None,
        recall=num_correct / support if support else None,
        f1=2 * num_correct / (support + predicted) if support else None,
    )


def macro_mean(values: Sequence[float | None]) -> float | None:
    """The mean over the classes that have the figure, each class with the same weight."""
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None


def wilson_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Where the rate lies of which `count` in `total` trials is one sample: Wilson (1927), by the score test.

    Unlike count/total ± 2 standard errors it stays within 0 … 1 and has a width where the count is 0.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate, shrunk = count / total, z * z / total
    centre = rate + shrunk / 2
    half = math.sqrt(shrunk * (rate * (1 - rate) + shrunk / 4))
    # At either end the formula gives 0 or 1 but for rounding.
    low = 0.0 if count == 0 else (centre - half) / (1 + shrunk)
    return low, 1.0 if count == total else (centre + half) / (1 + shrunk)
