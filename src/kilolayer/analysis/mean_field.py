"""Mean-field theory of a network at initialisation: how large signals and gradients are at every unit.

prediction = predict(cifar(1001, replace(BOTTLENECK, arrangement=FULL_PREACT)))
prediction.signal[l], prediction.gradient[l]

The theory is of infinitely wide layers and large batches; `kilolayer.analysis.initialisation` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kilolayer.analysis.ensemble import Array, Back, Dynamics, Ensemble, add, times
from kilolayer.networks.description import Network
from kilolayer.units.ops import Op, leaves
from kilolayer.units.unit import Layout


@dataclass(frozen=True)
class Prediction:
    """Signal and gradient at the input x_l of every unit, and behind the last one, x_L: L+1 values each.

    `signal` is E[x_l²] over channels, positions and samples; `common` the share of it that the samples of
    a batch have in common, so `signal`·(1 − `common`) is the variance that BN sees. `gradient` is
    ‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖ over a whole batch; `direct` is the same of the term that passes shortcuts only
    (Π λ_i in P2, Eq. 8).
    """

    units: tuple[str, ...]
    signal: tuple[float, ...]
    common: tuple[float, ...]
    gradient: tuple[float, ...]
    direct: tuple[float, ...]


def predict(network: Network, *, seed: int = 0) -> Prediction:
    """The theory's values for `network`, initialised as `kilolayer.networks.build` does.

    Inputs have mean 0 and second moment 1. `seed` orders the ensemble's draws; another one moves the
    values by a few percent at most.
    """
    theory = Theory(network, seed)
    return Prediction(
        units=tuple(unit.name for unit in network.units()),
        signal=tuple(x.second_moment for x in theory.signals),
        common=tuple(x.common / x.second_moment if x.second_moment else 0.0 for x in theory.signals),
        gradient=theory.norms([step.whole for step in theory.steps]),
        direct=theory.norms([step.shortcut for step in theory.steps]),
    )


def silent(network: Network) -> str | None:
    """Why theory predicts nothing of `network`; None where it does."""
    layers = (letter for placed in network.units() for letter in vars(placed.layout).values())
    for ops in (network.stem_ops, network.final_ops, *(each for each in layers if isinstance(each, tuple))):
        for layer in leaves(ops):
            if type(layer).carry is Op.carry:
                return f"theory says nothing of the layer {layer.label}"
    return None


@dataclass(frozen=True)
class Step:
    """A unit's ways back from E[(∂ε/∂x')²] to E[(∂ε/∂x)²]: by its shortcut, and through its weights."""

    shortcut: Back
    branch: Back

    def whole(self, gradient: Ensemble) -> Ensemble:
        return add(self.shortcut(gradient), self.branch(gradient), squares=True)


class Theory:
    """`signals` x_0 … x_L, the units' `steps`, and `end`: E[(∂ε/∂x_L)²] up to a factor."""

    def __init__(self, network: Network, seed: int = 0) -> None:
        dynamics = Dynamics(_density(network), network.initialisation, seed)
        self.sizes = _sizes(network)
        self.signals = [_stem(network, dynamics)]
        self.steps: list[Step] = []
        for placed in network.units():
            out, step = _unit(placed.layout, self.signals[-1], dynamics)
            self.signals.append(out)
            self.steps.append(step)
        last = self.signals[-1]
        _, back = dynamics.run(network.final_ops, last)
        self.end = back(Ensemble(np.ones_like(last.values), np.ones_like(last.border)))

    def norms(self, backs: Sequence[Back]) -> tuple[float, ...]:
        """‖∂ε/∂x_l‖ / ‖∂ε/∂x_L‖ on these ways back; the scale is a logarithm, so that nothing overflows."""
        gradient, scale, logs = self.end, 0.0, [0.0]
        first = _log(gradient.values.mean()) + _log(self.sizes[-1])
        for back, size in zip(reversed(backs), reversed(self.sizes[:-1]), strict=True):
            gradient = back(gradient)
            mean = float(gradient.values.mean())
            logs.append(scale + _log(mean) + _log(size) - first)
            if mean:
                gradient = Ensemble(_replenished(gradient.values / mean), gradient.border)
                scale += _log(mean)
        return tuple(_exp(each / 2) for each in reversed(logs))


def _density(network: Network) -> float:
    """Rows per channel, so that the trunk's channels become whole numbers of rows, 16 or more."""
    channels = [network.unit.branch.out_channels(stage.width) for stage in network.stages]
    return 16 / math.gcd(network.stem.channels, *channels)


def _stem(network: Network, dynamics: Dynamics) -> Ensemble:
    shape = (network.image_size,) * 2
    image = dynamics.gaussian(network.in_chans, 1.0, 0.0, np.ones(shape))
    return dynamics.run(network.stem_ops, image)[0]


def _unit(layout: Layout, x: Ensemble, dynamics: Dynamics) -> tuple[Ensemble, Step]:
    """y = h(x) + F(x), gated where the layout has a gate; x' = f(y)."""
    x, p_back = dynamics.run(layout.p, x)
    dynamics.beside = None
    h, h_back = dynamics.run(layout.h, x)
    dynamics.beside = h
    F, F_back = dynamics.run(layout.F, x)
    if layout.g:
        gate = _Gate(layout, x, h, F, dynamics)
        h, F = times(h, gate.keeps), times(F, gate.passes)
        h_back, F_back = _after(h_back, gate.keeps), _join(_after(F_back, gate.passes), gate.back)
    out, f_back = dynamics.run(layout.f, add(h, F))
    return out, Step(
        shortcut=lambda gradient: p_back(h_back(f_back(gradient))),
        branch=lambda gradient: p_back(F_back(f_back(gradient))),
    )


class _Gate:
    """g = σ(W_g x + b_g): what it leaves of h and lets pass of F, and its own way back (P2, Sec. 3.1)."""

    def __init__(self, layout: Layout, x: Ensemble, h: Ensemble, F: Ensemble, dynamics: Dynamics) -> None:
        before, self._back = dynamics.run(layout.g, x)
        g = 1 / (1 + np.exp(-(before.values + layout.gate_bias)))
        self.keeps = 1 - g
        self.passes = g if layout.gates_branch else np.ones_like(g)
        gated = F.values - h.values if layout.gates_branch else -h.values
        self._slope = g * (1 - g) * gated

    def back(self, gradient: Ensemble) -> Ensemble:
        return self._back(times(gradient, np.square(self._slope)))


def _after(back: Back, factor: Array) -> Back:
    return lambda gradient: back(times(gradient, np.square(factor)))


def _join(first: Back, second: Back) -> Back:
    return lambda gradient: add(first(gradient), second(gradient), squares=True)


def _sizes(network: Network) -> list[int]:
    """How many numbers x_0 … x_L are for one image."""
    placed = network.units()
    sizes = [network.stem.channels * placed[0].side ** 2]
    widths = [stage.width for stage in network.stages for _ in range(stage.units)]
    for unit, width in zip(placed, widths, strict=True):
        sizes.append(network.unit.branch.out_channels(width) * unit.layout.output_side(unit.side) ** 2)
    return sizes


def _replenished(squares: Array) -> Array:
    """Where ReLUs have left few of the ensemble's gradients, all stand for them: what is left is spread."""
    few = np.count_nonzero(squares) < squares.size / 16
    return np.full_like(squares, squares.mean()) if few else squares


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
