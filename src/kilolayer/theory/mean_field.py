"""Mean-field theory of a network at initialisation: the size of signal and gradient at every unit.

The theory reads a description and builds nothing. It holds for infinitely wide layers and large batches;
`kilolayer.measure.initialisation` measures the same quantities on a built network, beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kilolayer.networks.description import Network
from kilolayer.theory.population_dynamics import (
    Array,
    BackwardMap,
    MeanFieldInterpreter,
    Population,
    add_populations,
    scale_population,
)
from kilolayer.units.ops import Op, leaves
from kilolayer.units.unit import Layout


@dataclass(frozen=True)
class MeanFieldPrediction:
    """Signal and gradient at x_0 … x_L: the input of each of L units and the output of the last one.

    Every tuple but `units` has L + 1 values without a unit.

    >>> from kilolayer.networks import describe
    >>> prediction = predict_propagation(describe("preact_resnet20_cifar"))
    >>> len(prediction.units), len(prediction.signal)
    (9, 10)
    """

    units: tuple[str, ...]
    """The L units' names, from the input on."""
    signal: tuple[float, ...]
    """E[x_l²] over channels, positions and samples."""
    common: tuple[float, ...]
    """The share of `signal` that all samples of a batch have in common: Σ_c (E x_c)² / Σ_c E[x_c²] over
    channels c. `signal` · (1 − `common`) is the variance that a BN sees."""
    gradient: tuple[float, ...]
    """‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖, norms over a whole batch."""
    direct: tuple[float, ...]
    """The same ratio for the term that passes through shortcuts only: Π λ_i in P2, Eq. 8."""


def predict_propagation(network: Network, *, seed: int = 0) -> MeanFieldPrediction:
    """Predicts signal and gradient of `network`, initialised as `kilolayer.networks.build` initialises it.

    With unit l as y_l = h(x_l) + F(x_l), x_{l+1} = f(y_l), second moments and squared gradients of
    independent weights add:

        E[y_l²]        = E[h(x_l)²] + E[F(x_l)²]
        E[(∂ε/∂x_l)²]  = E[(∂hᵀ ∂fᵀ ∂ε/∂x_{l+1})²] + E[(∂Fᵀ ∂fᵀ ∂ε/∂x_{l+1})²]

    Every layer's own rule stands in `kilolayer.theory.population_dynamics`.

    Args:
        network: a description. Its input images have mean 0 and second moment 1.
        seed: orders the population's draws; another seed moves the values by a few percent at most.

    Raises:
        NoReading: a layer has no mean-field rule; `no_prediction_reason` says so beforehand.

    Source: mean-field theory of residual networks (Yang and Schoenholz 2017, arXiv 1712.08969), carried out
    by population dynamics; weights are He's, as in P1, Sec. 3.4.

    >>> from kilolayer.networks import describe
    >>> prediction = predict_propagation(describe("preact_resnet20_cifar"))
    >>> prediction.signal[0] < prediction.signal[-1]  # identity shortcuts add up every branch's variance
    True
    >>> 0.3 < prediction.direct[0] < 0.4  # the two shortcuts that change the shape scale the direct term
    True
    """
    theory = MeanFieldTheory(network, seed)
    return MeanFieldPrediction(
        units=tuple(unit.name for unit in network.units()),
        signal=tuple(x.second_moment for x in theory.signals),
        common=tuple(x.common / x.second_moment if x.second_moment else 0.0 for x in theory.signals),
        gradient=theory.gradient_norms([unit.total for unit in theory.unit_backwards]),
        direct=theory.gradient_norms([unit.shortcut for unit in theory.unit_backwards]),
    )


def no_prediction_reason(network: Network) -> str | None:
    """Why theory cannot predict `network`, in words; None where it can.

    Theory needs a rule (`Op.carry`) for every layer. Layers of your own have none unless you write one.

    >>> from kilolayer.networks import describe
    >>> no_prediction_reason(describe("resnet20_cifar")) is None
    True
    """
    layers = (letter for placed in network.units() for letter in vars(placed.layout).values())
    for ops in (
        network.stem_ops,
        network.final_ops,
        *(letter_ops for letter_ops in layers if isinstance(letter_ops, tuple)),
    ):
        for layer in leaves(ops):
            if type(layer).carry is Op.carry:
                return f"theory has no rule for the layer {layer.label}"
    return None


@dataclass(frozen=True)
class UnitBackward:
    """A unit's two maps from E[(∂ε/∂x')²] to E[(∂ε/∂x)²]: through the shortcut, and through the weights."""

    shortcut: BackwardMap
    branch: BackwardMap

    def total(self, gradient: Population) -> Population:
        """Both maps together; squares add, since branch and shortcut are uncorrelated."""
        return add_populations(self.shortcut(gradient), self.branch(gradient), are_squares=True)


class MeanFieldTheory:
    """A network run through population dynamics once, forward, with the maps that lead back.

    `signals` are the populations x_0 … x_L, `unit_backwards` the units' backward maps, `sizes` the numbers
    that x_0 … x_L hold for one image, and `final_gradient` is E[(∂ε/∂x_L)²] up to a factor.
    """

    def __init__(self, network: Network, seed: int = 0) -> None:
        dynamics = MeanFieldInterpreter(_rows_per_channel(network), network.initialisation, seed)
        self.sizes = _signal_sizes(network)
        self.signals = [_stem_population(network, dynamics)]
        self.unit_backwards: list[UnitBackward] = []
        for placed in network.units():
            out, backward = _run_unit(placed.layout, self.signals[-1], dynamics)
            self.signals.append(out)
            self.unit_backwards.append(backward)
        last = self.signals[-1]
        _, back = dynamics.run(network.final_ops, last)
        self.final_gradient = back(Population(np.ones_like(last.values), np.ones_like(last.spatial_profile)))

    def gradient_norms(self, backward_maps: Sequence[BackwardMap]) -> tuple[float, ...]:
        """‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖ along these maps, one map a unit."""
        # The scale is kept as a logarithm: over a thousand units the gradient itself can overflow.
        gradient, scale, logs = self.final_gradient, 0.0, [0.0]
        first = _log(gradient.values.mean()) + _log(self.sizes[-1])
        for back, size in zip(reversed(backward_maps), reversed(self.sizes[:-1]), strict=True):
            gradient = back(gradient)
            mean_square = float(gradient.values.mean())
            logs.append(scale + _log(mean_square) + _log(size) - first)
            if mean_square:
                gradient = Population(_refill(gradient.values / mean_square), gradient.spatial_profile)
                scale += _log(mean_square)
        return tuple(_exp(log / 2) for log in reversed(logs))


def _rows_per_channel(network: Network) -> float:
    """As few rows for a channel as give every width on the trunk a whole number of rows, 16 or more."""
    channels = [network.unit.branch.out_channels(stage.width) for stage in network.stages]
    return 16 / math.gcd(network.stem.channels, *channels)


def _stem_population(network: Network, dynamics: MeanFieldInterpreter) -> Population:
    shape = (network.image_size,) * 2
    image = dynamics.draw_gaussian(network.in_chans, 1.0, 0.0, np.ones(shape))
    return dynamics.run(network.stem_ops, image)[0]


def _run_unit(
    layout: Layout, x: Population, dynamics: MeanFieldInterpreter
) -> tuple[Population, UnitBackward]:
    """y = h(x) + F(x), gated where the layout has a gate; x' = f(y)."""
    x, p_back = dynamics.run(layout.p, x)
    dynamics.uncorrelated_with = None
    h, h_back = dynamics.run(layout.h, x)
    dynamics.uncorrelated_with = h
    F, F_back = dynamics.run(layout.F, x)
    if layout.g:
        gate = _Gate(layout, x, h, F, dynamics)
        h, F = scale_population(h, gate.shortcut_factor), scale_population(F, gate.branch_factor)
        h_back, F_back = (
            _scale_backward(h_back, gate.shortcut_factor),
            _sum_backwards(_scale_backward(F_back, gate.branch_factor), gate.back),
        )
    out, f_back = dynamics.run(layout.f, add_populations(h, F))
    return out, UnitBackward(
        shortcut=lambda gradient: p_back(h_back(f_back(gradient))),
        branch=lambda gradient: p_back(F_back(f_back(gradient))),
    )


class _Gate:
    """g = σ(W_g x + b_g): the factors of h and of F, and the gate's own backward map (P2, Sec. 3.1)."""

    def __init__(
        self, layout: Layout, x: Population, h: Population, F: Population, dynamics: MeanFieldInterpreter
    ) -> None:
        before, self._back = dynamics.run(layout.g, x)
        g = 1 / (1 + np.exp(-(before.values + layout.gate_bias)))
        self.shortcut_factor = 1 - g
        self.branch_factor = g if layout.gates_branch else np.ones_like(g)
        gated = F.values - h.values if layout.gates_branch else -h.values
        self._slope = g * (1 - g) * gated

    def back(self, gradient: Population) -> Population:
        return self._back(scale_population(gradient, np.square(self._slope)))


def _scale_backward(back: BackwardMap, factor: Array) -> BackwardMap:
    return lambda gradient: back(scale_population(gradient, np.square(factor)))


def _sum_backwards(first: BackwardMap, second: BackwardMap) -> BackwardMap:
    return lambda gradient: add_populations(first(gradient), second(gradient), are_squares=True)


def _signal_sizes(network: Network) -> list[int]:
    """The numbers that x_0 … x_L hold for one image."""
    placed = network.units()
    sizes = [network.stem.channels * placed[0].side ** 2]
    widths = [stage.width for stage in network.stages for _ in range(stage.units)]
    for unit, width in zip(placed, widths, strict=True):
        sizes.append(network.unit.branch.out_channels(width) * unit.layout.output_side(unit.side) ** 2)
    return sizes


def _refill(squares: Array) -> Array:
    """Spreads the gradient over the whole population where ReLUs have left less than a sixteenth of it.

    Expectations over a few surviving rows would be noise.
    """
    few = np.count_nonzero(squares) < squares.size / 16
    return np.full_like(squares, squares.mean()) if few else squares


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
