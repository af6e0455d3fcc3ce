"""Population dynamics: a finite population stands for the signal of infinitely many channels.

A random convolution with many inputs makes a Gaussian signal, and two numbers describe it: its second moment
q, and the part c of q that all samples of a batch have in common (the channels' squared means). Every other
layer acts on each number by itself. So a signal is a population of rows (channels) × `SAMPLES` (images): a
convolution draws it afresh from (q, c), any other layer is applied to it, and expectations are means over
it.

Each rule also carries E[(∂ε/∂x)²] backward. A convolution's weights are independent of everything else, so
the squared gradients of parallel paths add.

Two profiles over the H × W positions of an image correct for borders: `spatial_profile` is the second moment
relative to its mean, which zero padding lowers towards the edges, and `mean_variation` says how the channels'
means differ from position to position.
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
"""Images that a population stands for."""
EPSILON = 1e-5
"""BN's ε."""
UNIFORM: Array = np.zeros((1, 1))
"""The `mean_variation` of channels with the same mean at every position."""


@dataclass(frozen=True)
class Population:
    """A signal, or the expected squared gradient E[(∂ε/∂x)²] of every number of one."""

    values: Array
    """(rows, SAMPLES)."""
    spatial_profile: Array
    """(H, W), mean 1: the second moment at a position, relative to its mean over positions."""
    mean_variation: Array = field(default_factory=lambda: UNIFORM)
    """(H, W): (a channel's mean at a position − its mean over positions)², relative to the squared mean."""

    @property
    def second_moment(self) -> float:
        """q = E[x²]."""
        return float(np.square(self.values).mean())

    @property
    def common(self) -> float:
        """c, the part of q that all samples and positions share: the channels' squared means."""
        return (1 - float(self.mean_variation.mean())) * self.shared

    @property
    def shared(self) -> float:
        """The part of q that all samples share at one position."""
        return float(np.square(self.values.mean(1)).mean())

    @property
    def side(self) -> int:
        """Pixels a side."""
        return len(self.spatial_profile)


BackwardMap = Callable[[Population], Population]
"""Maps E[(∂ε/∂output)²] to E[(∂ε/∂input)²]."""


@cache
def normal_quantiles(count: int) -> Array:
    """`count` equally likely values of a standard normal z, with E[z²] = 1 and E|z| = √(2/π) exactly.

    The plain quantiles miss both moments, on which BN and ReLU depend; a power bends them until they fit.
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
    """(kernel, outputs, side): 1 where a tap of the kernel reads a position for an output, else 0."""
    position = np.arange(0, side, stride)[:, None] - np.arange(side)
    return np.stack([position + tap == kernel // 2 for tap in range(kernel)]).astype(float)


@cache
def window_matrix(side: int, kernel: int, stride: int) -> Array:
    """(outputs, side): 1/kernel where an output reads a position of a line, else 0."""
    return np.asarray(tap_matrices(side, kernel, stride).sum(0) / kernel)


class MeanFieldInterpreter:
    """Runs layers on populations: the `PropagationRules` that a layer's `carry` calls.

    Every rule takes a population x and returns the layer's output and its backward map.

    Args:
        rows_per_channel: rows of a population that stand for one channel.
        fan_mode: "fan_in" or "fan_out", which of a convolution's channels set its weights' variance.
        seed: all random draws follow from it.
    """

    def __init__(self, rows_per_channel: float, fan_mode: str, seed: int = 0) -> None:
        self.rows_per_channel, self.fan_mode = rows_per_channel, fan_mode
        # A fresh signal is drawn exactly uncorrelated with the one that it will be added to: in a finite
        # population chance correlations would add up over a thousand units.
        self.uncorrelated_with: Population | None = None
        self.random = np.random.default_rng(seed)

    def num_rows(self, channels: int) -> int:
        """The rows that stand for `channels` channels, 8 at least."""
        return max(8, round(channels * self.rows_per_channel))

    def draw_gaussian(
        self,
        channels: int,
        second_moment: float,
        shared: float,
        spatial_profile: Array,
        mean_variation: Array = UNIFORM,
    ) -> Population:
        """A fresh Gaussian signal: x = m + d, with a mean m ~ N(0, c) a channel and d ~ N(0, q − c) a sample.

        `second_moment` is q and `shared` is c.
        """
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
        """The output of the layers `ops` applied to `x` from left to right, and their backward map."""
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
        """(x − μ) / √(σ² + ε), with μ and σ² of every channel; backward 1 / (σ² + ε)."""
        return _batch_norm(x)

    def relu(self, x: Population) -> tuple[Population, BackwardMap]:
        """max(0, x); backward 1 where x > 0, else 0."""
        return _elementwise(x, x.values, (x.values > 0).astype(float))

    def drop(self, x: Population, p: float) -> tuple[Population, BackwardMap]:
        """x · m / (1 − p), m = 0 with probability p and 1 otherwise."""
        mask = self.random.random(x.values.shape) >= p
        return _elementwise(x, x.values, mask / (1 - p))

    def multiply(self, x: Population, factor: float) -> tuple[Population, BackwardMap]:
        """λx; backward λ²."""
        return _elementwise(x, x.values, np.float64(factor))

    def nothing(self, x: Population) -> tuple[Population, BackwardMap]:
        """0, forward and backward."""
        zero = Population(np.zeros_like(x.values), x.spatial_profile)
        return zero, lambda _: zero

    def convolve(self, conv: op.Conv, x: Population) -> tuple[Population, BackwardMap]:
        """A convolution with He's weights, of variance 2 / (k²·fan): q' = 2·C_in/fan · q.

        Backward the gain is 2·C_out/fan. Both gains are multiplied by the share of the k×k window that lies
        inside the image.
        """
        fan = conv.out_channels if self.fan_mode == "fan_out" else conv.in_channels // conv.groups
        forward = 2 * (conv.in_channels // conv.groups) / fan
        backward = 2 * (conv.out_channels // conv.groups) / fan
        lines = window_matrix(x.side, conv.kernel, conv.stride)
        coverage, profile = _split_mean(lines @ x.spatial_profile @ lines.T)
        variation = _mean_variation_after(conv, x, profile, coverage)
        gain, shape = forward * coverage, x.values.shape
        y = self.draw_gaussian(conv.out_channels, gain * x.second_moment, gain * x.shared, profile, variation)

        def back(gradient: Population) -> Population:
            back_coverage, back_profile = _split_mean(lines.T @ gradient.spatial_profile @ lines)
            mean_square = gradient.values.mean() * backward * back_coverage
            return Population(np.full(shape, mean_square), back_profile)

        return y, back

    def pad(self, pad: op.PadChannels, x: Population) -> tuple[Population, BackwardMap]:
        """Every `stride`-th position, and `extra` channels of zeros behind."""
        num_rows = len(x.values)
        zeros = np.zeros((round(pad.extra * self.rows_per_channel), SAMPLES))
        values = np.concatenate([x.values, zeros])

        def back(gradient: Population) -> Population:
            spread = np.zeros_like(x.spatial_profile)
            spread[:: pad.stride, :: pad.stride] = gradient.spatial_profile
            coverage, profile = _split_mean(spread)
            return Population(gradient.values[:num_rows] * coverage, profile)

        return Population(
            values,
            x.spatial_profile[:: pad.stride, :: pad.stride],
            x.mean_variation[:: pad.stride, :: pad.stride],
        ), back

    def pool(self, x: Population) -> tuple[Population, BackwardMap]:
        """3×3 maxima at stride 2, as the maximum of 4 independent numbers."""
        # Neighbours behind a 7×7 convolution at stride 2 share most of what they read: of a window's 9
        # positions about 4 are independent.
        shifted = [self.random.permuted(x.values, axis=1) for _ in range(4)]

        def back(gradient: Population) -> Population:
            return Population(
                np.full(x.values.shape, gradient.values.mean() / 4), np.ones_like(x.spatial_profile)
            )

        return Population(
            np.maximum.reduce(shifted), x.spatial_profile[::2, ::2], x.mean_variation[::2, ::2]
        ), back

    def _paths(self, spec: op.ParallelPaths, x: Population) -> tuple[Population, BackwardMap]:
        """Parallel paths, for which the first stands: the second moments of independent paths add."""
        count = len(spec.paths)
        y, path_backward = self.run(spec.paths[0], x)
        if spec.join == "sum":
            y = Population(y.values * np.sqrt(count), y.spatial_profile, y.mean_variation)

        def back(gradient: Population) -> Population:
            through_path = path_backward(gradient)
            return Population(through_path.values * count, through_path.spatial_profile)

        return y, back


def add_populations(first: Population, second: Population, *, are_squares: bool = False) -> Population:
    """first + second, with profiles weighted by second moment.

    `are_squares`: the values are squared gradients, which add as they are.
    """
    weights = [
        population.values.mean() if are_squares else population.second_moment
        for population in (first, second)
    ]
    if weights[0] == 0:  # a plain net's shortcut has not even F's shape
        return second
    profile = (weights[0] * first.spatial_profile + weights[1] * second.spatial_profile) / sum(weights)
    shared = [population.shared + 1e-300 for population in (first, second)]
    variation = (shared[0] * first.mean_variation + shared[1] * second.mean_variation) / sum(shared)
    return Population(first.values + second.values, profile, variation)


def scale_population(x: Population, factor: Array) -> Population:
    """x · factor, number by number."""
    return Population(x.values * factor, x.spatial_profile, x.mean_variation)


def _elementwise(x: Population, values: Array, slope: Array | np.float64) -> tuple[Population, BackwardMap]:
    """values · slope, a function of x with the derivative `slope`."""
    return Population(values * slope, x.spatial_profile, x.mean_variation), lambda gradient: scale_population(
        gradient, np.square(slope)
    )


def _batch_norm(x: Population) -> tuple[Population, BackwardMap]:
    """Normalises every channel over samples and positions."""
    mean = x.values.mean(1, keepdims=True)
    centred = x.values - mean
    among_samples = np.square(centred).mean(1, keepdims=True)
    among_positions = np.square(mean) * x.mean_variation.mean()
    variance = among_samples + among_positions
    values = centred * np.sqrt(variance / ((variance + EPSILON) * np.maximum(among_samples, 1e-300)))
    profile = among_samples.mean() * x.spatial_profile + np.square(mean).mean() * x.mean_variation
    out_profile = _split_mean(profile)[1]
    # BN removes a channel's mean; the mean that the next ReLU makes follows the signal's size at a position.
    size = np.sqrt(out_profile)
    out = Population(values, out_profile, np.square(size - size.mean()))
    return out, lambda gradient: scale_population(gradient, 1 / (variance + EPSILON))


def _mean_variation_after(conv: op.Conv, x: Population, spatial_profile: Array, coverage: float) -> Array:
    """`mean_variation` behind a convolution, for input means that follow s = √(spatial profile).

    Weight k reads s_k(p) for the output at p (0 outside of the image), and S_k on average over p; the
    output's means vary as Σ_k (s_k(p) − S_k)², relative to Σ_k s_k².
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
    """`values` without their component along `reference`, rescaled to second moment 1.

    Values that are all but parallel to the reference stay as they are: rescaling would blow up rounding.
    """
    size = np.maximum(np.square(reference).sum(axis, keepdims=True), 1e-300)
    remainder = values - (values * reference).sum(axis, keepdims=True) / size * reference
    mean_square = np.square(remainder).mean(axis, keepdims=True)
    return np.where(mean_square > 1e-2, remainder / np.sqrt(np.maximum(mean_square, 1e-2)), values)


def _split_mean(profile: Array) -> tuple[float, Array]:
    """The mean of a profile, and the profile divided by it."""
    mean = float(profile.mean())
    return mean, profile / mean if mean else np.ones_like(profile)
