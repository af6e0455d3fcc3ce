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
UNIFORM: Array = np.zeros((1, 1))


@dataclass(frozen=True)
class Population:
    """A signal's `values` (rows, SAMPLES), or E[(∂ε/∂x)²] for each of them, and its `border` (H, W)."""

    values: Array
    spatial_profile: Array
    mean_variation: Array = field(default_factory=lambda: UNIFORM)
    """(H, W): (a channel's mean at a position − its mean over all)², relative to the means' square."""

    @property
    def second_moment(self) -> float:
        return float(np.square(self.values).mean())

    @property
    def common(self) -> float:
        """The part of the second moment that all samples and positions share: the channels' mean²."""
        return (1 - float(self.mean_variation.mean())) * self.shared

    @property
    def shared(self) -> float:
        """The part that all samples share at one position."""
        return float(np.square(self.values.mean(1)).mean())

    @property
    def side(self) -> int:
        return len(self.spatial_profile)


BackwardMap = Callable[[Population], Population]
"""From E[(∂ε/∂output)²] to E[(∂ε/∂input)²]."""


@cache
def normal_quantiles(count: int) -> Array:
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
def tap_matrices(side: int, kernel: int, stride: int) -> Array:
    """(kernel, outputs, side): 1 where a weight of the kernel reads a position for an output."""
    position = np.arange(0, side, stride)[:, None] - np.arange(side)
    return np.stack([position + tap == kernel // 2 for tap in range(kernel)]).astype(float)


@cache
def window_matrix(side: int, kernel: int, stride: int) -> Array:
    """(outputs, side): 1/kernel where an output of a line reads a position."""
    return np.asarray(tap_matrices(side, kernel, stride).sum(0) / kernel)


class MeanFieldInterpreter:
    """The interpreter of layers: `density` rows stand for a channel; all draws come from `seed`.

    `beside` is the signal that a fresh one will be added to: they are uncorrelated, exactly.
    """

    def __init__(self, rows_per_channel: float, fan_mode: str, seed: int = 0) -> None:
        self.rows_per_channel, self.fan_mode = rows_per_channel, fan_mode
        self.uncorrelated_with: Population | None = None
        self.random = np.random.default_rng(seed)

    def num_rows(self, channels: int) -> int:
        return max(8, round(channels * self.rows_per_channel))

    def draw_gaussian(
        self,
        channels: int,
        second_moment: float,
        shared: float,
        spatial_profile: Array,
        mean_variation: Array = UNIFORM,
    ) -> Population:
        """A fresh signal: each channel's mean from N(0, c), each sample's distance from it N(0, q − c)."""
        rows = self.num_rows(channels)
        means = self.random.permutation(normal_quantiles(rows))[:, None]
        deviations = self.random.permuted(np.tile(normal_quantiles(SAMPLES), (rows, 1)), axis=1)
        if self.uncorrelated_with is not None and self.uncorrelated_with.values.shape == deviations.shape:
            centre = self.uncorrelated_with.values.mean(1, keepdims=True)
            means, deviations = (
                _decorrelate(means, centre, 0),
                _decorrelate(deviations, self.uncorrelated_with.values - centre, 1),
            )
        deviation = np.sqrt(max(0.0, second_moment - shared))
        return Population(np.sqrt(shared) * means + deviation * deviations, spatial_profile, mean_variation)

    def run(self, ops: Ops, x: Population) -> tuple[Population, BackwardMap]:
        """`ops` applied to `x`, and the way back."""
        backs: list[BackwardMap] = []
        for spec in ops:
            x, back = self._apply(spec, x)
            backs.append(back)

        def backward(gradient: Population) -> Population:
            for back in reversed(backs):
                gradient = back(gradient)
            return gradient

        return x, backward

    def _apply(self, spec: Op, x: Population) -> tuple[Population, BackwardMap]:
        if isinstance(spec, op.ParallelPaths):
            return self._paths(spec, x)
        carried: tuple[Population, BackwardMap] = spec.carry(self, x)
        return carried

    def batch_norm(self, x: Population) -> tuple[Population, BackwardMap]:
        return _batch_norm(x)

    def relu(self, x: Population) -> tuple[Population, BackwardMap]:
        return _elementwise(x, x.values, (x.values > 0).astype(float))

    def drop(self, x: Population, p: float) -> tuple[Population, BackwardMap]:
        mask = self.random.random(x.values.shape) >= p
        return _elementwise(x, x.values, mask / (1 - p))

    def multiply(self, x: Population, factor: float) -> tuple[Population, BackwardMap]:
        return _elementwise(x, x.values, np.float64(factor))

    def nothing(self, x: Population) -> tuple[Population, BackwardMap]:
        zero = Population(np.zeros_like(x.values), x.spatial_profile)
        return zero, lambda _: zero

    def convolve(self, conv: op.Conv, x: Population) -> tuple[Population, BackwardMap]:
        """He's weights: variance 2/(k²·C), C the channels of the output or of the input (`fan`)."""
        fan = conv.out_channels if self.fan_mode == "fan_out" else conv.in_channels // conv.groups
        forward = 2 * (conv.in_channels // conv.groups) / fan
        backward = 2 * (conv.out_channels // conv.groups) / fan
        lines = window_matrix(x.side, conv.kernel, conv.stride)
        coverage, border = _split_mean(lines @ x.spatial_profile @ lines.T)
        swing = _mean_variation_after(conv, x, border, coverage)
        gain, shape = forward * coverage, x.values.shape
        y = self.draw_gaussian(conv.out_channels, gain * x.second_moment, gain * x.shared, border, swing)

        def back(gradient: Population) -> Population:
            returned, profile = _split_mean(lines.T @ gradient.spatial_profile @ lines)
            return Population(np.full(shape, gradient.values.mean() * backward * returned), profile)

        return y, back

    def pad(self, pad: op.PadChannels, x: Population) -> tuple[Population, BackwardMap]:
        num_rows = len(x.values)
        zeros = np.zeros((round(pad.extra * self.rows_per_channel), SAMPLES))
        values = np.concatenate([x.values, zeros])

        def back(gradient: Population) -> Population:
            spread = np.zeros_like(x.spatial_profile)
            spread[:: pad.stride, :: pad.stride] = gradient.spatial_profile
            reached, border = _split_mean(spread)
            return Population(gradient.values[:num_rows] * reached, border)

        return Population(
            values,
            x.spatial_profile[:: pad.stride, :: pad.stride],
            x.mean_variation[:: pad.stride, :: pad.stride],
        ), back

    def pool(self, x: Population) -> tuple[Population, BackwardMap]:
        # Neighbours at a stride of 2 share most of what a 7×7 convolution reads: of a window's 9 positions
        # about 4 are independent.
        shifted = [self.random.permuted(x.values, axis=1) for _ in range(4)]

        def back(gradient: Population) -> Population:
            return Population(
                np.full(x.values.shape, gradient.values.mean() / 4), np.ones_like(x.spatial_profile)
            )

        return Population(
            np.maximum.reduce(shifted), x.spatial_profile[::2, ::2], x.mean_variation[::2, ::2]
        ), back

    def _paths(self, spec: op.ParallelPaths, x: Population) -> tuple[Population, BackwardMap]:
        """One path stands for all: sums of independent ones add their second moments."""
        count = len(spec.paths)
        y, one_back = self.run(spec.paths[0], x)
        if spec.join == "sum":
            y = Population(y.values * np.sqrt(count), y.spatial_profile, y.mean_variation)

        def back(gradient: Population) -> Population:
            through_one = one_back(gradient)
            return Population(through_one.values * count, through_one.spatial_profile)

        return y, back


def add_populations(first: Population, second: Population, *, are_squares: bool = False) -> Population:
    """first + second; of gradients (`squares`) the values are squares already. Borders are weighted."""
    weights = [
        population.values.mean() if are_squares else population.second_moment
        for population in (first, second)
    ]
    if weights[0] == 0:  # a plain net's shortcut has not even F's shape
        return second
    border = (weights[0] * first.spatial_profile + weights[1] * second.spatial_profile) / sum(weights)
    shared = [population.shared + 1e-300 for population in (first, second)]
    swing = (shared[0] * first.mean_variation + shared[1] * second.mean_variation) / sum(shared)
    return Population(first.values + second.values, border, swing)


def scale_population(x: Population, factor: Array) -> Population:
    return Population(x.values * factor, x.spatial_profile, x.mean_variation)


def _elementwise(x: Population, values: Array, slope: Array | np.float64) -> tuple[Population, BackwardMap]:
    """values·slope, which has the derivative `slope` in x."""
    return Population(values * slope, x.spatial_profile, x.mean_variation), lambda gradient: scale_population(
        gradient, np.square(slope)
    )


def _batch_norm(x: Population) -> tuple[Population, BackwardMap]:
    """Each channel less its mean, of variance 1; the variance is that over samples and positions."""
    mean = x.values.mean(1, keepdims=True)
    centred = x.values - mean
    among_samples = np.square(centred).mean(1, keepdims=True)
    among_positions = np.square(mean) * x.mean_variation.mean()
    variance = among_samples + among_positions
    values = centred * np.sqrt(variance / ((variance + EPSILON) * np.maximum(among_samples, 1e-300)))
    profile = among_samples.mean() * x.spatial_profile + np.square(mean).mean() * x.mean_variation
    border = _split_mean(profile)[1]
    # A channel's mean, which ReLU makes anew, follows the signal's size.
    size = np.sqrt(border)
    out = Population(values, border, np.square(size - size.mean()))
    return out, lambda gradient: scale_population(gradient, 1 / (variance + EPSILON))


def _mean_variation_after(conv: op.Conv, x: Population, spatial_profile: Array, coverage: float) -> Array:
    """How means that follow √border differ from place to place behind a convolution.

    Weight k reads s_k(p) at output p, nothing outside, and S_k on average over p: Σ_k (s_k(p) − S_k)².
    """
    taps = tap_matrices(x.side, conv.kernel, conv.stride)
    size = np.sqrt(x.spatial_profile)
    averages = taps.mean(1) @ size @ taps.mean(1).T
    lines = taps.reshape(-1, x.side)
    read = (lines @ size @ lines.T).reshape(2 * taps.shape[:2])
    across = np.einsum("iajb,ij->ab", read, averages)
    scale = conv.kernel**2 * coverage
    return np.asarray(spatial_profile - 2 * across / scale + np.square(averages).sum() / scale)


def _decorrelate(values: Array, reference: Array, axis: int) -> Array:
    """`values` less what correlates with `other` along `axis`, of the same second moment."""
    size = np.maximum(np.square(reference).sum(axis, keepdims=True), 1e-300)
    remainder = values - (values * reference).sum(axis, keepdims=True) / size * reference
    mean_square = np.square(remainder).mean(axis, keepdims=True)
    return np.where(mean_square > 1e-2, remainder / np.sqrt(np.maximum(mean_square, 1e-2)), values)


def _split_mean(profile: Array) -> tuple[float, Array]:
    """The mean of a profile, and the profile with mean 1."""
    mean = float(profile.mean())
    return mean, profile / mean if mean else np.ones_like(profile)
