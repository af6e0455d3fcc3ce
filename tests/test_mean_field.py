"""Theory of initialisation: known laws, and networks wide enough to follow it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kilolayer.measure.initialisation import Propagation, measure_propagation
from kilolayer.networks import Network, Stage, Stem, build, describe
from kilolayer.theory.mean_field import MeanFieldPrediction, predict_propagation
from kilolayer.theory.population_dynamics import normal_quantiles
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    BOTTLENECK,
    FULL_PREACT,
    Aggregated,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
    ZeroPad,
)

PREACT = replace(BASIC, arrangement=FULL_PREACT)
PLAIN = replace(BASIC, h=Zero())


def row(unit: Unit, units: int, width: int = 16, side: int = 32) -> Network:
    """Units of one shape, on images so large that their edges hardly count."""
    return Network(Stem(width), (Stage(units, width),), unit, num_classes=4, image_size=side)


def growth(prediction: MeanFieldPrediction, first: int, last: int) -> float:
    return prediction.gradient[first] / prediction.gradient[last]


def test_the_ensemble_has_the_moments_that_bn_and_relu_make_use_of() -> None:
    for count in (8, 16, 32, 128):
        values = normal_quantiles(count)
        assert values.var() == pytest.approx(1)
        assert abs(values).mean() == pytest.approx(math.sqrt(2 / math.pi))


def test_a_preactivation_trunk_grows_by_one_with_every_unit() -> None:
    """BN gives F a second moment of ½·2, and x_{l+1} = x_l + F: E[x_l²] = E[x_0²] + l."""
    signal = predict_propagation(row(PREACT, 20, side=128)).signal
    assert [later - signal[0] for later in signal] == pytest.approx(list(range(21)), rel=0.03)


def test_an_original_trunk_is_a_random_walk_reflected_at_zero() -> None:
    """x' = max(0, x + ξ), ξ of variance 1, tends to |N(0, l)|: E[x²] ≈ l, (E x)² ≈ 2l/π."""
    prediction = predict_propagation(row(BASIC, 150))
    assert prediction.signal[150] - prediction.signal[50] == pytest.approx(100, rel=0.1)
    assert prediction.common[150] == pytest.approx(2 / math.pi, abs=0.04)


def test_a_plain_nets_gradient_grows_by_1_21_with_every_layer() -> None:
    """BN before ReLU multiplies a gradient by √(π/(π−1)) per layer (two to a unit), whatever the weights."""
    per_layer = growth(predict_propagation(row(PLAIN, 10, side=128)), 0, 10) ** (1 / 20)
    assert per_layer == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.02)


def test_a_preactivation_gradient_grows_only_as_a_power_of_depth() -> None:
    """Its square by 1 + (π/(π−1))²/l per unit, since BN divides by a trunk that grows: ≈ 1/l for the norm."""
    prediction = predict_propagation(row(PREACT, 200))
    exponent = math.log(growth(prediction, 25, 100)) / math.log(100 / 25)
    assert exponent == pytest.approx((math.pi / (math.pi - 1)) ** 2 / 2, rel=0.1)
    plain = predict_propagation(row(PLAIN, 200))
    assert growth(plain, 25, 100) > 1e6 * growth(prediction, 25, 100)


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_scaled_shortcuts_leave_their_product(factor: float) -> None:
    """P2, Eq. 8: 0.9 a hundred times over leaves 2.66e-5."""
    direct = predict_propagation(row(replace(PREACT, h=Scaled(factor)), 100)).direct
    assert direct[0] == pytest.approx(factor**100, rel=1e-9)


def test_relu_after_the_addition_lets_less_and_less_pass() -> None:
    """0.5 a unit, and of every second number or more the sign: below the product, and never lost."""
    direct = predict_propagation(row(replace(BASIC, h=Scaled(0.5)), 100)).direct
    assert 0.5**160 < direct[0] < 0.5**115


def test_nothing_passes_a_plain_nets_shortcuts() -> None:
    assert predict_propagation(row(PLAIN, 3)).direct == (0, 0, 0, 1)


@pytest.mark.parametrize("gate", [ShortcutGate, ExclusiveGate])
def test_gates_scale_the_shortcut_by_one_minus_sigma_of_their_bias(gate: type) -> None:
    """As long as the signal is small beside the bias: it grows with every unit, and so does W_g x."""
    left = predict_propagation(row(replace(PREACT, h=gate(-4.0)), 2)).direct[0]
    assert left == pytest.approx((1 - 1 / (1 + math.exp(4))) ** 2, rel=0.05)


def measured(network: Network, batch: int = 32, seed: int = 0) -> Propagation:
    torch.manual_seed(seed)
    model = build(network)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, network.image_size, network.image_size, generator=generator)
    return measure_propagation(model, x, torch.arange(batch) % network.num_classes)


UNITS = {
    **{name: replace(BASIC, arrangement=arrangement) for name, arrangement in ARRANGEMENTS.items()},
    "plain": PLAIN,
    "scaled": replace(BASIC, h=Scaled(0.5, 0.5)),
    "exclusive gate": replace(BASIC, h=ExclusiveGate(-1.0)),
    "shortcut gate": replace(PREACT, h=ShortcutGate(-2.0)),
    "1×1": replace(BASIC, h=Projection()),
    "dropout": replace(BASIC, h=Dropout(0.1)),
    "bottleneck": replace(BOTTLENECK, branch=replace(BOTTLENECK.branch), arrangement=FULL_PREACT),
    "aggregated": Unit(Aggregated(4, 16), downsample=Projection()),
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_wide_networks_follow_the_theory(unit: Unit) -> None:
    """Every arrangement and shortcut, across a change of shape: signal within a seventh, gradient a fifth."""
    width = 16 if unit.branch.layers == 3 else 32
    network = Network(
        Stem(width), (Stage(3, width), Stage(2, 2 * width, stride=2)), unit, num_classes=4, image_size=16
    )
    found, said = measured(network), predict_propagation(network)
    assert found.signal == pytest.approx(said.signal, rel=0.15)
    assert found.gradient == pytest.approx(said.gradient, rel=0.2)
    # A mean over no more channels than there are, squared: one network differs more from the next.
    assert found.common == pytest.approx(said.common, abs=0.15)


def test_zero_padding_thins_the_signal_at_the_edges() -> None:
    """Without BN nothing makes up for it: at 4×4 pixels 31 % of what a 3×3 convolution reads are zeros."""
    plain = replace(PLAIN, arrangement=replace(PLAIN.arrangement, between=("ReLU",), after=(), f=("ReLU",)))
    small, large = (predict_propagation(row(plain, 3, side=side)).signal[-1] for side in (4, 128))
    assert large == pytest.approx(0.5, rel=0.05)
    assert small < 0.2 * large


def test_it_is_the_same_every_time_and_nearly_so_with_other_draws() -> None:
    network = describe("resnet56_cifar")
    assert predict_propagation(network) == predict_propagation(network)
    assert predict_propagation(network, seed=1).gradient[0] == pytest.approx(
        predict_propagation(network).gradient[0], rel=0.1
    )


def test_squares_that_no_number_can_hold_do_not_overflow() -> None:
    """Even of 4×4 pixels the gradient's square grows by 1.8 a unit: beyond 1e308 after 1,300 of them."""
    deep = predict_propagation(row(PLAIN, 1300, width=4, side=4))
    assert deep.gradient[0] > 1e155
    assert all(map(math.isfinite, deep.gradient))


def test_option_a_without_its_channels_is_half_of_the_trunk() -> None:
    """Padded channels begin at 0: behind the change of shape E[x²] is the mean of both halves."""
    network = Network(
        Stem(16), (Stage(8, 16), Stage(1, 32, stride=2)), replace(PREACT, downsample=ZeroPad()), image_size=64
    )
    signal = predict_propagation(network).signal
    assert signal[9] == pytest.approx(signal[8] / 2 + 1, rel=0.05)
