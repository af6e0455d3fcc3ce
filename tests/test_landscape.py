"""Loss slices: scaled filter by filter, and no trace left in the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from foreign_networks import original
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.landscape import filter_normalised_directions, measure_landscape
from kilolayer.units import BASIC, FULL_PREACT, Zero
from kilolayer.values import to_json
from subjects import batch, foreign, subject, two_stages

PREACT = replace(BASIC, arrangement=FULL_PREACT)


def test_directions_are_as_long_as_the_weights_filter_by_filter() -> None:
    """Li et al. 2018, Sec. 4: d_ij ← d_ij / ‖d_ij‖ · ‖θ_ij‖; biases and BN are left out."""
    model = subject(two_stages(PREACT)).model
    found = filter_normalised_directions(model, 0)
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1}
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name].flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1))


@pytest.mark.parametrize("unit", [PREACT, replace(BASIC, h=Zero())])
def test_every_point_is_the_loss_of_the_moved_network(unit: object) -> None:
    one = subject(two_stages(unit))
    found = measure_landscape(one, line=5, grid=3)
    first, second = filter_normalised_directions(one.model, 0), filter_normalised_directions(one.model, 1)
    for i, alpha in enumerate(found.ticks):
        for j, beta in enumerate(found.ticks):
            moved = one.build_fresh(0)
            with torch.no_grad():
                for name, weight in moved.named_parameters():
                    if name in first:
                        weight += alpha * first[name] + beta * second[name]
            expected = functional.cross_entropy(moved.train()(one.x), one.labels).item()
            assert found.grid[i][j] == pytest.approx(expected, rel=1e-12)
    assert found.line[2] == found.centre == found.grid[1][1]
    assert found.steps == (-1, -0.5, 0, 0.5, 1)


@pytest.mark.parametrize("normalisation", ["batch", "running"])
def test_the_network_is_left_bit_for_bit_as_it_was(normalisation: str) -> None:
    one = subject(two_stages(PREACT))
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    pointers = [weight.data_ptr() for weight in one.model.parameters()]
    measure_landscape(one, line=3, grid=3, normalisation=normalisation)
    assert all(torch.equal(before[key], value) for key, value in one.model.state_dict().items())
    assert [weight.data_ptr() for weight in one.model.parameters()] == pointers
    assert all(weight.grad is None for weight in one.model.parameters())
    assert one.model.training


def test_a_filters_scale_before_bn_does_not_matter() -> None:
    """The reason for scaled directions, and for BN with the batch's statistics: with running ones it does."""
    small, large = subject(two_stages(BASIC)), subject(two_stages(BASIC))
    with torch.no_grad():
        large.model.get_submodule("stage1.0.F.conv1").weight *= 3  # type: ignore[operator]
    with_batch = [measure_landscape(one, line=5, grid=1) for one in (small, large)]
    assert with_batch[0].line == pytest.approx(with_batch[1].line, rel=1e-3)
    running = [measure_landscape(one, line=5, grid=1, normalisation="running") for one in (small, large)]
    assert running[0].line != pytest.approx(running[1].line, rel=1e-2)


class Quadratic(nn.Module):
    """Its cross-entropy for label 0 of 4 is known: logits are (w·1, 0, 0, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.weight.expand(len(x), 1)
        return torch.cat([first, first.new_zeros(len(x), 3)], 1)


def test_slope_and_curvature_are_the_derivatives() -> None:
    model = Quadratic().double()
    x, _ = batch(4)
    one = AnalysisInput(
        "q", model, x, torch.zeros(4, dtype=torch.long), lambda seed: model, lambda n: batch(4)
    )
    found = measure_landscape(one, line=3, grid=1)
    step = float(filter_normalised_directions(model, 0)["weight"])
    p = float(torch.softmax(torch.tensor([0.5, 0, 0, 0], dtype=torch.float64), 0)[0])
    assert found.slope == pytest.approx((p - 1) * step, rel=1e-3)
    assert found.curvature == pytest.approx(p * (1 - p) * step**2, rel=1e-3)


def test_directions_follow_the_seed() -> None:
    one = subject(two_stages(PREACT))
    first, again, other = (measure_landscape(one, seed=seed, line=3, grid=1) for seed in (0, 0, 1))
    assert first == again
    assert first.line != other.line


def test_other_peoples_modules_and_json() -> None:
    found = measure_landscape(foreign(original(), "layer?.*"), line=3, grid=3)
    assert all(value is not None for value in found.line)
    assert len(found.charts()) == 2
    assert '"curvature"' in to_json(found)
