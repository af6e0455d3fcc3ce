"""The rules of mean-field theory, number by number, where a whole network's figures hardly show them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kilolayer.measure.path_gradients import PathGradients
from kilolayer.networks import Network, Stage, Stem, build, describe
from kilolayer.theory import mean_field
from kilolayer.theory.mean_field import MeanFieldTheory, predict_propagation
from kilolayer.theory.path_statistics import IMAGES, predict_path_norms
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


def test_path_norms_are_the_norms_of_every_path_of_the_draw() -> None:
    """All 2³ paths gone one by one: those of one length are summed, and norms, not squares, are told."""
    unit = replace(BASIC, arrangement=ARRANGEMENTS["full_preactivation"])
    network = Network(Stem(16), (Stage(3, 16),), unit, image_size=16)
    norms = predict_path_norms(network)
    assert sum(norm**2 for norm in norms) == pytest.approx(1)
    theory = MeanFieldTheory(network, batch_size=IMAGES)
    by_length = [np.zeros_like(theory.signals[0].values) for _ in norms]
    for branches in product((False, True), repeat=3):
        gradient = theory.final_gradient
        for back, by_branch in zip(reversed(theory.unit_backwards), branches, strict=True):
            gradient = back.branch(gradient) if by_branch else back.shortcut(gradient)
        by_length[sum(branches)] += gradient.values
    lengths = [float(np.linalg.norm(values)) for values in by_length]
    whole = math.hypot(*lengths)
    assert norms == pytest.approx([length / whole for length in lengths], rel=1e-4)  # float32


@pytest.mark.parametrize(("h", "lengths"), [(Zero(), 1), (Scaled(0.5), 4)])
def test_a_plain_net_has_one_length_in_theory(h: Any, lengths: int) -> None:
    network = Network(Stem(8), (Stage(3, 8),), replace(BASIC, h=h), image_size=8)
    assert len(predict_path_norms(network)) == lengths
