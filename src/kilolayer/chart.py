"""The charts of an analysis as plain values, which pages, figures and terminals draw."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

SeriesKind = Literal["measured", "predicted", "reference"]


@dataclass(frozen=True)
class Series:
    """A quantity along an axis; None marks a missing value.

    A "predicted" series is the theory for the "measured" series of the same chart. A "reference" series is
    computed, too, but is no prediction of theory: the binomial distribution, say, or a parabola.

    >>> Series("signal", (0.0, 1.0), (1.0, None)).has_values
    True
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    kind: SeriesKind = "measured"

    @property
    def has_values(self) -> bool:
        return any(y is not None and math.isfinite(y) for y in self.y)


@dataclass(frozen=True)
class Chart:
    """Series over one axis, with their equation in plain Unicode.

    `note` is a sentence about the chart, with its figures. `stages` are the x at which the measured tensors
    change their shape: a line must not cross them.
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
        """The chart without the series that have no finite value."""
        return replace(self, series=tuple(series for series in self.series if series.has_values))

    def segments(self, series: Series) -> list[list[tuple[float, float]]]:
        """The parts of a series that a line may join; a missing value or a stage ends a part."""
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
    """The result of an analysis: a frozen dataclass that `values.to_json` can write."""

    @property
    def network(self) -> str:
        """The network's name."""

    def charts(self) -> tuple[Chart, ...]:
        """The charts, the most important first."""

    def summary(self) -> tuple[tuple[str, str], ...]:
        """The main figures as (name, value with unit), for a terminal."""


@runtime_checkable
class HasFinding(Protocol):
    """An analysis with a finding."""

    def finding(self) -> str:
        """One sentence: what the figures mean for the network, and whether that is good."""
