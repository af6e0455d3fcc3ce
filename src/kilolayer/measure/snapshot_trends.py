"""Trends of an analysis over the snapshots of a run: its metrics while the network learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kilolayer.chart import Analysis, Chart, Series


@runtime_checkable
class TrackedAnalysis(Protocol):
    """An analysis with metrics to track over training."""

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """(name, value) of each metric."""


@dataclass(frozen=True)
class SnapshotTrends:
    """Metrics of the analysis `of` against iterations; `values[i]` are the values of `names[i]`."""

    network: str
    of: str
    iterations: tuple[int, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    def charts(self) -> tuple[Chart, ...]:
        return tuple(self._chart(*pair) for pair in zip(self.names, self.values, strict=True))

    def summary(self) -> tuple[tuple[str, str], ...]:
        return tuple(
            (f"{name}, over training", f"{values[0]:.3g} → {values[-1]:.3g}")
            for name, values in zip(self.names, self.values, strict=True)
        )

    def _chart(self, name: str, values: tuple[float, ...]) -> Chart:
        x = tuple(float(iteration) for iteration in self.iterations)
        return Chart(
            f"training-{'-'.join(name.split())}",
            f"{name[0].upper()}{name[1:]}, over training",
            "",
            "iterations",
            name,
            (Series(name, x, values),),
            note=f"{values[0]:.3g} at the initialisation, {values[-1]:.3g} at the end",
        )


def collect_trends(analysis_name: str, snapshots: Sequence[tuple[int, Analysis]]) -> SnapshotTrends | None:
    """The trends of one network's metrics; None for fewer than two snapshots with tracked metrics.

    Args:
        analysis_name: the analysis's name in the registry.
        snapshots: (iteration, analysis at that time), in order.
    """
    tracked = [
        (iteration, analysis.tracked_metrics())
        for iteration, analysis in snapshots
        if isinstance(analysis, TrackedAnalysis)
    ]
    if len(tracked) < 2:
        return None
    names = tuple(name for name, _ in tracked[0][1])
    values = tuple(tuple(dict(trend).get(name, float("nan")) for _, trend in tracked) for name in names)
    return SnapshotTrends(
        snapshots[0][1].network, analysis_name, tuple(iteration for iteration, _ in tracked), names, values
    )
