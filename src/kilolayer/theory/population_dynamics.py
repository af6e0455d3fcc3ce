"""Population dynamics: a small random population stands for the signal of a batch in a network.

A population is an array of rows (channels) × images × positions: a thumbnail, as wide and as deep as the
network, on few positions and without a picture in it. Every image has a norm of its own, since BN
fixes only the mean square of the batch; so do the positions of an image. With G the mean products of the
input's columns, a convolution draws every output channel afresh from a Gaussian:

    y_c ~ N(0, G),        y_c = Σ_{t,d} W_{c,t,d} x_d(· + t),        W ~ N(0, gain / (k²·rows))

The second form is how it is drawn. Every other layer is applied to the numbers themselves.

Backward, ∂ε/∂x goes through the transposed weights of the same draw. Fresh weights ("gradient independence")
would do for many channels; with 8 to 16 of them gradients came out up to thirty times too large.

Maps larger than `GRID` × `GRID` pixels are represented by `GRID` × `GRID` of their positions. The zeros
around them are then softened, so that the share of signal that borders take is the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from kilolayer.units import ops as op
from kilolayer.units.ops import Op, Ops

Array = NDArray[np.floating]

GRID = 8
"""The most positions a side that a population keeps of a map."""
MAX_ROWS = 128
"""The most rows of a population; wider layers are represented by so many of their channels."""
EPSILON = 1e-5
"""BN's ε."""


@dataclass(frozen=True)
class Population:
    """A signal, or the gradient of the loss with respect to it."""

    values: Array
    """(rows, images, grid, grid)."""
    side: int
    """Pixels a side of the map that the grid stands for."""

    @property
    def second_moment(self) -> float:
        """q = E[x²]."""
        return float(np.square(self.values, dtype=np.float64).mean())

    @property
    def common(self) -> float:
        """The part of q that all images and positions share: the channels' squared means."""
        return float(np.square(self.values.mean((1, 2, 3), dtype=np.float64)).mean())

    @property
    def image_moments(self) -> Array:
        """q_i = E[x²] of every image i."""
        return np.asarray(np.square(self.values, dtype=np.float64).mean((0, 2, 3)))


BackwardMap = Callable[[Population], Population]
"""Maps ∂ε/∂output to ∂ε/∂input."""


class MeanFieldInterpreter:
    """Runs layers on populations: the `PropagationRules` that a layer's `carry` calls.

    Every rule takes a population x and returns the layer's output and its backward map.

    Args:
        rows_per_channel: rows of a population that stand for one channel, at most 1.
        fan_mode: "fan_in" or "fan_out", which of a convolution's channels set its weights' variance.
        seed: all random draws follow from it.
        dtype: float32 is faster; float64 holds signals above 1e38.
    """

    def __init__(
        self, rows_per_channel: float, fan_mode: str, seed: int = 0, dtype: type = np.float32
    ) -> None:
        self.rows_per_channel, self.fan_mode, self.dtype = rows_per_channel, fan_mode, dtype
        self.random = np.random.default_rng(seed)

    def num_rows(self, channels: int) -> int:
        """The rows that stand for `channels` channels."""
        return max(1, min(MAX_ROWS, round(channels * self.rows_per_channel)))

    def draw_normal(self, *shape: int) -> Array:
        """Independent standard normal numbers."""
        return self.random.standard_normal(shape, dtype=self.dtype)

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
        """x̂ = (x − μ) / √(σ² + ε), μ and σ² of every channel; backward (g − E g − x̂·E[g x̂]) / √(σ² + ε)."""
        return _batch_norm(x)

    def relu(self, x: Population) -> tuple[Population, BackwardMap]:
        """max(0, x); backward g where x > 0, else 0."""
        return _scaled(x, (x.values > 0).astype(self.dtype))

    def drop(self, x: Population, p: float) -> tuple[Population, BackwardMap]:
        """x · m / (1 − p), m = 0 with probability p and 1 otherwise."""
        kept = self.random.random(x.values.shape) >= p
        return _scaled(x, kept.astype(self.dtype) / (1 - p))

    def multiply(self, x: Population, factor: float) -> tuple[Population, BackwardMap]:
        """λx; backward λg."""
        return _scaled(x, float(factor))

    def nothing(self, x: Population) -> tuple[Population, BackwardMap]:
        """0, forward and backward."""
        zero = Population(np.zeros_like(x.values), x.side)
        return zero, lambda _: zero

    def convolve(self, conv: op.Conv, x: Population) -> tuple[Population, BackwardMap]:
        """A convolution with He's weights, of variance 2 / (k²·fan): q' = 2·C_in/fan · q.

        Backward the gain is 2·C_out/fan, divided by stride².
        """
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        fan = conv.out_channels if self.fan_mode == "fan_out" else inputs
        rows, columns = self.num_rows(conv.out_channels), len(x.values)
        weights = self.draw_normal(rows, conv.kernel**2, columns)
        forward = (2 * inputs / fan / (columns * conv.kernel**2)) ** 0.5
        y, subsample_back = _subsample(_apply_weights(weights * forward, x), conv.stride)
        # Backward, input rows read output rows through mirrored taps.
        mirrored = weights[:, ::-1].transpose(2, 1, 0) * (2 * outputs / fan / (rows * conv.kernel**2)) ** 0.5

        def back(gradient: Population) -> Population:
            return _apply_weights(mirrored, subsample_back(gradient))

        return y, back

    def pad(self, pad: op.PadChannels, x: Population) -> tuple[Population, BackwardMap]:
        """Every `stride`-th position, and `extra` channels of zeros behind."""
        num_rows = len(x.values)
        thinned, thin_back = _subsample(x, pad.stride)
        extra = round(pad.extra * self.rows_per_channel)
        zeros = np.zeros((extra, *thinned.values.shape[1:]), self.dtype)
        padded = Population(np.concatenate([thinned.values, zeros]), thinned.side)
        return padded, lambda gradient: thin_back(Population(gradient.values[:num_rows], gradient.side))

    def pool(self, x: Population) -> tuple[Population, BackwardMap]:
        """3×3 maxima at stride 2, as the maximum of 4 independent numbers.

        That holds for pictures, smooth over some four pixels: behind a 7×7 convolution at stride 2 about 4 of
        a window's 9 positions are independent. On white noise nearly all are, and E[x²] is half as large
        again.
        """
        shifts = [(down, right) for down in (0, 1) for right in (0, 1)]
        windows = np.stack([np.roll(x.values, shift, (2, 3)) for shift in shifts])
        chosen = windows.argmax(0)
        pooled, thin_back = _subsample(Population(windows.max(0), x.side), 2)

        def back(gradient: Population) -> Population:
            spread = thin_back(gradient)
            parts = [
                np.roll(np.where(chosen == index, spread.values, 0), (-down, -right), (2, 3))
                for index, (down, right) in enumerate(shifts)
            ]
            return Population(np.asarray(sum(parts)), spread.side)

        return pooled, back

    def _paths(self, spec: op.ParallelPaths, x: Population) -> tuple[Population, BackwardMap]:
        """Parallel paths, for which the first stands: the second moments of independent paths add."""
        factor = len(spec.paths) ** 0.5
        y, path_backward = self.run(spec.paths[0], x)
        if spec.join == "sum":
            y = scale_population(y, factor)
        return y, lambda gradient: scale_population(path_backward(gradient), factor)


def add_populations(first: Population, second: Population) -> Population:
    """first + second; a plain net's shortcut, which is zero, need not have F's shape."""
    if first.values.shape != second.values.shape:
        return second
    return Population(first.values + second.values, second.side)


def scale_population(x: Population, factor: Array | float) -> Population:
    """x · factor, number by number."""
    return Population(x.values * factor, x.side)


def _scaled(x: Population, slope: Array | float) -> tuple[Population, BackwardMap]:
    return scale_population(x, slope), lambda gradient: scale_population(gradient, slope)


def _batch_norm(x: Population) -> tuple[Population, BackwardMap]:
    centred = x.values - x.values.mean((1, 2, 3), keepdims=True)
    factor = 1 / np.sqrt(np.square(centred).mean((1, 2, 3), keepdims=True) + x.values.dtype.type(EPSILON))
    values = centred * factor

    def back(gradient: Population) -> Population:
        g = gradient.values
        along = (g * values).mean((1, 2, 3), keepdims=True)
        return Population((g - g.mean((1, 2, 3), keepdims=True) - values * along) * factor, gradient.side)

    return Population(values, x.side), back


def _subsample(x: Population, stride: int) -> tuple[Population, BackwardMap]:
    """Every `stride`-th pixel. A grid coarser than the pixels keeps its positions where it can."""
    side = -(-x.side // stride)
    grid = x.values.shape[2]
    step = -(-grid // min(side, GRID))

    def back(gradient: Population) -> Population:
        values = gradient.values
        if step > 1:
            values = np.zeros((len(values), *x.values.shape[1:]), values.dtype)
            values[:, :, ::step, ::step] = gradient.values
        # Of the pixels that the grid stands for, only one in (stride/step)² has a gradient.
        return Population(values * (step / stride), x.side)

    return Population(np.ascontiguousarray(x.values[:, :, ::step, ::step]), side), back


def _apply_weights(weights: Array, x: Population) -> Population:
    """A convolution by `weights`, (rows of y, k², rows of x)."""
    kernel = round(weights.shape[1] ** 0.5)
    taps = _windows(x, kernel) if kernel > 1 else x.values
    y = _multiply(weights.reshape(len(weights), -1), taps.reshape(kernel**2 * len(x.values), -1))
    return Population(y.reshape(-1, *x.values.shape[1:]), x.side)


_ONE_PRODUCT = Lock()


def _multiply(first: Array, second: Array) -> Array:
    """first @ second on one core: the products are small, and BLAS's threads wait for each other.

    With two processes on two cores they waited forty times as long as they computed.
    """
    # The number of threads is the process's: the lock keeps two callers from restoring each other's.
    with _ONE_PRODUCT, _blas().limit(limits=1):
        return np.asarray(first @ second)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _windows(x: Population, kernel: int) -> Array:
    """(k², rows, images, grid, grid): x shifted by every tap of a k×k kernel, with zeros around it.

    Zeros take a share of the signal that falls as 1/side. On a grid of fewer lines they would take more, so
    only a share grid/side of them stays; the positions of the opposite edge stand in place of the others.
    """
    grid, margin = x.values.shape[2], kernel // 2
    around = ((0, 0), (0, 0), (margin, margin), (margin, margin))
    padded = np.pad(x.values, around, mode="wrap" if grid < x.side else "constant")
    if grid < x.side:
        padded *= _border_mask(grid, x.side, margin)
    taps = range(kernel)
    return np.stack([padded[:, :, i : i + grid, j : j + grid] for i in taps for j in taps])


@cache
def _border_mask(grid: int, side: int, margin: int) -> Array:
    """0 for a share grid/side of the lines around the grid, 1 elsewhere; opposite edges are alike."""
    mask = np.ones((grid + 2 * margin,) * 2, np.float32)
    zeros = np.arange(grid) * grid // side != np.arange(1, grid + 1) * grid // side
    inside = slice(margin, grid + margin)
    for edge in (slice(None, margin), slice(grid + margin, None)):
        mask[edge, inside] = ~zeros
        mask[inside, edge] = ~zeros[:, None]
    return mask
