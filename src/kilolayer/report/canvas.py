"""The common parts of all figures: size, fonts, palette, ticks, legend, and the conversion to SVG text."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kilolayer.report import svg_markup
from kilolayer.report.clean_text import shorten_line
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
