"""A chart of an analysis as a figure: one panel for each network, on common axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kilolayer.chart import Chart, Series
from kilolayer.report import canvas
from kilolayer.report.clean_text import shorten_line
from kilolayer.report.lab_data import value_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_PANEL = 2.1
"""Height of a panel in inches."""
_TALLEST = 28
"""Characters along that height."""


def chart_figure(panels: Sequence[tuple[str, Chart]]) -> str:
    """The SVG of one chart for several networks, by name. Predictions are dashed, in their curve's colour."""
    chart = panels[0][1]
    names = list(dict.fromkeys(series.name for _, panel in panels for series in panel.series))
    values = [y for _, panel in panels for series in panel.series for y in series.y]
    low, high, log = value_range(values, chart.log_y)
    below = _x_caption(panels)

    def paint(figure: Drawing) -> None:
        from matplotlib.ticker import MaxNLocator

        rows = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (network, panel) in zip(rows, panels, strict=True):
            canvas.set_up_axes(axes, "", shorten_line(panel.y_label, _TALLEST))
            axes.set_title(network, loc="left", fontsize=9.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
            if log:
                canvas.set_log_axis(axes, values)
            for stage in panel.stages:
                canvas.mark_stage(axes, stage)
            for series in panel.series:
                _line(axes, panel, series, names.index(series.name), log)
            if not log:
                axes.set_ylim(low, high)
                canvas.plain_ticks(axes.yaxis)
        rows[-1].set_xlabel(below)
        canvas.add_legend(figure, names)

    height = 0.5 + _PANEL * len(panels) + canvas.legend_height(names) + 0.2 * below.count("\n")
    return canvas.draw_svg(f"{chart.title}: {', '.join(network for network, _ in panels)}", paint, height)


def _line(axes: Axes, chart: Chart, series: Series, number: int, log: bool) -> None:
    style: dict[str, Any] = {"ls": "--", "lw": 1.0} if series.kind != "measured" else {}
    for points in chart.segments(series):
        canvas.draw_curve(axes, *canvas.split_points(points), number, log, **style)


_DASHED = {"predicted": "predicted", "reference": "for comparison"}


def _x_caption(panels: Sequence[tuple[str, Chart]]) -> str:
    """The label of the x axis, with a second line that explains the lines."""
    kinds = {series.kind for _, chart in panels for series in chart.series}
    dashed = [word for kind, word in _DASHED.items() if kind in kinds]
    remarks = [
        *([f"dashed: {' or '.join(dashed)}"] if dashed else []),
        *(["upright: the shape changes"] if any(chart.stages for _, chart in panels) else []),
    ]
    return panels[0][1].x_label + (f"\n({'; '.join(remarks)})" if remarks else "")
