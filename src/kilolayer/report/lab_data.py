"""Analyses as the JSON of interactive charts: networks side by side, with a slider for snapshots."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kilolayer.chart import Analysis, Chart, HasFinding, Series
from kilolayer.measure.snapshot_trends import SnapshotTrends
from kilolayer.report.clean_text import one_line, shorten_line
from kilolayer.system.terminal import truncate_middle

Time = int | None
"""Iterations of training; None for an analysis without a time."""

_LONGEST = 60
"""The longest name on a page, in characters."""


@dataclass
class ChartRow:
    """One chart of all networks that have it: the snapshots of each network, in the order of time."""

    analysis: str
    panels: dict[str, list[tuple[Time, Chart]]] = field(default_factory=dict)

    @property
    def charts(self) -> list[Chart]:
        return [chart for frames in self.panels.values() for _, chart in frames]


FLAT = 1e-3
"""Values that differ by a smaller share are drawn as a flat line, so that rounding makes no hills."""

FigureName = tuple[str, str]
"""The name of a figure: its analysis, and its own name."""


@dataclass
class Lab:
    """The content of a page. `figures` are the summaries, by network, time and name.

    `findings` are sentences about the last snapshot, by analysis and network.
    """

    rows: list[ChartRow]
    figures: dict[str, dict[Time, dict[FigureName, str]]]
    findings: dict[str, dict[str, str]]
    iterations: list[int]

    @property
    def networks(self) -> list[str]:
        return list(self.figures)

    @property
    def figure_names(self) -> list[FigureName]:
        """The figures of all networks, grouped by analysis."""
        values = [values for moments in self.figures.values() for values in moments.values()]
        names = dict.fromkeys(name for figures in values for name, value in figures.items() if value)
        groups = list(dict.fromkeys(group for group, _ in names))
        return sorted(names, key=lambda name: groups.index(name[0]))

    def first_row(self, analysis: str) -> int:
        """The number, from 1, of the first row of an analysis; 0 without a row."""
        return next((n for n, row in enumerate(self.rows, 1) if row.analysis == analysis), 0)

    @property
    def tabulated(self) -> dict[str, dict[Time, dict[FigureName, str]]]:
        """`figures` of the networks that have at least one."""
        return {
            network: moments
            for network, moments in self.figures.items()
            if any(any(figures.values()) for figures in moments.values())
        }


def gather_lab(snapshots: Sequence[tuple[Time, Analysis]]) -> Lab:
    """The snapshots, by chart and network. A second analysis of the same moment belongs to another network.

    A series or a chart without values is left out.
    """
    lab, rows = (
        Lab([], {}, {}, sorted({at for at, _ in snapshots if at is not None})),
        dict[FigureName, ChartRow](),
    )
    entries = _by_network(snapshots)
    lab.findings = {analysis_name(entry): {} for _, _, entry in entries if isinstance(entry, HasFinding)}
    for network, at, analysis in entries:
        group = analysis_name(analysis)
        for chart in (chart.with_values() for chart in analysis.charts()):
            if chart.series:
                row = rows.setdefault((_kind(analysis), chart.name), ChartRow(group))
                row.panels.setdefault(network, []).append((at, chart))
        figures = {(group, one_line(name)): one_line(value) for name, value in analysis.summary()}
        lab.figures.setdefault(network, {}).setdefault(at, {}).update(figures)
    for network, _, analysis in sorted(entries, key=lambda entry: _order(entry[1])):
        if isinstance(analysis, HasFinding):
            lab.findings[analysis_name(analysis)][network] = one_line(analysis.finding())
    for row in rows.values():
        for frames in row.panels.values():
            frames.sort(key=lambda frame: _order(frame[0]))
    lab.rows.extend(rows.values())
    return lab


def analysis_name(analysis: Analysis) -> str:
    """The heading of an analysis, such as "Gradient"; trends over training have their analysis's heading."""
    if isinstance(analysis, SnapshotTrends):
        return analysis.of.capitalize()
    return str(getattr(analysis, "heading", type(analysis).__name__))


def _kind(analysis: Analysis) -> str:
    """The identity of an analysis; trends over training are one kind for each analysis that they follow."""
    return f"{type(analysis).__name__} {analysis_name(analysis)}"


def _by_network(snapshots: Sequence[tuple[Time, Analysis]]) -> list[tuple[str, Time, Analysis]]:
    """Every analysis with the displayed name of its network, which is unique."""
    occurrences: Counter[tuple[str, str, Time]] = Counter()
    keys = []
    for at, analysis in snapshots:
        moment = _kind(analysis), analysis.network, at
        keys.append((analysis.network, occurrences[moment]))
        occurrences[moment] += 1
    names: dict[tuple[str, int], str] = {}
    for key in keys:
        if key not in names:
            name = truncate_middle(one_line(key[0]), _LONGEST)
            numbered = (name if number == 1 else f"{name} ({number})" for number in count(1))
            names[key] = next(free for free in numbered if free not in names.values())
    return [(names[key], at, analysis) for key, (at, analysis) in zip(keys, snapshots, strict=True)]


def lab_json(lab: Lab) -> dict[str, Any]:
    """The lab as JSON. Equal x axes are stored once, since those of a thousand units are large."""
    pool: dict[tuple[float, ...], int] = {}
    rows = [_row(row, pool) for row in lab.rows]
    return {
        "iterations": lab.iterations,
        "xs": [list(x) for x in pool],
        "rows": rows,
        "figures": [_figures(moments, lab.figure_names) for moments in lab.tabulated.values()],
    }


def series_label(name: str, kind: str) -> str:
    """The label of a series, which says if it is a prediction."""
    is_clear = kind != "predicted" or re.search("predict|theor", name, re.IGNORECASE)
    return shorten_line(name, _LONGEST) + ("" if is_clear else ", predicted")


def _outside_note(row: ChartRow, series_key: FigureName, log: bool) -> str:
    """An addition to the label of a series without positive values, on a logarithmic axis."""
    same_series = (
        candidate
        for chart in row.charts
        for candidate in chart.series
        if (candidate.name, candidate.kind) == series_key
    )
    is_visible = not log or any((round_value(y) or 0) > 0 for series in same_series for y in series.y)
    return "" if is_visible else ", nowhere above 0"


def _order(at: Time) -> int:
    return -1 if at is None else at


def _figures(moments: dict[Time, dict[FigureName, str]], names: list[FigureName]) -> list[dict[str, Any]]:
    timeless = moments.get(None, {})
    return [
        {"at": at, "values": [(timeless | moments[at]).get(name, "") for name in names]}
        for at in sorted(moments, key=_order)
    ]


def _row(row: ChartRow, pool: dict[tuple[float, ...], int]) -> dict[str, Any]:
    """A row's axes (which all networks and snapshots share), its series, and the curves of every panel."""
    chart, all_series = row.charts[0], [series for chart in row.charts for series in chart.series]
    kinds = list(dict.fromkeys((series.name, series.kind) for series in all_series))
    names = list(dict.fromkeys(name for name, _ in kinds))
    places = [float(x) for series in all_series for x in series.x if math.isfinite(x)]
    low, high, log = value_range([round_value(y) for series in all_series for y in series.y], chart.log_y)
    return {
        "x": one_line(chart.x_label),
        "y": one_line(chart.y_label),
        "log": log,
        "range": [low, high],
        "across": _ends(places),
        "whole": all(position.is_integer() for position in places),
        # A prediction has the colour of the measurement with the same name.
        "series": [
            {
                "name": shorten_line(name, _LONGEST),
                "label": series_label(name, kind) + _outside_note(row, (name, kind), log),
                "kind": kind,
                "number": names.index(name),
            }
            for name, kind in kinds
        ],
        "panels": [
            {"network": network, "frames": [_frame(at, chart, kinds, pool) for at, chart in frames]}
            for network, frames in row.panels.items()
        ],
    }


def _frame(
    at: Time, chart: Chart, kinds: Sequence[tuple[str, str]], pool: dict[tuple[float, ...], int]
) -> dict[str, Any]:
    curves = []
    for series in chart.series:
        x, y = _points_in_order(series)
        curves.append([kinds.index((series.name, series.kind)), pool.setdefault(x, len(pool)), y])
    return {"at": at, "note": one_line(chart.note), "curves": curves, "stages": list(chart.stages)}


def _points_in_order(series: Series) -> tuple[tuple[float, ...], list[float | None]]:
    """The points of a series from left to right, without those at a non-finite x."""
    points = sorted(
        ((x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x)), key=lambda at: at[0]
    )
    return tuple(x for x, _ in points), [round_value(y) for _, y in points]


def round_value(y: float | None) -> float | None:
    """A value, rounded to five digits, more than a screen shows; None if it is not finite."""
    return float(f"{y:.5g}") if y is not None and math.isfinite(y) else None


def _ends(values: Iterable[float]) -> list[float]:
    finite = [value for value in values if math.isfinite(value)]
    return [min(finite, default=0.0), max(finite, default=1.0)]


def value_range(values: Iterable[float | None], log: bool) -> tuple[float, float, bool]:
    """The lower and the upper end of an axis, with a margin, and whether the axis is logarithmic.

    A logarithmic axis needs positive values; over less than a factor of 3 it would have hardly a tick.
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if log and positive and max(positive) >= 3 * min(positive):
        # Beyond these limits the browser's arithmetic overflows.
        return max(min(positive), 1e-300) / 1.5, min(max(positive), 1e300) * 1.5, True
    low, high = _ends(finite)
    flat = high - low < FLAT * max(abs(low), abs(high))
    room = abs(high) * 0.1 if flat else 0.06 * (high - low) or 1.0
    return low - room if low < 0 or low > room * 4 else 0.0, high + room, False
