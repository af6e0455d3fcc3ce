"""The loss landscape around a network's weights, along filter-normalised random directions (Li et al. 2018).

    L(θ + α δ + β η),   ‖δ_i‖ = ‖η_i‖ = ‖θ_i‖ for every filter i          (arXiv 1712.09913, Sec. 4)

Biases and BN's scales and shifts keep their values, as in the paper. The moved weights are passed to the
call and never written into the network, so the network cannot change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from kilolayer.chart import Chart, Series
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.preservation import preserve_state
from kilolayer.measure.series import share_text

Normalisation = Literal["batch", "running"]
LINE, GRID, REACH, NEAR = 21, 9, 1.0, 0.02


@dataclass(frozen=True)
class Landscape:
    """The mean cross-entropy L of one batch around the weights θ; None for a loss that is not finite."""

    network: str
    mode: Normalisation
    """The statistics that BN uses: the batch's under the moved weights, or its running ones."""
    images: int
    seed: int
    steps: tuple[float, ...]
    """The values of α of `line`."""
    line: tuple[float | None, ...]
    """L(θ + α δ)."""
    ticks: tuple[float, ...]
    """The values of α and of β of `grid`."""
    grid: tuple[tuple[float | None, ...], ...]
    """`grid[i][j]` = L(θ + `ticks[i]` δ + `ticks[j]` η)."""
    centre: float
    """L(θ)."""
    slope: float
    """dL/dα at θ."""
    curvature: float
    """d²L/dα² at θ: L + slope·α + curvature·α²/2 is the line's parabola."""

    def finding(self) -> str:
        points = self.points
        lower = [loss for loss in points.values() if loss < self.centre]
        loss_text = f"the loss is {self.centre:.4g} at the weights"
        curved = f"curvature along a random direction {self.curvature:.3g}"
        if not lower:
            return f"{loss_text}, the lowest of the {len(points)} points measured around them ({curved})"
        (alpha, beta), lowest = min(points.items(), key=lambda point: point[1])
        return (
            f"{loss_text}, which are not the lowest point: of the {len(points)} points measured around them "
            f"{len(lower)} lie lower, by {self.centre - lowest:.2g} at most, at α = {alpha:.3g}, "
            f"β = {beta:.3g} ({curved})"
        )

    @property
    def points(self) -> dict[tuple[float, float], float]:
        """Every finite loss by (α, β): of the square, of the line and at the weights."""
        line = {(step, 0.0): loss for step, loss in zip(self.steps, self.line, strict=True)}
        square = {
            (alpha, beta): loss
            for alpha, row in zip(self.ticks, self.grid, strict=True)
            for beta, loss in zip(self.ticks, row, strict=True)
        }
        losses = square | line | {(0.0, 0.0): _finite_or_none(self.centre)}
        return {point: loss for point, loss in losses.items() if loss is not None}

    def charts(self) -> tuple[Chart, ...]:
        return _line_chart(self), _grid_chart(self)

    def summary(self) -> tuple[tuple[str, str], ...]:
        losses = list(self.points.values())
        extremes = f"{min(losses):.4g}, {max(losses):.4g}" if losses else "not finite"
        return (
            ("loss at the weights", f"{self.centre:.4g}"),
            ("curvature d²L/dα² there", f"{self.curvature:.4g}"),
            ("loss at α = −1 and 1", f"{_loss_text(self.line[0])}, {_loss_text(self.line[-1])}"),
            ("lowest and highest loss of the slice", extremes),
            ("share of the slice not below the centre", share_text(_share_above(losses, self.centre))),
            ("BN's statistics", self.mode),
        )


def measure_landscape(
    analysis_input: AnalysisInput,
    *,
    seed: int = 0,
    line: int = LINE,
    grid: int = GRID,
    reach: float = REACH,
    normalisation: Normalisation = "batch",
) -> Landscape:
    """Measures the loss of the batch on a line and on a square around the weights.

        L(θ + α δ + β η),   ‖δ_i‖ = ‖η_i‖ = ‖θ_i‖ for every filter i

    Args:
        analysis_input: the network and its batch.
        seed: chooses the two random directions.
        line: points on the line.
        grid: points on a side of the square.
        reach: the largest α and β.
        normalisation: "batch" lets BN take the batch's statistics anew at every point. Then the scale of a
            filter before a BN does not matter, which justifies scaling its direction by its norm. "running"
            keeps the statistics of the unmoved weights, which do not fit the moved ones.

    Source: Li et al. 2018 (arXiv 1712.09913), Sec. 4.

    >>> from kilolayer.networks import build, describe
    >>> network = describe("preact_resnet8_cifar")
    >>> x, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    >>> given = AnalysisInput(
    ...     "net", build(network), x, labels, lambda seed: build(network), lambda count: (x, labels), network
    ... )
    >>> result = measure_landscape(given, line=3, grid=1)
    >>> result.steps, result.line[1] == result.centre
    ((-1.0, 0.0, 1.0), True)
    """
    model = analysis_input.model
    first, second = (filter_normalised_directions(model, seed * 2 + i) for i in range(2))

    def loss(alpha: float, beta: float = 0.0) -> float:
        moved = {
            name: weight + alpha * first[name] + beta * second[name]
            for name, weight in model.named_parameters()
            if name in first
        }
        with preserve_state(model, training=normalisation == "batch"), torch.no_grad():
            return float(
                functional.cross_entropy(
                    functional_call(model, moved, (analysis_input.x,)), analysis_input.labels
                )
            )

    steps, ticks = _evenly_spaced(line, reach), _evenly_spaced(grid, reach)
    before, centre, behind = loss(-NEAR), loss(0.0), loss(NEAR)
    return Landscape(
        network=analysis_input.name,
        mode=normalisation,
        images=len(analysis_input.x),
        seed=seed,
        steps=steps,
        line=tuple(_finite_or_none(loss(step)) for step in steps),
        ticks=ticks,
        grid=tuple(tuple(_finite_or_none(loss(alpha, beta)) for beta in ticks) for alpha in ticks),
        centre=centre,
        slope=(behind - before) / (2 * NEAR),
        curvature=(behind - 2 * centre + before) / NEAR**2,
    )


def filter_normalised_directions(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random direction for every weight of two dimensions or more, with the norm of each of its filters.

    Filter i of a weight w of shape (out, …) is w[i], which makes one output.

    >>> layer = nn.Linear(3, 2)
    >>> direction = filter_normalised_directions(layer, seed=0)["weight"]
    >>> torch.allclose(direction.norm(dim=1), layer.weight.norm(dim=1))
    True
    """
    random = torch.Generator().manual_seed(seed)
    directions = {}
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        direction = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight)
        sizes = weight.detach().flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)
        directions[name] = direction * sizes.view(-1, *[1] * (weight.ndim - 1))
    return directions


def _evenly_spaced(count: int, reach: float) -> tuple[float, ...]:
    return tuple(reach * (2 * i / max(1, count - 1) - 1) for i in range(count))


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss_text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _share_above(values: Sequence[float], centre: float) -> float:
    return sum(value >= centre for value in values) / max(1, len(values))


def _line_chart(result: Landscape) -> Chart:
    near = [step for step in result.steps if abs(step) <= 0.5]
    parabola = [result.centre + result.slope * step + result.curvature * step**2 / 2 for step in near]
    return Chart(
        "line",
        "Loss along a filter-normalised direction",
        "L(θ + α δ), ‖δ_i‖ = ‖θ_i‖;  L(θ) + α L' + α² L''/2",
        "α",
        "mean cross-entropy",
        (
            Series("measured", result.steps, result.line),
            Series("parabola of slope and curvature at θ", tuple(near), tuple(parabola), "reference"),
        ),
        note=f"{result.centre:.3g} at the weights, curvature {result.curvature:.3g}",
    )


def _grid_chart(result: Landscape) -> Chart:
    """The square as lines, one for every second β: lines can be read without colours."""
    lines = [
        Series(f"β = {beta:+.2g}", result.ticks, tuple(row[column] for row in result.grid))
        for column, beta in enumerate(result.ticks)
        if column % 2 == 0
    ]
    return Chart(
        "square",
        "Loss over a square of two filter-normalised directions",
        "L(θ + α δ + β η)",
        "α",
        "mean cross-entropy",
        tuple(lines),
        note="a line for every second β",
    )
