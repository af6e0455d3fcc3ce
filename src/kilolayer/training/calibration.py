"""Whether a network's probabilities are right as often as they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
NUM_RESAMPLES = 200


@dataclass(frozen=True)
class ConfidenceBin:
    """The images whose answer has a probability above `above`: their number and two means over them."""

    lower_edge: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error of the likeliest classes, in 0 … 1, and what it is made of.

    error = Σ (images of a bin / all) · |mean probability − share of right answers|, over 15 bins of equal
    width (Guo et al. 2017). It is above 0 for every finite sample: `chance` is what 95 % of samples of this
    size stay below if each answer is right with exactly its probability.
    """

    error: float
    chance: float
    bins: tuple[ConfidenceBin, ...]


def measure_calibration(confidence: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> Calibration:
    """Of N probabilities of the likeliest class, and whether each was the image's class."""
    bin_index = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bin_index, minlength=NUM_BINS)
    sums = np.bincount(bin_index, confidence, NUM_BINS)

    def error(answers: NDArray[np.bool_]) -> float:
        return float(np.abs(sums - np.bincount(bin_index, answers, NUM_BINS)).sum() / len(answers))

    # A perfectly calibrated network's answers, drawn with a fixed seed so that the figure repeats.
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
