"""Precision, recall, F1, the interval of an error rate, and calibration, against their definitions."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from kilolayer.training import Evaluation
from kilolayer.training.calibration import NUM_BINS, measure_calibration
from kilolayer.training.class_metrics import compute_class_metrics, macro_mean, wilson_interval


def of(confusion: list[list[int]]) -> Evaluation:
    rows = tuple(map(tuple, confusion))
    return Evaluation(sum(map(sum, rows)), 0.0, 0.0, 0.0, tuple(map(sum, rows)), rows)


def test_figures_of_the_classes() -> None:
    first, second, third, fourth = compute_class_metrics(
        of([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    )
    assert (first.support, first.predicted) == (4, 6)
    assert (first.precision, first.recall, first.f1) == (3 / 6, 3 / 4, 6 / 10)
    assert (second.precision, second.recall, second.f1) == (4 / 6, 4 / 6, 8 / 12)
    # No image of it, one taken for it; and images of which none is recognised.
    assert (third.precision, third.recall, third.f1) == (0, None, None)
    assert (fourth.precision, fourth.recall, fourth.f1) == (None, 0, 0)
    assert macro_mean([1.0, None, 0.5]) == 0.75
    assert macro_mean([None]) is None


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # Of Newcombe (1998), Table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals(count: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(total - count, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("total", [1, 2, 7, 10**6])
def test_an_interval_stays_within_bounds(total: int) -> None:
    assert wilson_interval(0, total)[0] == 0
    assert wilson_interval(total, total)[1] == 1
    assert wilson_interval(0, total)[1] < wilson_interval(0, total, level=0.99)[1] < 1


def test_the_expected_calibration_error_by_its_definition() -> None:
    random = np.random.default_rng(0)
    confidence, right = random.random(500), random.random(500) < 0.5
    edges = np.linspace(0, 1, NUM_BINS + 1)
    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert measure_calibration(confidence, right).error == pytest.approx(expected)


def test_exact_probabilities_are_within_chance() -> None:
    random = np.random.default_rng(1)
    confidence = random.uniform(0.3, 1, 20_000)
    exact = measure_calibration(confidence, random.random(20_000) < confidence)
    assert 0 < exact.error < exact.chance < 0.02
    bold = measure_calibration(confidence, random.random(20_000) < confidence - 0.2)
    assert bold.error == pytest.approx(0.2, abs=0.02)
    assert bold.error > bold.chance


@pytest.mark.parametrize("value", [0.0, 1e-9, 1.0])
def test_one_image_at_the_ends_of_the_range(value: float) -> None:
    one = measure_calibration(np.array([value]), np.array([True]))
    assert one.error == pytest.approx(1 - value)
    assert sum(each.images for each in one.bins) == 1


def test_the_keys_of_a_bin_stay_as_programs_read_them() -> None:
    bins = measure_calibration(np.array([0.9]), np.array([True])).bins
    assert list(asdict(bins[0])) == ["above", "images", "confidence", "accuracy"]
