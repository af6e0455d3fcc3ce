"""The rules of mean-field theory, number by number, where a whole network's figures hardly show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from kilolayer.measure.path_gradients import PathGradients
from kilolayer.networks import Network, Stage, Stem, build, describe
from kilolayer.theory import mean_field
from kilolayer.theory.mean_field import predict_propagation
from kilolayer.theory.path_statistics import predict_path_norms
from kilolayer.units import ARRANGEMENTS, BASIC, ExclusiveGate, Scaled, ShortcutGate, Zero


@pytest.mark.parametrize("bias", [-6.0, 0.0, 2.0])
@pytest.mark.parametrize("kind", [ExclusiveGate, ShortcutGate])
def test_a_gate_s_slope_is_the_derivative_of_the_sum(
    kind: type[ExclusiveGate], bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dy/dz of y = (1−g)·h + g·F, or (1−g)·h + F, with g = σ(z + b_g), by autograd: size and sign."""
    made: list[tuple[Any, ...]] = []

    class Spied(mean_field._Gate):
        def __init__(self, layout: Any, x: Any, h: Any, F: Any, dynamics: Any) -> None:
            state = dynamics.random.bit_generator.state
            z = dynamics.run(layout.g, x)[0]
            dynamics.random.bit_generator.state = state  # the gate draws the same z
            super().__init__(layout, x, h, F, dynamics)
            made.append((self, z.values, h.values, F.values))

    monkeypatch.setattr(mean_field, "_Gate", Spied)
    predict_propagation(Network(Stem(8), (Stage(2, 8),), replace(BASIC, h=kind(bias)), image_size=8))
    assert len(made) >= 2
    for gate, z_values, h_values, F_values in made:
        z, h, F = torch.tensor(z_values, requires_grad=True), torch.tensor(h_values), torch.tensor(F_values)
        g = torch.sigmoid(z + bias)
        (slope,) = torch.autograd.grad(((1 - g) * h + F * (g if kind is ExclusiveGate else 1)).sum(), z)
        torch.testing.assert_close(torch.as_tensor(gate.shortcut_factor), (1 - g).detach())
        torch.testing.assert_close(torch.as_tensor(gate._slope), slope)
        assert abs(slope).max() > 0


@pytest.mark.parametrize("name", ["original", "relu_before_addition", "full_preactivation"])
@pytest.mark.parametrize("kind", [ExclusiveGate, ShortcutGate])
def test_a_gate_s_derivative_counts_in_the_gradient(
    kind: type[ExclusiveGate], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At b_g = 0 the gate's own term is 5 to 15 % of the gradient after four units."""
    unit = replace(BASIC, arrangement=ARRANGEMENTS[name], h=kind(0.0))
    network = Network(Stem(16), (Stage(4, 16),), unit, image_size=8)
    whole = predict_propagation(network).gradient[0]
    back = mean_field._Gate.back
    monkeypatch.setattr(mean_field._Gate, "back", lambda self, gradient: _nothing(back(self, gradient)))
    assert predict_propagation(network).gradient[0] < 0.97 * whole


def _nothing(population: Any) -> Any:
    return replace(population, values=population.values * 0)


def test_the_stem_s_pool_is_that_of_images_smooth_over_four_pixels() -> None:
    """Of a window's 9 positions some 4 are independent: E[x_0²] is 1.6, on white noise (9 of 9) it is 2.5."""
    network = replace(describe("resnet18"), image_size=64)
    torch.manual_seed(1)
    stem, measured = build(network).stem, {}
    for pixels in (1, 4):
        x = functional.interpolate(torch.randn(8, 3, 64 // pixels, 64 // pixels), size=64, mode="bilinear")
        with torch.no_grad():
            measured[pixels] = float(stem((x - x.mean()) / x.std()).square().mean())
    predicted = predict_propagation(network).signal[0]
    assert predicted == pytest.approx(measured[4], rel=0.15)
    assert predicted < 0.75 * measured[1]


def test_the_mean_length_is_weighted_by_squares() -> None:
    """Lengths 1 and 2 with norms 2 and 1: (1·4 + 2·1)/5; unsquared it would be 4/3."""
    paths = PathGradients(1, (0.0, 0.5, 0.5), together=(2.0, 1.0), rest=0.0, alone=())
    assert paths.mean_length == pytest.approx(6 / 5)


def test_path_norms_are_norms_and_no_squares() -> None:
    """Squares of the norms add to 1, and the path of no branch carries the direct term."""
    unit = replace(BASIC, arrangement=ARRANGEMENTS["full_preactivation"])
    network = Network(Stem(16), (Stage(3, 16),), unit, image_size=16)
    norms = predict_path_norms(network)
    assert sum(norm**2 for norm in norms) == pytest.approx(1)
    shares = predict_propagation(network)
    assert norms[0] == pytest.approx(shares.direct[0] / shares.gradient[0], rel=0.1)


@pytest.mark.parametrize(("h", "lengths"), [(Zero(), 1), (Scaled(0.5), 4)])
def test_a_plain_net_has_one_length_in_theory(h: Any, lengths: int) -> None:
    network = Network(Stem(8), (Stage(3, 8),), replace(BASIC, h=h), image_size=8)
    assert len(predict_path_norms(network)) == lengths
