"""The numbers at which a sentence changes its word: one just below and one just above, for every one.

A threshold that no test stands close to can be moved by anybody.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kilolayer.measure.decomposition import measure_decomposition
from kilolayer.measure.gradient import measure_gradient
from kilolayer.measure.lanczos import lanczos_singular_values
from kilolayer.measure.overfit_probe import OverfitProbe
from kilolayer.measure.shortcut_factors import measure_shortcut_factors
from kilolayer.networks import Network, Stage, Stem, build
from kilolayer.report.run_finding import _learned
from kilolayer.training.calibration import measure_calibration
from kilolayer.training.class_metrics import wilson_interval
from kilolayer.units import BASIC, FULL_PREACT, Scaled


@pytest.mark.parametrize(("share", "learns"), [(0.949, True), (0.951, False), (0.5, True), (1.0, False)])
def test_a_probe_learns_below_95_percent_of_the_entropy(share: float, learns: bool) -> None:
    assert OverfitProbe((9.0, *[share * math.log(10)] * 3), math.log(10)).learns == learns


def test_a_probe_is_judged_by_its_last_three_losses() -> None:
    assert OverfitProbe((1.0, 2.0, 3.0, 7.0), 9.0).final_loss == 4.0


@pytest.mark.parametrize("chance", [90.0, 99.0])
@pytest.mark.parametrize(
    ("share", "said"),
    [(0.951, "it has learned nothing"), (0.949, "it has learned little"), (0.501, "it has learned little"),
     (0.499, "it has learned")],
)  # fmt: skip
def test_a_run_has_learned_by_its_share_of_guessing(share: float, said: str, chance: float) -> None:
    assert _learned(share * chance, chance) == said


def test_an_interval_is_of_95_percent_unless_asked() -> None:
    """1.96 standard errors to each side."""
    assert wilson_interval(50, 100) == wilson_interval(50, 100, level=0.95)
    low, high = wilson_interval(5000, 10_000)
    assert high - low == pytest.approx(2 * 1.96 * 0.005, rel=1e-3)


def test_five_of_a_hundred_perfectly_calibrated_networks_lie_above_chance() -> None:
    random = np.random.default_rng(1)
    confidence = random.uniform(0.5, 1.0, 400)
    above = []
    for _ in range(200):
        found = measure_calibration(confidence, random.random(400) < confidence)
        above.append(found.error > found.chance)
    assert 0.01 <= np.mean(above) <= 0.12


def stage(factor: float, units: int = 4) -> Any:
    unit = replace(BASIC, arrangement=FULL_PREACT, h=Scaled(factor))
    torch.manual_seed(0)
    return build(Network(Stem(8), (Stage(units, 8),), unit, num_classes=4, image_size=8))


X, LABELS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
UNCHANGED, SCALED = "passes unchanged", "is scaled on the way"
VANISHES, EXPLODES = "all but vanishes", "explodes"


@pytest.mark.parametrize(
    ("product", "said"),
    [(1.0, UNCHANGED), (1.0005, UNCHANGED), (0.9995, UNCHANGED), (1.002, SCALED), (0.998, SCALED),
     (0.012, SCALED), (0.0085, VANISHES), (85.0, SCALED), (115.0, EXPLODES)],
)  # fmt: skip
def test_the_product_of_shortcuts_in_words(product: float, said: str) -> None:
    found = measure_shortcut_factors(stage(product ** (1 / 4)), X)
    assert found.product == pytest.approx(product, rel=1e-4)
    assert said in found.finding()


@pytest.mark.parametrize(
    ("product", "lossless"), [(1.0, True), (1.0005, True), (0.9995, True), (0.998, False)]
)
def test_the_direct_term_has_lost_nothing_but_rounding(product: float, lossless: bool) -> None:
    found = measure_gradient(stage(product ** (1 / 4)), X, LABELS)
    assert ("the whole gradient of the stage's end" in found.finding()) == lossless


@pytest.mark.parametrize(("residual", "exact"), [(0.9e-4, True), (1.1e-4, False), (1e-6, True), (0.5, False)])
def test_a_decomposition_holds_up_to_rounding(residual: float, exact: bool) -> None:
    found = measure_decomposition(stage(1.0), X)
    found = replace(found, stages=tuple(replace(one, residual=residual) for one in found.stages))
    assert found.finding().startswith("Eq. 4 holds") == exact
    assert ("no prediction" not in found.charts()[0].note) == exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("factor", "steps"), [(3, 1), (30, 2)])
def test_lanczos_stops_at_ten_roundings(dtype: torch.dtype, factor: float, steps: int) -> None:
    """A second singular value of 3 and of 30 roundings beside the first, 1."""
    small = factor * torch.finfo(dtype).eps
    J = torch.diag(torch.tensor([1.0, 1.0 - small * 2], dtype=dtype))
    start = torch.tensor([1.0, 1.0], dtype=dtype)
    values, weights = lanczos_singular_values(J.mv, J.T.mv, start, 2)
    assert len(values) == steps
    assert sum(weights) == pytest.approx(1)
