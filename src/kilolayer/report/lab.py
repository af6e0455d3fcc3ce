"""Analyses as one interactive HTML page: charts with a slider for time, self-contained, without requests."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context
from pathlib import Path
from typing import TYPE_CHECKING

from kilolayer.chart import Analysis, Chart
from kilolayer.errors import InputError
from kilolayer.report import page_assets
from kilolayer.report.canvas import format_tick
from kilolayer.report.clean_text import one_line
from kilolayer.report.extra import report_extra
from kilolayer.report.lab_data import Time, gather_lab, lab_json, round_value, series_label
from kilolayer.report.page import template_environment
from kilolayer.system import durable

if TYPE_CHECKING:
    from markupsafe import Markup


def write_lab(
    analyses: Sequence[tuple[int | None, Analysis]],
    path: Path,
    title: str = "Propagation lab",
    provenance: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page of some analyses, each with the iteration of its network, or None.

    Networks stand side by side in the given order, on common axes. A slider selects the snapshots of a
    network; snapshots with the same network name belong together. `provenance` are pairs of name and value:
    command, version, machine, date. Raises `InputError` without analyses, or where the path cannot be
    written.
    """
    durable.write_file(path, render_lab(analyses, title, provenance).encode())
    return path


def render_lab(
    analyses: Sequence[tuple[int | None, Analysis]],
    title: str = "Propagation lab",
    provenance: Sequence[tuple[str, str]] = (),
) -> str:
    """The page of `write_lab` as HTML."""
    if not analyses:
        raise InputError("no analysis to show on a page; give at least one")
    lab = gather_lab(analyses)
    environment = template_environment()
    environment.filters |= {
        "alt": _alt,
        "equation": equation_markup,
        "header": chart_header,
        "cells": chart_rows,
    }
    return environment.from_string(page_assets.read_asset("lab.html.j2")).render(
        title=title,
        lab=lab,
        data=lab_json(lab),
        provenance=provenance,
        **page_assets.embedded_assets(
            [page_assets.plotly_js(), page_assets.read_asset("charts.js"), page_assets.read_asset("lab.js")],
            [page_assets.read_asset("page.css"), page_assets.read_asset("lab.css")],
        ),
    )


def equation_markup(plain: str) -> Markup:
    """An equation in plain Unicode as HTML: x_l and λ_{i+1} get subscripts, and 0.9^54 becomes a power."""
    with report_extra():
        from markupsafe import Markup, escape
    escaped = str(escape(one_line(plain)))
    for sign, tag in (("_", "sub"), (r"\^", "sup")):
        escaped = re.sub(sign + r"(?:\{([^{}]*)\}|([^\W_¹²³]+))", rf"<{tag}>\1\2</{tag}>", escaped)
    return Markup(escaped)  # noqa: S704 (escaped before)


def _alt(frames: Sequence[tuple[Time, Chart]], network: str) -> str:
    """The last snapshot of a chart, in words."""
    chart = frames[-1][1]
    curves = "; ".join(f"{series.name} ({series.kind}){_course(series.y)}" for series in chart.series)
    return one_line(f"{chart.title}, {network}: {chart.y_label} by {chart.x_label}. {curves}. {chart.note}")


def _course(y: Sequence[float | None]) -> str:
    values = [value for value in y if value is not None]
    return f" from {values[0]:.3g} to {values[-1]:.3g}" if values else " without values"


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
