"""Mean-field theory of a network at initialisation: the size of signal and gradient at every unit.

The theory reads a description and builds nothing; what it leaves out stands in
`kilolayer.theory.population_dynamics`. `kilolayer.measure.initialisation` measures the same quantities on a
built network, beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kilolayer.networks.description import Network
from kilolayer.theory.population_dynamics import (
    GRID,
    MAX_ROWS,
    Array,
    BackwardMap,
    MeanFieldInterpreter,
    Population,
    add_populations,
    scale_population,
)
from kilolayer.units.ops import DropoutOp, Op, PadChannels, leaves
from kilolayer.units.unit import Layout

BATCH_SIZE, DRAWS = 32, 5
"""Images of a batch, and populations that are drawn, where nothing else is said."""


MAX_DROPOUT_GROWTH = 1e4
"""The most that dropout on shortcuts may multiply E[x²] by; beyond it two networks differ a hundredfold."""


@dataclass(frozen=True)
class MeanFieldPrediction:
    """Signal and gradient at x_0 … x_L: the input of each of L units and the output of the last one.

    Every tuple but `units` has L + 1 values without a unit.

    >>> from kilolayer.networks import describe
    >>> prediction = predict_propagation(describe("preact_resnet20_cifar"), batch_size=2, draws=1)
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
    gradient_range: tuple[tuple[float, ...], tuple[float, ...]]
    """The least and the largest `gradient` of all draws: initialisations and batches differ as much."""


def predict_propagation(
    network: Network, *, batch_size: int = BATCH_SIZE, draws: int = DRAWS, seed: int = 0
) -> MeanFieldPrediction:
    """Predicts signal and gradient of `network`, initialised as `kilolayer.networks.build` initialises it.

    With unit l as y_l = h(x_l) + F(x_l), x_{l+1} = f(y_l):

        E[y_l²]  = E[(h(x_l) + F(x_l))²],       ∂ε/∂x_l = (∂hᵀ + ∂Fᵀ) ∂fᵀ ∂ε/∂x_{l+1}

    where E is the mean over channels, images and positions of a population that is drawn `draws` times. Every
    layer's own rule stands in `kilolayer.theory.population_dynamics`.

    Args:
        network: a description. Its input images are noise of mean 0 and second moment 1.
        batch_size: images of a batch. BN fixes their mean square alone, so the largest may outgrow the rest.
        draws: populations; the prediction is the median of them at every unit.
        seed: orders the draws.

    Raises:
        NoReading: a layer has no mean-field rule; `no_prediction_reason` says so beforehand.

    Source: mean-field theory of residual networks (Yang and Schoenholz 2017, arXiv 1712.08969), carried out
    by population dynamics; weights are He's, as in P1, Sec. 3.4.

    >>> from kilolayer.networks import describe
    >>> prediction = predict_propagation(describe("preact_resnet20_cifar"), batch_size=8)
    >>> prediction.signal[0] < prediction.signal[-1]  # identity shortcuts add up every branch's variance
    True
    >>> 0.25 < prediction.direct[0] < 0.4  # the two shortcuts that change the shape scale the direct term
    True
    """
    starts = [_predict_one(network, seed + draw, batch_size) for draw in range(draws)]
    middle = {name: _quantiles([start[name] for start in starts], 0.5) for name in starts[0]}
    gradients = [start["gradient"] for start in starts]
    return MeanFieldPrediction(
        units=tuple(unit.name for unit in network.units()),
        **middle,
        gradient_range=(_quantiles(gradients, 0), _quantiles(gradients, 1)),
    )


def _predict_one(network: Network, seed: int, batch_size: int) -> dict[str, tuple[float, ...]]:
    theory = MeanFieldTheory(network, seed, batch_size)
    moments = [x.second_moment for x in theory.signals]
    return {
        "signal": tuple(moments),
        "common": tuple(x.common / q if q else 0.0 for x, q in zip(theory.signals, moments, strict=True)),
        "gradient": theory.gradient_norms([unit.total for unit in theory.unit_backwards]),
        "direct": theory.gradient_norms([unit.shortcut for unit in theory.unit_backwards], np.float64),
    }


def _quantiles(rows: Sequence[Sequence[float]], share: float) -> tuple[float, ...]:
    """The lower median of every column for `share` ½, its least value for 0, its largest for 1."""
    place = round((len(rows) - 1) * share - 0.01)
    return tuple(sorted(column)[place] for column in zip(*rows, strict=True))


def no_prediction_reason(network: Network) -> str | None:
    """Why theory cannot predict `network`, in words; None where it can.

    Theory needs a rule (`Op.carry`) for every layer. Layers of your own have none unless you write one.
    Dropout on the shortcuts is refused where Π 1/(1 − p) over the units is above `MAX_DROPOUT_GROWTH`.

    >>> from kilolayer.networks import describe
    >>> no_prediction_reason(describe("resnet20_cifar")) is None
    True
    """
    return no_rule_reason(network) or _heavy_tails(network)


def no_rule_reason(network: Network) -> str | None:
    """The layer of `network` for which theory has no rule (`Op.carry`), in words; None where it has all.

    >>> from kilolayer.networks import describe
    >>> no_rule_reason(describe("resnet20_cifar")) is None
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


def _heavy_tails(network: Network) -> str | None:
    """Dropout on many shortcuts: its moments rest on ever fewer numbers, and no two networks agree."""
    growth = math.prod(
        1 / (1 - layer.p)
        for placed in network.units()
        for layer in leaves(placed.layout.h)
        if isinstance(layer, DropoutOp) and layer.p < 1
    )
    if growth <= MAX_DROPOUT_GROWTH:
        return None
    return (
        f"dropout on the shortcuts multiplies E[x²] by {growth:.1g}, carried by fewer and fewer numbers: "
        "the outcome is another one for every initialisation"
    )


@dataclass(frozen=True)
class UnitBackward:
    """A unit's two maps from E[(∂ε/∂x')²] to E[(∂ε/∂x)²]: through the shortcut, and through the weights."""

    shortcut: BackwardMap
    branch: BackwardMap

    def total(self, gradient: Population) -> Population:
        """Both maps together; squares add, since branch and shortcut are uncorrelated."""
        return add_populations(self.shortcut(gradient), self.branch(gradient))


class MeanFieldTheory:
    """A network run through population dynamics once, forward, with the maps that lead back.

    `signals` are the populations x_0 … x_L, `unit_backwards` the units' backward maps, `sizes` the numbers
    that x_0 … x_L hold for one image, and `final_gradient` is ∂ε/∂x_L.
    """

    def __init__(self, network: Network, seed: int = 0, batch_size: int = BATCH_SIZE) -> None:
        self.sizes = _signal_sizes(network)
        self._run(network, seed, batch_size, np.float32)
        if not math.isfinite(self.signals[-1].second_moment):
            self._run(network, seed, batch_size, np.float64)

    def _run(self, network: Network, seed: int, batch_size: int, dtype: type) -> None:
        dynamics = MeanFieldInterpreter(_rows_per_channel(network), network.initialisation, seed, dtype)
        self._dynamics = dynamics
        with np.errstate(over="ignore", invalid="ignore"):
            self.signals = [_stem_population(network, dynamics, batch_size)]
            self.unit_backwards: list[UnitBackward] = []
            for placed in network.units():
                out, backward = _run_unit(placed.layout, self.signals[-1], dynamics)
                self.signals.append(out)
                self.unit_backwards.append(backward)
            out, back = dynamics.run(network.final_ops, self.signals[-1])
            self.final_gradient = back(_loss_gradient(network, out, dynamics))

    def gradient_norms(
        self, backward_maps: Sequence[BackwardMap], dtype: type = np.float32
    ) -> tuple[float, ...]:
        """‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖ along these maps, one map a unit.

        float64 keeps a product of factors such as 0.9^100 exact; shortcuts alone are cheap enough for it.
        """
        # The scale is kept as a logarithm: over a thousand units the gradient itself can overflow.
        gradient, scale, logs = self.final_gradient, 0.0, [0.0]
        if dtype is np.float64:
            gradient = Population(gradient.values.astype(dtype), gradient.side)
        first = _log(gradient.second_moment) + _log(self.sizes[-1])
        for back, size in zip(reversed(backward_maps), reversed(self.sizes[:-1]), strict=True):
            gradient = back(gradient)
            mean_square = gradient.second_moment
            logs.append(scale + _log(mean_square) + _log(size) - first)
            if mean_square:
                gradient = self._refill(scale_population(gradient, mean_square**-0.5))
                scale += _log(mean_square)
        return tuple(_exp(log / 2) for log in reversed(logs))

    def _refill(self, gradient: Population) -> Population:
        """Spreads a gradient of mean square 1 where ReLUs have left less than a sixteenth of its numbers.

        Expectations over a few survivors would be noise.
        """
        if np.count_nonzero(gradient.values) >= gradient.values.size / 16:
            return gradient
        return Population(self._dynamics.draw_normal(*gradient.values.shape), gradient.side)


def _rows_per_channel(network: Network) -> float:
    """1, or less where a trunk that is padded with channels has more of them than a population has rows."""
    placed = [layer for unit in network.units() for layer in leaves(unit.layout.h)]
    if not any(isinstance(layer, PadChannels) for layer in placed):
        return 1.0
    channels = [network.unit.branch.out_channels(stage.width) for stage in network.stages]
    return min(1.0, MAX_ROWS / max(channels))


def _stem_population(network: Network, dynamics: MeanFieldInterpreter, images: int) -> Population:
    grid = min(network.image_size, GRID)
    pixels = dynamics.draw_normal(dynamics.num_rows(network.in_chans), images, grid, grid)
    return dynamics.run(network.stem_ops, Population(pixels, network.image_size))[0]


def _loss_gradient(network: Network, x: Population, dynamics: MeanFieldInterpreter) -> Population:
    """∂ε/∂x of the mean cross-entropy of random labels, behind average pooling and a linear layer.

    A position gets the image's gradient; the linear layer's weights have variance 1 / (3·inputs).
    """
    images = x.values.shape[1]
    weights = dynamics.draw_normal(network.num_classes, len(x.values)) / math.sqrt(3 * len(x.values))
    logits = weights @ x.values.mean((2, 3))
    probabilities = np.exp(logits - logits.max(0))
    probabilities /= probabilities.sum(0)
    labels = dynamics.random.integers(network.num_classes, size=images)
    probabilities[labels, np.arange(images)] -= 1
    gradient = (weights.T @ probabilities)[:, :, None, None]
    return Population(np.broadcast_to(gradient, x.values.shape).copy(), x.side)


def _run_unit(
    layout: Layout, x: Population, dynamics: MeanFieldInterpreter
) -> tuple[Population, UnitBackward]:
    """y = h(x) + F(x), gated where the layout has a gate; x' = f(y)."""
    x, p_back = dynamics.run(layout.p, x)
    h, h_back = dynamics.run(layout.h, x)
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
        return self._back(scale_population(gradient, self._slope))


def _scale_backward(back: BackwardMap, factor: Array) -> BackwardMap:
    return lambda gradient: back(scale_population(gradient, factor))


def _sum_backwards(first: BackwardMap, second: BackwardMap) -> BackwardMap:
    return lambda gradient: add_populations(first(gradient), second(gradient))


def _signal_sizes(network: Network) -> list[int]:
    """The numbers that x_0 … x_L hold for one image."""
    placed = network.units()
    sizes = [network.stem.channels * placed[0].side ** 2]
    widths = [stage.width for stage in network.stages for _ in range(stage.units)]
    for unit, width in zip(placed, widths, strict=True):
        sizes.append(network.unit.branch.out_channels(width) * unit.layout.output_side(unit.side) ** 2)
    return sizes


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
