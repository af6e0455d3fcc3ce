"""What an analysis shows, as plain values: pages, figures and terminals draw the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True)
class Series:
    """A quantity along an axis; None where there is no value.

    A "predicted" series is the theory that belongs to the "measured" ones of its chart.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    kind: Literal["measured", "predicted"] = "measured"

    @property
    def has_values(self) -> bool:
        return any(y is not None and math.isfinite(y) for y in self.y)


@dataclass(frozen=True)
class Chart:
    """Series over one axis, with the equation that they belong to in plain Unicode.

    `note` says in a sentence what there is to see, with the figures that show it. `stages` are the x at which
    the tensors measured take another shape: no line is drawn from a point before one to a point behind it.
    """

    name: str
    title: str
    equation: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False
    note: str = ""
    stages: tuple[float, ...] = ()

    def with_values(self) -> Chart:
        """The chart without the series that have no finite value, which nothing can be drawn of."""
        return replace(self, series=tuple(series for series in self.series if series.has_values))

    def segments(self, series: Series) -> list[list[tuple[float, float]]]:
        """The points of a series that a line may join: broken where a value is missing or a stage begins."""
        pieces: list[list[tuple[float, float]]] = [[]]
        before = -math.inf
        for x, y in zip(series.x, series.y, strict=True):
            if y is None or any(before < stage <= x for stage in self.stages):
                pieces.append([])
            if y is not None:
                pieces[-1].append((x, y))
                before = x
        return [piece for piece in pieces if piece]


class Analysis(Protocol):
    """What every analysis returns: a frozen dataclass that JSON can hold (`values.to_json`)."""

    @property
    def network(self) -> str:
        """The network's name."""

    def charts(self) -> tuple[Chart, ...]:
        """What to look at, the most telling first."""

    def summary(self) -> tuple[tuple[str, str], ...]:
        """The figures that matter, each with its name and unit, for a terminal."""


@runtime_checkable
class HasFinding(Protocol):
    """An analysis that says what it has found."""

    def finding(self) -> str:
        """What the figures say of the network, and whether that is good, in one sentence."""
