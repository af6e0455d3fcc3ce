"""Layers of infinitely many channels, stood for by some: what each kind does to signal and gradient.

A random convolution with many inputs makes a Gaussian signal of which only two numbers matter: its second
moment q and the part c of it that all samples of a batch have in common (the channels' means, squared). All
other layers act on each number by itself. So a signal is an ensemble of `rows` channels × `SAMPLES` samples:
a convolution draws it afresh from (q, c), every other layer is applied to it as it stands, and expectations
are means over it (population dynamics). Each layer also says how it carries E[(∂ε/∂x)²] backward; a
convolution's weights are independent of all else, so gradients of parallel paths add as squares.

`border` is the profile of the second moment over an image's positions, with mean 1: zero padding thins it
out towards the edges. `swing` is how the channels' means differ from place to place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from kilolayer.units import ops as op
from kilolayer.units.ops import Op, Ops

Array = NDArray[np.float64]

SAMPLES = 32
EPSILON = 1e-5  # BN's
EVEN: Array = np.zeros((1, 1))


@dataclass(frozen=True)
class Ensemble:
    """A signal's `values` (rows, SAMPLES), or E[(∂ε/∂x)²] for each of them, and its `border` (H, W)."""

    values: Array
    border: Array
    swing: Array = field(default_factory=lambda: EVEN)
    """(H, W): (a channel's mean at a position − its mean over all)², relative to the means' square."""

    @property
    def second_moment(self) -> float:
        return float(np.square(self.values).mean())

    @property
    def common(self) -> float:
        """The part of the second moment that all samples and positions share: the channels' mean²."""
        return (1 - float(self.swing.mean())) * self.shared

    @property
    def shared(self) -> float:
        """The part that all samples share at one position."""
        return float(np.square(self.values.mean(1)).mean())

    @property
    def side(self) -> int:
        return len(self.border)


Back = Callable[[Ensemble], Ensemble]
"""From E[(∂ε/∂output)²] to E[(∂ε/∂input)²]."""


@cache
def quantiles(count: int) -> Array:
    """`count` equally likely values of a standard normal variable.

    Bent so that E[z²] = 1 and E|z| = √(2/π) exactly, which are what ReLU and BN make of a signal.
    """
    normal = NormalDist()
    values = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    low, high = 0.5, 2.0
    for _ in range(50):  # E|z| falls as the power grows
        power = (low + high) / 2
        bent = np.sign(values) * np.abs(values) ** power
        bent /= bent.std()
        low, high = (power, high) if np.abs(bent).mean() > np.sqrt(2 / np.pi) else (low, power)
    return np.asarray(bent)


@cache
def reads(side: int, kernel: int, stride: int) -> Array:
    """(kernel, outputs, side): 1 where a weight of the kernel reads a position for an output."""
    position = np.arange(0, side, stride)[:, None] - np.arange(side)
    return np.stack([position + tap == kernel // 2 for tap in range(kernel)]).astype(float)


@cache
def window(side: int, kernel: int, stride: int) -> Array:
    """(outputs, side): 1/kernel where an output of a line reads a position."""
    return np.asarray(reads(side, kernel, stride).sum(0) / kernel)


class Dynamics:
    """The interpreter of layers: `density` rows stand for a channel; all draws come from `seed`.

    `beside` is the signal that a fresh one will be added to: they are uncorrelated, exactly.
    """

    def __init__(self, density: float, fan: str, seed: int = 0) -> None:
        self.density, self.fan = density, fan
        self.beside: Ensemble | None = None
        self.random = np.random.default_rng(seed)

    def rows(self, channels: int) -> int:
        return max(8, round(channels * self.density))

    def gaussian(
        self, channels: int, second_moment: float, shared: float, border: Array, swing: Array = EVEN
    ) -> Ensemble:
        """A fresh signal: each channel's mean from N(0, c), each sample's distance from it N(0, q − c)."""
        rows = self.rows(channels)
        means = self.random.permutation(quantiles(rows))[:, None]
        spread = self.random.permuted(np.tile(quantiles(SAMPLES), (rows, 1)), axis=1)
        if self.beside is not None and self.beside.values.shape == spread.shape:
            centre = self.beside.values.mean(1, keepdims=True)
            means, spread = _without(means, centre, 0), _without(spread, self.beside.values - centre, 1)
        within = np.sqrt(max(0.0, second_moment - shared))
        return Ensemble(np.sqrt(shared) * means + within * spread, border, swing)

    def run(self, ops: Ops, x: Ensemble) -> tuple[Ensemble, Back]:
        """`ops` applied to `x`, and the way back."""
        backs: list[Back] = []
        for spec in ops:
            x, back = self._apply(spec, x)
            backs.append(back)

        def way_back(gradient: Ensemble) -> Ensemble:
            for back in reversed(backs):
                gradient = back(gradient)
            return gradient

        return x, way_back

    def _apply(self, spec: Op, x: Ensemble) -> tuple[Ensemble, Back]:
        if isinstance(spec, op.Paths):
            return self._paths(spec, x)
        carried: tuple[Ensemble, Back] = spec.carry(self, x)
        return carried

    def batch_norm(self, x: Ensemble) -> tuple[Ensemble, Back]:
        return _batch_norm(x)

    def relu(self, x: Ensemble) -> tuple[Ensemble, Back]:
        return _elementwise(x, x.values, (x.values > 0).astype(float))

    def drop(self, x: Ensemble, p: float) -> tuple[Ensemble, Back]:
        kept = self.random.random(x.values.shape) >= p
        return _elementwise(x, x.values, kept / (1 - p))

    def multiply(self, x: Ensemble, factor: float) -> tuple[Ensemble, Back]:
        return _elementwise(x, x.values, np.float64(factor))

    def nothing(self, x: Ensemble) -> tuple[Ensemble, Back]:
        zero = Ensemble(np.zeros_like(x.values), x.border)
        return zero, lambda _: zero

    def convolve(self, conv: op.Conv, x: Ensemble) -> tuple[Ensemble, Back]:
        """He's weights: variance 2/(k²·C), C the channels of the output or of the input (`fan`)."""
        fan = conv.out_channels if self.fan == "fan_out" else conv.in_channels // conv.groups
        forward = 2 * (conv.in_channels // conv.groups) / fan
        backward = 2 * (conv.out_channels // conv.groups) / fan
        lines = window(x.side, conv.kernel, conv.stride)
        reached, border = _normalised(lines @ x.border @ lines.T)
        swing = _swing(conv, x, border, reached)
        gain, shape = forward * reached, x.values.shape
        y = self.gaussian(conv.out_channels, gain * x.second_moment, gain * x.shared, border, swing)

        def back(gradient: Ensemble) -> Ensemble:
            returned, profile = _normalised(lines.T @ gradient.border @ lines)
            return Ensemble(np.full(shape, gradient.values.mean() * backward * returned), profile)

        return y, back

    def pad(self, pad: op.PadChannels, x: Ensemble) -> tuple[Ensemble, Back]:
        kept = len(x.values)
        zeros = np.zeros((round(pad.extra * self.density), SAMPLES))
        values = np.concatenate([x.values, zeros])

        def back(gradient: Ensemble) -> Ensemble:
            spread = np.zeros_like(x.border)
            spread[:: pad.stride, :: pad.stride] = gradient.border
            reached, border = _normalised(spread)
            return Ensemble(gradient.values[:kept] * reached, border)

        return Ensemble(
            values, x.border[:: pad.stride, :: pad.stride], x.swing[:: pad.stride, :: pad.stride]
        ), back

    def pool(self, x: Ensemble) -> tuple[Ensemble, Back]:
        # Neighbours at a stride of 2 share most of what a 7×7 convolution reads: of a window's 9 positions
        # about 4 are independent.
        shifted = [self.random.permuted(x.values, axis=1) for _ in range(4)]

        def back(gradient: Ensemble) -> Ensemble:
            return Ensemble(np.full(x.values.shape, gradient.values.mean() / 4), np.ones_like(x.border))

        return Ensemble(np.maximum.reduce(shifted), x.border[::2, ::2], x.swing[::2, ::2]), back

    def _paths(self, spec: op.Paths, x: Ensemble) -> tuple[Ensemble, Back]:
        """One path stands for all: sums of independent ones add their second moments."""
        count = len(spec.paths)
        y, one_back = self.run(spec.paths[0], x)
        if spec.join == "sum":
            y = Ensemble(y.values * np.sqrt(count), y.border, y.swing)

        def back(gradient: Ensemble) -> Ensemble:
            through_one = one_back(gradient)
            return Ensemble(through_one.values * count, through_one.border)

        return y, back


def add(first: Ensemble, second: Ensemble, *, squares: bool = False) -> Ensemble:
    """first + second; of gradients (`squares`) the values are squares already. Borders are weighted."""
    weights = [each.values.mean() if squares else each.second_moment for each in (first, second)]
    if weights[0] == 0:  # a plain net's shortcut has not even F's shape
        return second
    border = (weights[0] * first.border + weights[1] * second.border) / sum(weights)
    shared = [each.shared + 1e-300 for each in (first, second)]
    swing = (shared[0] * first.swing + shared[1] * second.swing) / sum(shared)
    return Ensemble(first.values + second.values, border, swing)


def times(x: Ensemble, factor: Array) -> Ensemble:
    return Ensemble(x.values * factor, x.border, x.swing)


def _elementwise(x: Ensemble, values: Array, slope: Array | np.float64) -> tuple[Ensemble, Back]:
    """values·slope, which has the derivative `slope` in x."""
    return Ensemble(values * slope, x.border, x.swing), lambda gradient: times(gradient, np.square(slope))


def _batch_norm(x: Ensemble) -> tuple[Ensemble, Back]:
    """Each channel less its mean, of variance 1; the variance is that over samples and positions."""
    mean = x.values.mean(1, keepdims=True)
    centred = x.values - mean
    among_samples = np.square(centred).mean(1, keepdims=True)
    among_positions = np.square(mean) * x.swing.mean()
    variance = among_samples + among_positions
    values = centred * np.sqrt(variance / ((variance + EPSILON) * np.maximum(among_samples, 1e-300)))
    profile = among_samples.mean() * x.border + np.square(mean).mean() * x.swing
    border = _normalised(profile)[1]
    # A channel's mean, which ReLU makes anew, follows the signal's size.
    size = np.sqrt(border)
    out = Ensemble(values, border, np.square(size - size.mean()))
    return out, lambda gradient: times(gradient, 1 / (variance + EPSILON))


def _swing(conv: op.Conv, x: Ensemble, border: Array, reached: float) -> Array:
    """How means that follow √border differ from place to place behind a convolution.

    Weight k reads s_k(p) at output p, nothing outside, and S_k on average over p: Σ_k (s_k(p) − S_k)².
    """
    taps = reads(x.side, conv.kernel, conv.stride)
    size = np.sqrt(x.border)
    averages = taps.mean(1) @ size @ taps.mean(1).T
    lines = taps.reshape(-1, x.side)
    read = (lines @ size @ lines.T).reshape(2 * taps.shape[:2])
    across = np.einsum("iajb,ij->ab", read, averages)
    unit = conv.kernel**2 * reached
    return np.asarray(border - 2 * across / unit + np.square(averages).sum() / unit)


def _without(values: Array, other: Array, axis: int) -> Array:
    """`values` less what correlates with `other` along `axis`, of the same second moment."""
    size = np.maximum(np.square(other).sum(axis, keepdims=True), 1e-300)
    rest = values - (values * other).sum(axis, keepdims=True) / size * other
    left = np.square(rest).mean(axis, keepdims=True)
    return np.where(left > 1e-2, rest / np.sqrt(np.maximum(left, 1e-2)), values)


def _normalised(profile: Array) -> tuple[float, Array]:
    """The mean of a profile, and the profile with mean 1."""
    mean = float(profile.mean())
    return mean, profile / mean if mean else np.ones_like(profile)
