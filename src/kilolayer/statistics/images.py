"""Rows compared image by image, and the spread between trainings told apart from that between test sets.

`wrong` is a table of flags (trainings, images): whether the network of this training is wrong on this image.
A test error varies for two reasons: another training is another network, and another test set has other
images. Runs on one test set show the first only, and mixed with the second: even networks that are equally
good are wrong on different images of a set that is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kilolayer.errors import InputError

Flags = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SpreadComponents:
    """Standard deviations of one training's test error, in percentage points, by where they come from."""

    trainings: int
    images: int
    error: float
    """The mean error in percent."""
    training: float
    """Between trainings, of the error on images without end."""
    test_set: float
    """Between test sets of this size, of one network's error."""
    seen: float
    """Between trainings on this one test set: what the runs' own spread estimates."""


def spread_components(wrong: Flags) -> SpreadComponents:
    """Tells apart the spread between trainings and between test sets.

    The flags are y_si = μ + a_s + b_i + e_si, with trainings s and images i drawn independently. With the
    mean squares MS of trainings, images and the rest (two-way analysis of variance):

        σ_a² = (MS_a − MS_e) / N,   σ_b² = (MS_b − MS_e) / S,   σ_e² = MS_e

    | spread | estimate |
    |---|---|
    | training | σ_a |
    | test set of N images | √((σ_b² + σ_e²) / N), about √(p(1 − p)/N) |
    | seen between runs on one test set | √(σ_a² + σ_e²/N) |

    These estimates are unbiased for flags too, because they use second moments only; a negative estimate is
    shown as 0. With few trainings σ_a is uncertain: its relative error is about 1/√(2(S − 1)).

    Raises:
        InputError: for fewer than two trainings or images.

    Source: Searle, Casella and McCulloch 1992, Ch. 4; Jordan 2023 (that runs differ more on a test set than
    on the distribution).

    >>> draws = np.random.default_rng(0).random((50, 1000))  # networks of the same quality
    >>> found = spread_components(draws < 0.06)
    >>> round(found.training, 1), round(found.test_set, 1), round(found.seen, 1)
    (0.1, 0.8, 0.8)
    """
    y = _flags(wrong)
    trainings, images = y.shape
    of_trainings, of_images, residual = _mean_squares(y)
    training = max(0.0, (of_trainings - residual) / images)
    image = max(0.0, (of_images - residual) / trainings)
    return SpreadComponents(
        trainings,
        images,
        100 * float(y.mean()),
        training=100 * math.sqrt(training),
        test_set=100 * math.sqrt((image + residual) / images),
        seen=100 * math.sqrt(training + residual / images),
    )


@dataclass(frozen=True)
class McNemar:
    """Two networks on the same images: how many only one of them has wrong."""

    only_a: int
    """Images that a has wrong and b has right."""
    only_b: int
    p: float
    """Of the hypothesis that both counts have the same expectation, two-sided and exact."""


def mcnemar_test(wrong_a: Flags, wrong_b: Flags) -> McNemar:
    """Compares two trained networks image by image; says nothing of other trainings of the same rows.

        p = P(Binomial(n_a + n_b, ½) at least as far from the middle as n_a)

    Args:
        wrong_a: (images,) whether a is wrong on the image.
        wrong_b: (images,) the same of b.

    Raises:
        InputError: for different numbers of images.

    Source: McNemar 1947; `scipy.stats.binomtest`.

    >>> mcnemar_test(np.array([1, 1, 1, 1, 1, 1, 0]) > 0, np.array([0, 0, 0, 0, 0, 0, 0]) > 0).p
    0.03125
    """
    from scipy import stats

    a, b = np.asarray(wrong_a, bool), np.asarray(wrong_b, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"flags of shapes {a.shape} and {b.shape}; allowed: one for each image, in both")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)


@dataclass(frozen=True)
class ImageComparison:
    """Rows a and b over paired trainings and the same images."""

    trainings: int
    images: int
    difference: float
    """The mean of b − a, in percentage points."""
    low: float
    """The lower end of its 95 % interval, for other trainings and other images."""
    high: float
    """The upper end."""
    p: float
    """Of no difference, two-sided."""
    from_trainings: float
    """The difference's standard error from the trainings' number, in percentage points."""
    from_images: float
    """Its standard error from the test set's size."""


def compare_images(wrong_a: Flags, wrong_b: Flags, *, level: float = 0.05) -> ImageComparison:
    """Compares two rows image by image, for other trainings on other images of the same kinds.

    The differences of flags d_si = b_si − a_si have a part of the training, one of the image, and a rest. The
    mean's variance is

        Var = σ_s²/S + σ_i²/N + σ_e²/(S·N),   estimated by (MS_s + MS_i − MS_e) / (S·N)

    and its interval is that of Student's t with S − 1 degrees of freedom. (Satterthwaite's number is larger
    where images weigh more than trainings; S − 1 is cautious.) It assumes that seeds pair the rows, that
    trainings and images are drawn independently, and that the trainings' parts are about normal. The paired
    tests over seeds (`paired_difference`) speak of other trainings on *these* images; McNemar's test of
    *these* trainings on other images; this one of both, so its interval is the widest.

    Args:
        wrong_a: (trainings, images) whether row a is wrong; one training for each seed.
        wrong_b: (trainings, images) the same of row b, seeds and images in the same order.
        level: 1 − the interval's coverage.

    Raises:
        InputError: for shapes that differ, and fewer than two trainings or images.

    Source: Clark 1973 (two random factors); Searle, Casella and McCulloch 1992.

    >>> draws = np.random.default_rng(0).random((2, 5, 2000))
    >>> found = compare_images(draws[0] < 0.06, draws[1] < 0.12)
    >>> 5 < found.difference < 7, found.p < 0.001, found.low < found.difference < found.high
    (True, True, True)
    """
    from scipy import stats

    a, b = _flags(wrong_a), _flags(wrong_b)
    if a.shape != b.shape:
        raise InputError(f"flags of shapes {a.shape} and {b.shape}; allowed: the same seeds and images")
    d = b - a
    trainings, images = d.shape
    of_trainings, of_images, residual = _mean_squares(d)
    count = trainings * images
    by_training = max(0.0, of_trainings - residual) / count
    by_image = max(0.0, of_images - residual) / count
    error = math.sqrt(by_training + by_image + residual / count)
    mean, t = float(d.mean()), float(stats.t.isf(level / 2, trainings - 1))
    p = 1.0 if error == 0 else 2 * float(stats.t.sf(abs(mean) / error, trainings - 1))
    return ImageComparison(
        trainings,
        images,
        100 * mean,
        100 * (mean - t * error),
        100 * (mean + t * error),
        p,
        100 * math.sqrt(by_training),
        100 * math.sqrt(by_image + residual / count),
    )


def _flags(wrong: Flags) -> FloatArray:
    flags = np.asarray(wrong)
    if flags.ndim != 2 or min(flags.shape) < 2:
        raise InputError(f"flags of shape {flags.shape}; allowed: (trainings, images), at least 2 of each")
    return flags.astype(np.float64)


def _mean_squares(y: FloatArray) -> tuple[float, float, float]:
    """The mean squares of rows, of columns, and of what is left."""
    rows, columns = y.shape
    of_row, of_column = y.mean(axis=1) - y.mean(), y.mean(axis=0) - y.mean()
    residual = y - y.mean() - of_row[:, None] - of_column
    return (
        columns * float((of_row**2).sum()) / (rows - 1),
        rows * float((of_column**2).sum()) / (columns - 1),
        float((residual**2).sum()) / ((rows - 1) * (columns - 1)),
    )
