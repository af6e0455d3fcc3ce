"""Precision, recall and F1 of each class from a confusion matrix, and the interval of an error rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from kilolayer.training.evaluation import Evaluation


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class, in 0 … 1; None where the denominator is 0.

    support: images of the class. predicted: images that the network took for it.
    precision = correct / predicted, recall = correct / support, F1 = 2·correct / (support + predicted). A
    class without an image has neither recall nor F1.
    """

    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


def compute_class_metrics(evaluation: Evaluation) -> list[ClassMetrics]:
    """The metrics of every class, in the network's order.

    >>> evaluation = Evaluation(3, 0.7, 100 / 3, 0.0, (2, 1), ((1, 1), (0, 1)))
    >>> [(metrics.precision, metrics.recall) for metrics in compute_class_metrics(evaluation)]
    [(1.0, 0.5), (0.5, 1.0)]
    """
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
    """The mean over the classes that have a value, each with the same weight; None where none has.

    >>> macro_mean([1.0, None, 0.5])
    0.75
    """
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None


def wilson_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a rate of which `count` in `total` trials is a sample (Wilson 1927).

    It inverts the score test. Unlike count/total ± 2 standard errors it stays within 0 … 1, and has a width
    where the count is 0. Source: `scipy.stats.binomtest`.

    >>> [round(bound, 3) for bound in wilson_interval(0, 100)]
    [0.0, 0.037]
    """
    from scipy import stats

    found = stats.binomtest(count, total).proportion_ci(level, "wilson")
    return float(found.low), float(found.high)
