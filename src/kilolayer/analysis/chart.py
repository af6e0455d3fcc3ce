"""What an analysis shows, as plain values: pages, figures and terminals draw the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Series:
    """A quantity along an axis; None where there is no value.

    A "predicted" series is the theory that belongs to the "measured" ones of its chart.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    kind: Literal["measured", "predicted"] = "measured"


@dataclass(frozen=True)
class Chart:
    """Series over one axis, with the equation that they belong to in plain Unicode.

    `note` says in a sentence what there is to see, with the figures that show it.
    """

    name: str
    title: str
    equation: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False
    note: str = ""


class Analysis(Protocol):
    """What every analysis returns: a frozen dataclass that JSON can hold (`values.to_json`)."""

    @property
    def network(self) -> str:
        """The network's name."""

    def charts(self) -> tuple[Chart, ...]:
        """What to look at, the most telling first."""

    def summary(self) -> tuple[tuple[str, str], ...]:
        """The figures that matter, each with its name and unit, for a terminal."""
