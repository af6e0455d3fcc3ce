"""Theory of initialisation: known laws, and networks wide enough to follow it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from kilolayer.measure.initialisation import Propagation, measure_propagation
from kilolayer.networks import Network, Stage, Stem, build, cifar, describe
from kilolayer.theory.mean_field import (
    MeanFieldPrediction,
    MeanFieldTheory,
    UnitBackward,
    _run_unit,
    no_prediction_reason,
    no_rule_reason,
    predict_propagation,
)
from kilolayer.theory.population_dynamics import GRID, MeanFieldInterpreter, Population
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
from kilolayer.units.ops import BatchNorm, Conv

PREACT = replace(BASIC, arrangement=FULL_PREACT)
PLAIN = replace(BASIC, h=Zero())


def predict(network: Network, batch_size: int = 16) -> MeanFieldPrediction:
    """One draw, which a wide network needs no more than."""
    return predict_propagation(network, batch_size=batch_size, draws=1)


def mean_signal(network: Network, draws: int = 10) -> list[float]:
    """E[x_l²] over draws: one network's weights make it differ by some percent from the next one's."""
    rows = [predict_propagation(network, draws=1, batch_size=8, seed=seed).signal for seed in range(draws)]
    return [fmean(column) for column in zip(*rows, strict=True)]


def row(unit: Unit, units: int, width: int = 64, side: int = 32) -> Network:
    """Units of one shape, on images so large that their edges hardly count."""
    return Network(Stem(width), (Stage(units, width),), unit, num_classes=4, image_size=side)


def growth(prediction: MeanFieldPrediction, first: int, last: int) -> float:
    return prediction.gradient[first] / prediction.gradient[last]


def test_a_preactivation_trunk_grows_by_one_with_every_unit() -> None:
    """BN gives F a second moment of ½·2 inside of borders, and x_l and F are uncorrelated: x² grows by F².

    Over ten draws of 20 units the means of F² and of 2xF/√E[x²] have standard errors of 0.006 and 0.008, as
    their spread over the draws shows; three of them are allowed.
    """
    squares, products = [], []
    for seed in range(10):
        theory = MeanFieldTheory(row(PREACT, 20, width=32, side=128), seed, batch_size=4)
        trunk = [population.values for population in theory.signals]
        for x, out in pairwise(trunk):
            squares.append(float(np.square(out - x).mean()))
            products.append(float(2 * (x * (out - x)).mean() / np.sqrt(np.square(x).mean())))
    assert fmean(squares) == pytest.approx((1 - 2 / (3 * 128)) ** 2, abs=3 * 0.006)
    assert fmean(products) == pytest.approx(0, abs=3 * 0.008)


def test_an_original_trunk_is_a_random_walk_reflected_at_zero() -> None:
    """x' = max(0, x + ξ), ξ of variance 1, tends to |N(0, l)|: E[x²] ≈ l, (E x)² ≈ 2l/π."""
    prediction = predict(row(BASIC, 150, width=32), batch_size=8)
    assert prediction.signal[150] - prediction.signal[50] == pytest.approx(100, rel=0.1)
    assert prediction.common[150] == pytest.approx(2 / math.pi, abs=0.04)


def test_a_plain_nets_gradient_grows_by_1_21_with_every_layer() -> None:
    """BN before ReLU multiplies a gradient by √(π/(π−1)) per layer (two to a unit), whatever the weights."""
    per_layer = growth(predict(row(PLAIN, 10, side=128)), 0, 10) ** (1 / 20)
    assert per_layer == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.02)


def test_a_preactivation_gradient_grows_only_as_a_power_of_depth() -> None:
    """Its square by 1 + (π/(π−1))²/l per unit, since BN divides by a trunk that grows: ≈ 1/l for the norm."""
    prediction = predict(row(PREACT, 200, width=32), batch_size=8)
    exponent = math.log(growth(prediction, 25, 100)) / math.log(100 / 25)
    assert exponent == pytest.approx((math.pi / (math.pi - 1)) ** 2 / 2, rel=0.1)
    plain = predict(row(PLAIN, 200, width=32), batch_size=8)
    assert growth(plain, 25, 100) > 1e6 * growth(prediction, 25, 100)


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_scaled_shortcuts_leave_their_product(factor: float) -> None:
    """P2, Eq. 8: 0.9 a hundred times over leaves 2.66e-5."""
    direct = predict(row(replace(PREACT, h=Scaled(factor)), 100, width=8), batch_size=8).direct
    assert direct[0] == pytest.approx(factor**100, rel=1e-9)


def test_relu_after_the_addition_lets_less_and_less_pass() -> None:
    """0.5 a unit, and of every second number or more the sign: below the product, and never lost."""
    direct = predict(row(replace(BASIC, h=Scaled(0.5)), 100, width=16), batch_size=8).direct
    assert 0.5**160 < direct[0] < 0.5**115


def test_nothing_passes_a_plain_nets_shortcuts() -> None:
    assert predict(row(PLAIN, 3)).direct == (0, 0, 0, 1)


@pytest.mark.parametrize("gate", [ShortcutGate, ExclusiveGate])
def test_gates_scale_the_shortcut_by_one_minus_sigma_of_their_bias(gate: type) -> None:
    """As long as the signal is small beside the bias: it grows with every unit, and so does W_g x."""
    left = predict(row(replace(PREACT, h=gate(-4.0)), 2)).direct[0]
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
    found, said = [measured(network, seed=seed) for seed in range(4)], predict_propagation(network)
    assert middle(found, "signal") == pytest.approx(said.signal, rel=0.15)
    assert middle(found, "gradient") == pytest.approx(said.gradient, rel=0.2)
    # A mean over no more channels than there are, squared: one network differs more from the next.
    assert middle(found, "common") == pytest.approx(said.common, abs=0.15)


def middle(starts: list[Propagation], kind: str) -> tuple[float, ...]:
    return tuple(median(column) for column in zip(*(getattr(each, kind) for each in starts), strict=True))


@pytest.mark.parametrize("side", [4, 8, 16, 32, 128])
def test_zero_padding_thins_the_signal_at_the_edges(side: int) -> None:
    """(1 − 2/(3·side))² of what a 3×3 convolution reads is inside, on every grid."""
    grid = min(side, GRID)
    dynamics = MeanFieldInterpreter(1.0, "fan_out")
    x = Population(dynamics.draw_normal(128, 4, grid, grid), side)
    out, _ = dynamics.convolve(Conv(128, 128, 3), x)
    assert out.second_moment == pytest.approx(2 * (1 - 2 / (3 * side)) ** 2, rel=0.03)


def test_it_is_the_same_every_time_and_nearly_so_with_other_draws() -> None:
    """The logarithm of one draw's gradient spreads by 0.040 here, as ten draws show.

    The medians of five and of other five then differ by 0.040 · √(π/2) · √(2/5) = 0.03; three times that is
    allowed.
    """
    network = describe("resnet20_cifar")
    found = predict_propagation(network, draws=5)
    assert found == predict_propagation(network, draws=5)
    other = predict_propagation(network, draws=5, seed=5)
    assert other.gradient[0] != found.gradient[0]
    assert other.gradient[0] == pytest.approx(found.gradient[0], rel=0.1)


def test_the_threads_of_blas_decide_nothing_and_stay_as_they_were() -> None:
    """Products on two threads came out otherwise, and forty times as slow on two cores that are taken."""
    blas = ThreadpoolController().select(user_api="blas")
    network = cifar(8, image_size=8)
    outcomes = []
    for threads in (1, 2):
        with blas.limit(limits=threads):
            outcomes.append(predict_propagation(network, batch_size=64, draws=1))
            assert {library["num_threads"] for library in blas.info()} == {threads}
    assert outcomes[0] == outcomes[1]


def test_squares_that_no_number_can_hold_do_not_overflow() -> None:
    """Even of 4×4 pixels the gradient's square grows by 1.7 a unit: beyond 1e308 after 1,500 of them."""
    deep = predict(row(PLAIN, 1500, width=4, side=4), batch_size=4)
    assert deep.gradient[0] > 1e155
    assert all(map(math.isfinite, deep.gradient))


def test_option_a_without_its_channels_is_half_of_the_trunk() -> None:
    """Padded channels begin at 0: behind the change of shape E[x²] is the mean of both halves."""
    network = Network(
        Stem(16), (Stage(8, 16), Stage(1, 32, stride=2)), replace(PREACT, downsample=ZeroPad()), image_size=64
    )
    signal = mean_signal(network)
    assert signal[9] == pytest.approx(signal[8] / 2 + 1, rel=0.05)


# The backward maps are the exact derivative of the forward pass of the same draw.


def population(seed: int, side: int = 4, rows: int = 6, images: int = 3) -> Population:
    values = np.random.default_rng(seed).standard_normal((rows, images, side, side))
    return Population(values * np.array([0.2, 1.0, 3.0])[:, None, None], side)


DERIVED = {
    **UNITS,
    "exclusive gate, h and F": replace(PREACT, h=ExclusiveGate(0.5)),
    "scaled preact": replace(PREACT, h=Scaled(0.7, 0.5)),
}


@pytest.mark.parametrize("position", [0, 1], ids=["same shape", "changes the shape"])
@pytest.mark.parametrize("unit", DERIVED.values(), ids=DERIVED)
def test_a_units_backward_map_is_its_derivative(unit: Unit, position: int) -> None:
    """⟨g, u(x + εv) − u(x − εv)⟩ / 2ε = ⟨uᵀg, v⟩ for random g and v: through h, F, f and gate."""
    stages = (Stage(1, 8), Stage(1, 16, stride=2))
    network = Network(Stem(8), stages, unit, num_classes=2, image_size=4)
    placed = network.units()[position]
    rows = unit.branch.out_channels(8) if position else 8
    x, v = population(1, rows=rows), population(2, rows=rows)

    def run(at: Population) -> tuple[Population, UnitBackward]:
        dynamics = MeanFieldInterpreter(1.0, "fan_out", seed=3, dtype=np.float64)
        return _run_unit(placed.layout, at, dynamics)

    step = 1e-6
    (ahead, _), (behind, _), (_, back) = (
        run(Population(x.values + shift * v.values, x.side)) for shift in (step, -step, 0.0)
    )
    g = np.random.default_rng(4).standard_normal(ahead.values.shape)
    along = float((g * (ahead.values - behind.values)).sum() / (2 * step))
    gradient = back.total(Population(g, ahead.side)).values
    assert float((gradient * v.values).sum()) == pytest.approx(along, rel=1e-4)


def test_every_image_keeps_its_norm_through_convolution_and_bn() -> None:
    """BN divides by the batch's mean square: images whose squares are as 1 : 25 : 225 stay so."""
    dynamics = MeanFieldInterpreter(1.0, "fan_out", dtype=np.float64)
    x = population(0, side=8, rows=128)
    out, _ = dynamics.run((Conv(128, 128, 3), BatchNorm(128)), x)
    assert out.second_moment == pytest.approx(1, rel=1e-3)
    expected = x.image_moments / x.second_moment
    assert out.image_moments[1:] == pytest.approx(expected[1:], rel=0.1)
    assert out.image_moments[0] < 2 * expected[0]  # BN has taken the mean of a few hundred positions off


def test_gates_drive_images_apart_and_gradients_with_them() -> None:
    """Images of one norm would give 96 at b_g = −2; one that carries the trunk gives many times more."""
    network = cifar(110, replace(BASIC, h=ExclusiveGate(-2.0)), image_size=8)
    theory = MeanFieldTheory(network, batch_size=32)
    first, last = (x.image_moments for x in (theory.signals[0], theory.signals[-1]))
    assert max(first) < 2 * first.mean()
    assert max(last) > 10 * last.mean()
    assert theory.gradient_norms([unit.total for unit in theory.unit_backwards])[0] > 500


def test_a_prediction_has_the_range_of_its_draws() -> None:
    network = describe("resnet8_cifar")
    singles = [
        predict_propagation(network, draws=1, batch_size=4, seed=seed).gradient[0] for seed in (0, 1, 2)
    ]
    three = predict_propagation(network, draws=3, batch_size=4)
    assert three.gradient[0] == sorted(singles)[1]
    assert [bound[0] for bound in three.gradient_range] == [min(singles), max(singles)]


def test_dropout_on_many_shortcuts_has_no_prediction() -> None:
    few, many = (describe("resnet56_cifar", unit={"h": Dropout(p)}) for p in (0.1, 0.5))
    assert no_prediction_reason(few) is None
    assert "dropout on the shortcuts multiplies E[x²] by 1e+08" in (no_prediction_reason(many) or "")
    assert no_rule_reason(many) is None
