"""The common parts of all figures: style, axes, legend, curves, and the conversion to SVG text."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kilolayer.report import svg_markup
from kilolayer.report.clean_text import shorten_line
from kilolayer.report.curves import Value
from kilolayer.report.extra import report_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing

INK = "#0a0b0c"
"""A placeholder for the text's colour; `COLOURS` replaces it by the page's."""

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800", INK)
"""A palette for every kind of colour vision; its yellow is darkened and its black is the page's ink."""

COLOURS = {INK: "currentColor"} | {
    colour: f"var(--curve-{number}, {colour})" for number, colour in enumerate(OKABE_ITO[:-1], start=1)
}
MARKERS = ("o", "s", "^", "D", "v")
WIDTH, HEIGHT = 5.4, 3.2
"""In inches of 72 units."""

_LETTER, _HANDLE, _LINE = 5.4, 40.0, 14.5
"""A legend's measures in units: the width of a letter, the sample before a label, the height of a line."""

_LONGEST, _TALLEST = 64, 38
"""The longest label along the width, and along the height, in characters."""

_KEY: dict[str, Any] = {"columnspacing": 1.6, "handlelength": 1.8, "borderaxespad": 0.2}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kilolayer",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "axes.unicode_minus": True,
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
)


def draw_svg(title: str, paint: Callable[[Drawing], None], height: float = HEIGHT) -> str:
    """The SVG of the figure that `paint` draws. The text depends on the drawing alone, not on the date."""
    with report_extra():
        from matplotlib import style
        from matplotlib.figure import Figure as Drawing
    out = io.StringIO()
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        warnings.filterwarnings("ignore", message="overflow")  # from a tick outside of the frame
        figure = Drawing(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return svg_markup.tidy_svg(out.getvalue(), title, COLOURS)


def colour(number: int) -> str:
    """The colour of curve `number`, from 0. After the last colour they repeat, with other markers."""
    return OKABE_ITO[number % len(OKABE_ITO)]


def marker(number: int) -> str:
    """The marker of curve `number`, which identifies the curve without its colour."""
    return MARKERS[number % len(MARKERS)]


def _columns(labels: Sequence[str]) -> int:
    widest = _HANDLE + _LETTER * max(map(len, labels), default=1)
    return max(1, min(4, len(labels), int(WIDTH * 72 / widest)))


def legend_height(labels: Sequence[str]) -> float:
    """The height of a legend with these labels, in inches."""
    texts = [shorten_line(label, _LONGEST) for label in labels]
    return math.ceil(len(texts) / _columns(texts)) * _LINE / 72


def add_legend(figure: Drawing, labels: Sequence[str], numbers: Sequence[int] | None = None) -> None:
    """Add a legend below the figure, with one sample for each label; `numbers` are those of the colours."""
    from matplotlib.lines import Line2D

    texts = [shorten_line(label, _LONGEST) for label in labels]
    samples = [
        Line2D([], [], color=colour(n), marker=marker(n), markersize=4) for n in numbers or range(len(texts))
    ]
    # matplotlib hides a label that begins with an underscore, so the texts are set afterwards.
    places = [str(number) for number in range(len(texts))]
    key = figure.legend(samples, places, loc="outside lower center", ncols=_columns(texts), **_KEY)
    for text, label in zip(key.get_texts(), texts, strict=True):
        text.set_text(label)


def set_up_axes(axes: Axes, x_label: str, y_label: str, grid: bool = True) -> None:
    """Set the labels, show only the axes with a scale, and draw a faint grid behind the curves."""
    axes.set_xlabel(shorten_line(x_label, _LONGEST))
    axes.set_ylabel(shorten_line(y_label, _TALLEST))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(grid, axis="y")


def mark_stage(axes: Axes, start: float) -> None:
    """Draw a thin vertical line before the unit at which the network's shape changes."""
    axes.axvline(start - 0.5, color=INK, alpha=0.3, lw=0.7, zorder=0).set_in_layout(False)


def plain_ticks(axis: Axis, scale: float = 1.0, powers: bool = False) -> None:
    """Write the ticks as 0.02, 64 or 10⁻⁷ (with `powers`, all as powers of ten), divided by `scale`."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value / scale, powers)))
    axis.set_minor_formatter(NullFormatter())


def format_tick(value: float, powers: bool = False) -> str:
    """The text of a tick; very small and large numbers (with `powers`, all) have a power of ten.

    >>> format_tick(0.02), format_tick(1e-7), format_tick(-30000), format_tick(20, powers=True)
    ('0.02', '10⁻⁷', '−30000', '2·10¹')
    """
    if value == 0 or (1e-3 <= abs(value) < 1e5 and not powers):
        return f"{value:g}".replace("-", "−")
    if not math.isfinite(value):
        return ""
    mantissa, exponent = f"{value:.2e}".split("e")
    factor = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if factor == "1" else f"{factor}·{power}"


def mark_no_values(axes: Axes) -> None:
    """Write into an empty frame that no finite value was recorded."""
    axes.text(0.5, 0.5, "no finite value was recorded", transform=axes.transAxes, ha="center", va="center")


WIDE = 5
"""An axis is logarithmic if the largest value is at least this multiple of the smallest."""


def finite_values(values: Iterable[Value]) -> list[float]:
    """The values that were measured and are finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def positive_values(values: Iterable[Value]) -> list[float]:
    """The values that a logarithmic axis can show."""
    return [value for value in finite_values(values) if value > 0]


def split_points(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """All x and all y of some points, as matplotlib takes them."""
    return [x for x, _ in points], [y for _, y in points]


def fit_y_axis(axes: Axes, values: Iterable[Value], log: bool = True) -> bool:
    """Fit the y axis to all finite values; return whether it is logarithmic, which `log` allows."""
    finites = finite_values(values)
    positive_only = bool(finites) and min(finites) > 0
    if log and positive_only and max(finites) >= WIDE * min(finites):
        return set_log_axis(axes, finites)
    if not finites:
        axes.set_yticks([])
        return False
    low, high = min(0.0, min(finites)), max(finites)
    room = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - (room if low < 0 else 0.0), high + room)
    plain_ticks(axes.yaxis)
    return False


def set_log_axis(axes: Axes, values: Iterable[Value]) -> bool:
    """Make the y axis logarithmic, with ticks at 2 and 5 over few decades; False without positive values."""
    from matplotlib.ticker import LogLocator

    positives = positive_values(values)
    if not positives:
        axes.set_yticks([])
        return False
    # Beyond these limits matplotlib's own arithmetic overflows.
    low, high = max(min(positives), 1e-300) / 1.25, min(max(positives), 1e300) * 1.25
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=9))
    plain_ticks(axes.yaxis, powers=decades > 5)
    return True


def draw_curve(
    axes: Axes, x: Sequence[float], y: Sequence[Value], number: int, log: bool = False, **style: Any
) -> None:
    """Draw a curve with gaps at non-finite values: a cross begins a gap, a dot marks an isolated point."""
    measured = [(at, value) for at, value in zip(x, y, strict=True) if value is not None]
    points = [(at, v if math.isfinite(v) and (v > 0 or not log) else math.nan) for at, v in measured]
    tint, mark_step = colour(number), max(1, len(points) // 8)
    artists = [
        *axes.plot(
            *split_points(points),
            color=tint,
            **style,
            marker=marker(number),
            ms=3,
            markevery=mark_step,
            clip_on=False,
        ),
        *axes.plot(*split_points(_alone(points)), color=tint, ls="", marker="o", ms=3.5, clip_on=False),
        *axes.plot(*split_points(_last_finite(measured)), color=tint, ls="", marker="x", ms=6),
    ]
    for part in artists:
        # A line without points has infinite bounds, which would leave no room for other panels.
        part.set_in_layout(False)


def _alone(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    gap = (math.nan, math.nan)
    padded = [gap, *points, gap]
    neighbours = zip(padded, points, padded[2:], strict=False)
    return [at for before, at, after in neighbours if math.isnan(before[1]) and math.isnan(after[1])]


def _last_finite(measured: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    pairs = pairwise(measured)
    return [at for at, after in pairs if math.isfinite(at[1]) and not math.isfinite(after[1])]
