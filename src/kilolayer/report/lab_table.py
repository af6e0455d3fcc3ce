"""The numbers of a chart as a table."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Context

from kilolayer.chart import Chart
from kilolayer.report.canvas import format_tick
from kilolayer.report.clean_text import one_line
from kilolayer.report.lab_data import round_value, series_label

_FOUR = Context(prec=4, rounding=ROUND_HALF_UP)
"""Four digits, rounded as a browser rounds."""


def chart_header(chart: Chart) -> tuple[str, ...]:
    """The label of the x axis and the labels of all series."""
    return (one_line(chart.x_label), *(series_label(series.name, series.kind) for series in chart.series))


def chart_rows(chart: Chart) -> list[tuple[str, ...]]:
    """A row for each x of any series, from left to right, with the values there."""
    columns = [dict(zip(series.x, series.y, strict=True)) for series in chart.series]
    places = sorted({x for column in columns for x in column if math.isfinite(x)})
    return [(_cell(x), *(_cell(column.get(x)) for column in columns)) for x in places]


def _cell(value: float | None) -> str:
    rounded = round_value(value)
    if rounded is None:
        return "–"
    return format_tick(rounded if rounded.is_integer() else float(_FOUR.create_decimal(rounded)))
