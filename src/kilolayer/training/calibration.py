"""Calibration: whether answers with probability p are right in a share p of the cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
NUM_RESAMPLES = 200


@dataclass(frozen=True)
class ConfidenceBin:
    """The images whose answer has a probability in one bin: their number, mean probability and accuracy.

    above: the bin's probabilities are above it.
    """

    above: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error of a network's answers, in 0 … 1, with its bins.

    error = Σ_b (n_b / N) · |mean probability − accuracy| over 15 bins b of equal width (Guo et al. 2017).
    chance: the 95th percentile of the error of a perfectly calibrated network on a sample of this size, since
        the error of a finite sample is above 0.
    """

    error: float
    chance: float
    bins: tuple[ConfidenceBin, ...]


def measure_calibration(confidence: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> Calibration:
    """The calibration of N answers.

    confidence: (N,), the probability of the likeliest class.
    is_correct: (N,), whether it was the image's class.

    >>> measure_calibration(np.array([0.9, 0.9]), np.array([True, False])).error
    0.4
    """
    bin_index = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bin_index, minlength=NUM_BINS)
    sums = np.bincount(bin_index, confidence, NUM_BINS)

    def error(answers: NDArray[np.bool_]) -> float:
        return float(np.abs(sums - np.bincount(bin_index, answers, NUM_BINS)).sum() / len(answers))

    # Answers of a perfectly calibrated network; the fixed seed makes the figure repeat.
    draw = np.random.default_rng(0)
    errors = [error(draw.random(len(confidence)) < confidence) for _ in range(NUM_RESAMPLES)]
    hits = np.bincount(bin_index, is_correct, NUM_BINS)
    bins = (
        ConfidenceBin(
            i / NUM_BINS, int(n), float(sums[i] / n) if n else None, float(hits[i] / n) if n else None
        )
        for i, n in enumerate(counts)
    )
    return Calibration(error(is_correct), float(np.quantile(errors, 0.95)), tuple(bins))
